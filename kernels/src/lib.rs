//! The DeepSeek Sparse Attention kernels, each written once in CubeCL.

// The `cube` macro makes a module beside each kernel that no doc comment can reach.
#![allow(missing_docs)]
// The same macro names what a kernel is compiled with by its arguments, underscored.
#![allow(clippy::duplicate_underscore_argument)]
// Conditions of a kernel, comptime or not, are written alike: `%` is what both have.
#![allow(clippy::manual_is_multiple_of)]
// A kernel's arguments are buffers and numbers; there is no struct to hide them in.
#![allow(clippy::too_many_arguments)]

pub mod add_norm;
pub mod attention;
pub mod bandwidth;
pub mod cache_read;
pub mod cache_write;
pub mod combine;
pub mod contract;
pub mod copy;
pub mod dense_attention;
pub mod dequantise;
pub mod device;
pub mod dispatch;
mod dtype;
pub mod embedding;
pub mod error;
pub mod fold_scales;
pub mod gemm;
pub mod grouped_gemm;
pub mod hadamard;
pub mod indexer;
pub mod keys;
pub mod linear;
pub mod memory;
mod merge_splits;
pub mod norm;
mod pages;
pub mod peak;
mod product;
pub mod quant;
pub mod random;
pub mod random_weights;
pub mod rope;
pub mod router;
pub mod seen;
mod slots;
mod source;
pub mod sparse_attention;
pub mod swiglu;
pub mod tensor;
pub mod tile;
pub mod timing;
pub mod top_k;
pub mod upload;
pub mod weight;

pub use device::{Device, DeviceKind};
pub use dtype::DType;
pub use error::KernelError;
pub use source::{source_hash, source_text};
pub use tensor::Tensor;

/// Version of the LLVM that is linked in and compiles the kernels.
pub fn llvm_version() -> &'static str {
    env!("DSA_LLVM_VERSION")
}

/// The result of a launcher.
pub type Result<T> = std::result::Result<T, KernelError>;
