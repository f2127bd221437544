//! The sources of tests/gate, over the kernels with planted bugs; its own tests stay where it stands.

#[path = "../splice.rs"]
mod splice;

fn main() -> Result<(), String> {
    splice::splice_package("tests/gate/src", "dsa_kernels::planted(NAME)")
}
