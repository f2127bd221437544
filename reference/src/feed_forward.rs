//! The feed-forward network of one layer, of one expert and of the shared experts.
//!
//! Source: `MLP` and `Expert` of the DeepSeek-V3.2-Exp inference demo.
use crate::arithmetic::Arithmetic;
use crate::error::Result;
use crate::swiglu::swiglu;
use crate::weight::Weight;
use ndarray::{Array2, ArrayView2};

/// Weights of a feed-forward network, `mlp.*`.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedForwardWeights {
    /// `[intermediate_size, hidden_size]`.
    pub gate_proj: Weight,
    /// `[intermediate_size, hidden_size]`.
    pub up_proj: Weight,
    /// `[hidden_size, intermediate_size]`.
    pub down_proj: Weight,
}

/// `y = swiglu(x·Wgateᵀ, x·Wupᵀ)·Wdownᵀ`: `x` and `y` `[n, hidden_size]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
pub fn feed_forward(
    x: ArrayView2<f32>,
    weights: &FeedForwardWeights,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let (hidden, inner) = (x.ncols(), weights.gate_proj.shape()[0]);
    let gate = weights.gate_proj.linear("gate_proj", x, inner, arithmetic)?; // [n, intermediate]
    let up = weights.up_proj.linear("up_proj", x, inner, arithmetic)?; // [n, intermediate]
    let y = swiglu(gate.view(), up.view(), arithmetic)?; // [n, intermediate]
    weights.down_proj.linear("down_proj", y.view(), hidden, arithmetic) // [n, hidden_size]
}
