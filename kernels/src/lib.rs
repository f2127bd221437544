//! The DeepSeek Sparse Attention kernels, each written once in CubeCL.

// The `cube` macro makes a module beside each kernel that no doc comment can reach.
#![allow(missing_docs)]
// The same macro names what a kernel is compiled with by its arguments, underscored.
#![allow(clippy::duplicate_underscore_argument)]
// Conditions of a kernel, comptime or not, are written alike: `%` is what both have.
#![allow(clippy::manual_is_multiple_of)]
// A kernel's arguments are buffers and numbers; there is no struct to hide them in.
#![allow(clippy::too_many_arguments)]

pub mod attention;
pub mod contract;
pub mod copy;
pub mod dense_attention;
pub mod device;
pub mod error;
pub mod fold_scales;
pub mod gemm;
pub mod hadamard;
pub mod indexer;
mod keys;
mod merge_splits;
pub mod norm;
pub mod offline;
pub mod peak;
pub mod quant;
pub mod rope;
mod slots;
pub mod sparse_attention;
pub mod tensor;
pub mod tile;
pub mod top_k;
mod top_k_sift;

pub use device::{Device, DeviceKind};
pub use error::KernelError;
pub use tensor::{DType, Tensor};

use sha2::{Digest, Sha256};

/// Every source file of the kernels.
const SOURCES: &[(&str, &str)] = &[
    ("attention.rs", include_str!("attention.rs")),
    ("copy.rs", include_str!("copy.rs")),
    ("dense_attention.rs", include_str!("dense_attention.rs")),
    ("fold_scales.rs", include_str!("fold_scales.rs")),
    ("gemm.rs", include_str!("gemm.rs")),
    ("hadamard.rs", include_str!("hadamard.rs")),
    ("indexer.rs", include_str!("indexer.rs")),
    ("indexer/keys.rs", include_str!("indexer/keys.rs")),
    ("indexer/logits.rs", include_str!("indexer/logits.rs")),
    ("keys.rs", include_str!("keys.rs")),
    ("keys/record.rs", include_str!("keys/record.rs")),
    ("merge_splits.rs", include_str!("merge_splits.rs")),
    ("norm.rs", include_str!("norm.rs")),
    ("peak.rs", include_str!("peak.rs")),
    ("quant.rs", include_str!("quant.rs")),
    ("rope.rs", include_str!("rope.rs")),
    ("slots.rs", include_str!("slots.rs")),
    ("sparse_attention.rs", include_str!("sparse_attention.rs")),
    ("top_k.rs", include_str!("top_k.rs")),
    ("top_k/columns.rs", include_str!("top_k/columns.rs")),
    ("top_k/radix.rs", include_str!("top_k/radix.rs")),
    ("top_k_sift.rs", include_str!("top_k_sift.rs")),
    ("tile/convert.rs", include_str!("tile/convert.rs")),
    ("tile/fragment.rs", include_str!("tile/fragment.rs")),
    ("tile/load.rs", include_str!("tile/load.rs")),
    ("tile/machine.rs", include_str!("tile/machine.rs")),
    ("tile/multiply.rs", include_str!("tile/multiply.rs")),
    ("tile/nvptx.rs", include_str!("tile/nvptx.rs")),
    ("tile/pipeline.rs", include_str!("tile/pipeline.rs")),
    ("tile/reduce.rs", include_str!("tile/reduce.rs")),
    ("tile/softmax.rs", include_str!("tile/softmax.rs")),
    ("tile/tiles.rs", include_str!("tile/tiles.rs")),
    ("tile/warpgroup.rs", include_str!("tile/warpgroup.rs")),
];

/// The text of a source file of the kernels, as `indexer.rs`.
fn source(file: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

/// SHA-256 of the source of the kernels in `file` and of the vocabulary they are written in, or of all
/// kernels if `file` is `None`: what tells measurements of different kernels apart. 64 hex digits.
pub fn source_hash(file: Option<&str>) -> String {
    let mut hash = Sha256::new();
    for (name, text) in SOURCES {
        // Dense MLA is the body of sparse attention, and both merge their splits alike.
        let shared = name.starts_with("tile/")
            || ["attention.rs", "merge_splits.rs", "sparse_attention.rs"].contains(name)
            || name.starts_with("keys");
        // What a file is made of has its name first: `top_k/columns.rs` and `top_k_sift.rs` are top_k.rs.
        let part = |file: &str| name.starts_with(file.trim_end_matches(".rs"));
        if shared || file.is_none_or(part) {
            hash.update(name);
            hash.update(text);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Version of the LLVM that is linked in and compiles the kernels.
pub fn llvm_version() -> &'static str {
    env!("DSA_LLVM_VERSION")
}

/// The result of a launcher.
pub type Result<T> = std::result::Result<T, KernelError>;
