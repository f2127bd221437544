//! The experts of a layer: those that each token chose, and the shared ones, which every token visits.
//!
//! ```text
//! y[t] = Σ_e weights[t, e] · expert_e(x[t]) + shared(x[t])
//! ```
//! The tokens are sorted by expert on the device; no choice comes to the host.
//!
//! Source: `MoE` of the DeepSeek-V3.2-Exp inference demo.

use super::block::MlpWeights;
use super::feed_forward::FeedForward;
use super::linear::Loader;
use super::router::Router;
use crate::config::Config;
use crate::error::Result;
use crate::run::Watch;
use crate::weights::Weights;
use dsa_kernels::combine::combine;
use dsa_kernels::dispatch::dispatch;
use dsa_kernels::grouped_gemm::{Rows, grouped_gemm};
use dsa_kernels::quant::ScaleFmt;
use dsa_kernels::router::Routing;
use dsa_kernels::swiglu::swiglu;
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Tensor};

/// The weights `mlp.*` of a layer with experts.
#[derive(Clone)]
pub(super) struct Experts {
    gate: Router,
    experts: Stacked,
    shared_experts: FeedForward,
    top_k: usize,
    scale_fmt: ScaleFmt,
}

/// `mlp.experts.0.*`, `mlp.experts.1.*`, …: one tensor for each matrix.
#[derive(Clone)]
struct Stacked {
    gate_proj: Weight, // [experts, inner, hidden]
    up_proj: Weight,   // [experts, inner, hidden]
    down_proj: Weight, // [experts, hidden, inner]
}

impl Experts {
    /// `to` is at `mlp`.
    pub fn new<W: Weights>(to: &Loader<W>, c: &Config) -> Result<Self> {
        let (experts, hidden, inner) = (c.n_routed_experts, c.hidden_size, c.moe_intermediate_size);
        let shared = inner * c.n_shared_experts;
        let each = to.at("experts");
        Ok(Self {
            gate: Router::new(to, c)?,
            experts: Stacked {
                gate_proj: each.stack("gate_proj", [experts, inner, hidden])?,
                up_proj: each.stack("up_proj", [experts, inner, hidden])?,
                down_proj: each.stack("down_proj", [experts, hidden, inner])?,
            },
            shared_experts: FeedForward::new(&to.at("shared_experts"), hidden, shared)?,
            top_k: c.num_experts_per_tok,
            scale_fmt: c.scale_fmt(),
        })
    }

    pub fn weights(&self) -> MlpWeights {
        let Stacked { gate_proj, up_proj, down_proj } = self.experts.clone();
        MlpWeights::Experts {
            gate: self.gate.weight.weight.clone(),
            bias: self.gate.e_score_correction_bias.clone(),
            router: self.gate.config,
            experts: [gate_proj, up_proj, down_proj],
            shared: self.shared_experts.matrices(),
        }
    }

    /// `x` `[n, hidden]` to the same.
    pub fn forward(&self, x: &Tensor, watch: &Watch) -> Result<Tensor> {
        let (dtype, w) = (x.dtype(), &self.experts);
        let routing = self.gate.forward(&watch.show("gate.x", x.clone())?)?; // [n, top_k] each
        let routing = Routing {
            weights: watch.show("gate.weights", routing.weights)?,
            indices: watch.show("gate.indices", routing.indices)?,
        };
        let pairs = dispatch(&routing.indices, w.gate_proj.shape()[0])?; // [n · top_k]
        let product = |x: &Tensor, w: &Weight, rows: Rows, dtype: DType| {
            grouped_gemm(x, w, &pairs, rows, self.scale_fmt, dtype)
        };
        let tokens = Rows::Tokens { top_k: self.top_k };
        let gate = product(x, &w.gate_proj, tokens, dtype)?; // [n · top_k, inner]
        let up = product(x, &w.up_proj, tokens, dtype)?; // [n · top_k, inner]
        let y = product(&swiglu(&gate, &up)?, &w.down_proj, Rows::Pairs, dtype)?; // [n · top_k, hidden]
        let shared = self.shared_experts.forward(x)?; // [n, hidden]
        if watch.is_there() {
            // Sum and rounding are one kernel: the sum before it is computed for who watches, and nothing takes its place.
            let routed = combine(&y, &pairs, &routing, None, DType::F32)?; // [n, hidden]
            watch.show("moe.routed", routed)?;
        }
        let shared = watch.show("moe.shared", shared)?; // [n, hidden]
        Ok(combine(&y, &pairs, &routing, Some(&shared), dtype)?) // [n, hidden]
    }
}
