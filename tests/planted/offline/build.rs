//! The sources of kernels/offline, over the kernels with planted bugs; its own tests stay where it stands.

#[path = "../splice.rs"]
mod splice;

fn main() -> Result<(), String> {
    splice::splice_package("kernels/offline/src", "dsa_kernels::planted(NAME)")
}
