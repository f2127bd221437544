//! The gate of a layer with experts: which of them each token goes to.

use super::linear::{Linear, Loader};
use crate::config::Config;
use crate::error::Result;
use crate::weights::Weights;
use dsa_kernels::Tensor;
use dsa_kernels::router::{RouterConfig, Routing, router};

/// The weights `mlp.gate.*`.
#[derive(Clone)]
pub(super) struct Router {
    pub weight: Linear,                  // [experts, hidden]
    pub e_score_correction_bias: Tensor, // [experts] f32
    pub config: RouterConfig,
}

impl Router {
    /// `to` is at `mlp`.
    pub fn new<W: Weights>(to: &Loader<W>, c: &Config) -> Result<Self> {
        let experts = c.n_routed_experts;
        Ok(Self {
            weight: to.linear("gate", [experts, c.hidden_size])?,
            e_score_correction_bias: to.vector("gate.e_score_correction_bias", experts)?,
            config: RouterConfig {
                num_experts_per_tok: c.num_experts_per_tok,
                n_group: c.n_group,
                topk_group: c.topk_group,
                norm_topk_prob: c.norm_topk_prob,
                routed_scaling_factor: c.routed_scaling_factor as f32,
            },
        })
    }

    /// The choice of each row of `x` `[n, hidden]`. Its logits are not rounded.
    pub fn forward(&self, x: &Tensor) -> dsa_kernels::Result<Routing> {
        let logits = self.weight.forward_f32(x)?; // [n, experts]
        router(&logits, &self.e_score_correction_bias, &self.config)
    }
}
