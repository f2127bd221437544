//! The kernels' sources with the planted bugs, and what their own build script finds out.

#[path = "../../../kernels/build.rs"]
mod original;
#[path = "../splice.rs"]
mod splice;

fn main() -> Result<(), String> {
    splice::splice_package("kernels/src", "comptime![crate::planted(NAME)]")?;
    // It reads the sources beside its own manifest.
    let root = splice::root()?;
    // SAFETY: a build script has one thread.
    unsafe { std::env::set_var("CARGO_MANIFEST_DIR", root.join("kernels")) };
    original::main()
}
