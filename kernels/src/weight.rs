//! A matrix as the checkpoint stores it.

use crate::tensor::Tensor;

/// A weight `[.., out, in]`, on the device as it is in the file.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Numbers: `[.., out, in]` f32, bf16 or f16.
    Plain(Tensor),
    /// `code · scale`, one scale for 128 x 128.
    Fp8 {
        /// `[.., out, in]` e4m3.
        codes: Tensor,
        /// `[.., ceil(out / 128), ceil(in / 128)]` f32: the checkpoint's `weight_scale_inv`.
        scale: Tensor,
    },
}
