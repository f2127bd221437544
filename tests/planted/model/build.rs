//! The layer's sources with the planted bugs.

#[path = "../splice.rs"]
mod splice;

fn main() -> Result<(), String> {
    splice::splice_package("model/src", "dsa_kernels::planted(NAME)")
}
