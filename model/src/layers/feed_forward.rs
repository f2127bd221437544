//! The feed-forward network of a dense layer, and that of the shared experts.
//!
//! ```text
//! y = swiglu(x·Wgateᵀ, x·Wupᵀ)·Wdownᵀ
//! ```
//! Source: `MLP` of the DeepSeek-V3.2-Exp inference demo.

use super::block::Matrices;
use super::linear::{Linear, Loader};
use crate::error::Result;
use crate::weights::Weights;
use dsa_kernels::Tensor;
use dsa_kernels::swiglu::swiglu;

/// The weights `mlp.*` of a dense layer, or `mlp.shared_experts.*`.
#[derive(Clone)]
pub(super) struct FeedForward {
    gate_proj: Linear, // [inner, hidden]
    up_proj: Linear,   // [inner, hidden]
    down_proj: Linear, // [hidden, inner]
}

impl FeedForward {
    pub fn new<W: Weights>(to: &Loader<W>, hidden: usize, inner: usize) -> Result<Self> {
        Ok(Self {
            gate_proj: to.linear("gate_proj", [inner, hidden])?,
            up_proj: to.linear("up_proj", [inner, hidden])?,
            down_proj: to.linear("down_proj", [hidden, inner])?,
        })
    }

    pub fn matrices(&self) -> Matrices {
        [&self.gate_proj, &self.up_proj, &self.down_proj].map(|linear| linear.weight.clone())
    }

    /// `x` `[n, hidden]` to the same.
    pub fn forward(&self, x: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?); // [n, inner]
        self.down_proj.forward(&swiglu(&gate, &up)?) // [n, hidden]
    }
}
