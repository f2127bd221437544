//! The planted bugs, and the kernels, the gate and the layer that hold them.
#![forbid(unsafe_code)]

pub use dsa_kernels;
pub use dsa_model;
pub use dsa_tests;

include!("bugs.rs");
