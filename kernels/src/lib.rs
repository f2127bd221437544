//! The DeepSeek Sparse Attention kernels, each written once in CubeCL.

// The `cube` macro makes a module beside each kernel that no doc comment can reach.
#![allow(missing_docs)]

pub mod dense_attention;
pub mod device;
pub mod error;
pub mod gemm;
pub mod hadamard;
pub mod indexer;
pub mod norm;
pub mod offline;
pub mod quant;
pub mod rope;
pub mod sparse_attention;
pub mod tensor;
pub mod tile;
pub mod top_k;

pub use device::{Device, DeviceKind};
pub use error::KernelError;
pub use tensor::{DType, Tensor};

/// Version of the LLVM that is linked in and compiles the kernels.
pub fn llvm_version() -> &'static str {
    env!("DSA_LLVM_VERSION")
}

/// The result of a launcher.
pub type Result<T> = std::result::Result<T, KernelError>;
