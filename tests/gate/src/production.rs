//! What the cases are made of whose code is judged without a device: DeepSeek-V3.2's dimensions, few tokens, zeros.
//!
//! A kernel chooses its code by element types and widths, not by lengths, so few tokens are enough.

use crate::case::HostTensor;
use dsa_kernels::DType;

/// Width of the hidden state.
pub const HIDDEN: usize = 7168;
/// Attention heads.
pub const HEADS: usize = 128;
/// Elements of the latent, of its rope part and of both.
pub const KV_LORA_RANK: usize = 512;
/// See [`KV_LORA_RANK`].
pub const ROPE_DIM: usize = 64;
/// See [`KV_LORA_RANK`].
pub const D_QK: usize = KV_LORA_RANK + ROPE_DIM;
/// Widths of a head in the expanded form: keys with rope, values.
pub const EXPANDED: (usize, usize) = (192, 128);
/// Heads of the indexer.
pub const INDEX_HEADS: usize = 64;
/// Their width.
pub const INDEX_DIM: usize = 128;
/// Keys that a query keeps.
pub const TOPK: usize = 2048;
/// Tokens of a cache page.
pub const PAGE: usize = 64;
/// Factor of the scores at long context.
pub const SOFTMAX_SCALE: f32 = 0.135_233_78;
/// Width of an expert, how many there are, and to how many a token goes.
pub const INTERMEDIATE: usize = 2048;
/// See [`INTERMEDIATE`].
pub const EXPERTS: usize = 256;
/// See [`INTERMEDIATE`].
pub const EXPERTS_PER_TOKEN: usize = 8;
/// Few tokens.
pub const FEW: usize = 4;

/// Zeros.
pub fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

/// Zeros of i32.
pub fn ints(shape: &[usize]) -> HostTensor {
    zeros(DType::I32, shape)
}

/// Zeros of `n` pages of records of so many bytes.
pub fn pages(n: usize, record: usize) -> HostTensor {
    zeros(DType::U8, &[n, PAGE * record])
}
