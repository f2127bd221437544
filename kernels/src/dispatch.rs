//! The pairs of tokens and experts, sorted by expert.

use crate::tensor::Tensor;

/// Pair `t · top_k + j` is token t with the j-th of its experts.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// `[n · top_k]` i32: the pairs, by expert and then by pair.
    pub order: Tensor,
    /// `[E]` i32: where in `order` each expert's pairs end.
    pub ends: Tensor,
}
