//! The planted bugs, and the kernels, the gate and the layer that hold them.
#![forbid(unsafe_code)]

pub use dsa_gate;
pub use dsa_kernels;
pub use dsa_model;

include!("bugs.rs");
