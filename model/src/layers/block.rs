//! One layer: attention and a feed-forward network, each behind a norm of the residual stream.
//!
//! ```text
//! x, r = norm(x + r), x + r        x = attention(x)
//! x, r = norm(x + r), x + r        x = feed_forward(x), in later layers experts(x)
//! ```
//! Source: `Block` of the DeepSeek-V3.2-Exp inference demo (November 2025).

use super::attention::{Attention, Trace};
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::linear::{Loader, Precision, check_dtype};
use super::norm::Norm;
use crate::config::{Config, Indexer};
use crate::error::Result;
use crate::run::{Batch, Execution, LayerCache, Stage};
use crate::weights::Weights;
use dsa_kernels::router::RouterConfig;
use dsa_kernels::weight::Weight;
use dsa_kernels::{Device, Tensor};

/// The weights `model.layers.N.*`.
#[derive(Clone)]
pub struct Block {
    input_layernorm: Norm,
    self_attn: Attention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
}

/// The second half of a layer.
#[derive(Clone)]
enum Mlp {
    /// One network for all tokens: the first layers.
    Dense(FeedForward),
    /// A gate and experts: the others.
    Experts(Box<Experts>),
}

/// The three matrices of a feed-forward network: gate_proj and up_proj `[inner, hidden]`, down_proj `[hidden, inner]`;
/// of routed experts each `[experts, …]`.
pub type Matrices = [Weight; 3];

/// The weights of a layer's second half, as they are on the device.
#[derive(Clone)]
pub enum MlpWeights {
    /// One network for all tokens.
    Dense(Matrices),
    /// A gate and experts.
    Experts {
        /// `gate.weight` `[experts, hidden]`.
        gate: Weight,
        /// `gate.e_score_correction_bias` `[experts]` f32.
        bias: Tensor,
        /// How the gate chooses.
        router: RouterConfig,
        /// The routed experts.
        experts: Matrices,
        /// The shared ones, which are one network.
        shared: Matrices,
    },
}

/// What a layer makes of the residual stream, whose value is `x + residual`.
#[derive(Clone, Debug)]
pub struct Output {
    /// What the attention added, `[n, hidden]`.
    pub attention: Tensor,
    /// What the feed-forward network or the experts were given, `[n, hidden]`.
    pub ffn_in: Tensor,
    /// What the feed-forward network or the experts put out, which is yet to be added, `[n, hidden]`.
    pub x: Tensor,
    /// All before it, `[n, hidden]`.
    pub residual: Tensor,
}

impl Block {
    /// Layer `layer` of the model of `config` with `weights`, the root of a checkpoint.
    ///
    /// # Errors
    /// As [`Attention::new`], for every weight of the layer.
    pub fn new<W: Weights>(
        device: &Device,
        config: &Config,
        weights: W,
        precision: Precision,
        layer: usize,
    ) -> Result<Self> {
        check_dtype(precision.dtype)?;
        let root = Loader::new(device, weights, precision, config);
        Self::build(&root.at("model.layers").at(&layer.to_string()), config, layer)
    }

    /// Layer `layer` of the model of `config`; `to` is at `model.layers.N`.
    pub(crate) fn build<W: Weights>(to: &Loader<W>, config: &Config, layer: usize) -> Result<Self> {
        let (c, hidden, eps) = (config, config.hidden_size, config.rms_norm_eps);
        let full = c.indexer_of(layer) == Indexer::Full;
        let mlp = to.at("mlp");
        Ok(Self {
            input_layernorm: Norm::new(to, "input_layernorm", hidden, eps)?,
            self_attn: Attention::build(&to.at("self_attn"), c, full)?,
            post_attention_layernorm: Norm::new(to, "post_attention_layernorm", hidden, eps)?,
            mlp: match c.is_moe_layer(layer) {
                true => Mlp::Experts(Box::new(Experts::new(&mlp, c)?)),
                false => Mlp::Dense(FeedForward::new(&mlp, hidden, c.intermediate_size)?),
            },
        })
    }

    /// Computes from now on as `execution` says.
    pub fn execute(&mut self, execution: Execution) {
        self.self_attn.execution = execution;
    }

    /// The layer's first half, between the norm before it and the one behind.
    pub fn attention(&self) -> &Attention {
        &self.self_attn
    }

    /// The weights of its second half.
    pub fn mlp(&self) -> MlpWeights {
        match &self.mlp {
            Mlp::Dense(mlp) => MlpWeights::Dense(mlp.matrices()),
            Mlp::Experts(mlp) => mlp.weights(),
        }
    }

    /// Layer `layer` selects from now on as `config` says.
    pub(crate) fn select(&mut self, config: &Config, layer: usize) -> Result<()> {
        self.self_attn.select(config, config.indexer_of(layer) == Indexer::Full)
    }

    /// A step: `x` and `residual` `[n, hidden]` of the batch's n tokens; before the first layer there is no residual.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Output> {
        let attend = |x: &Tensor| Ok((self.self_attn.forward(x, batch, cache)?, ()));
        Ok(self.step(x, residual, batch, attend)?.0)
    }

    /// [`Block::forward`], with the attention's input `[n, hidden]` and what it computed on the way.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn trace(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<(Output, (Tensor, Trace))> {
        self.step(x, residual, batch, |x| {
            let trace = self.self_attn.trace(x, batch, cache)?;
            Ok((trace.hidden.clone(), (x.clone(), trace)))
        })
    }

    /// Both halves; `attend` is the first, and may return more than its result.
    fn step<T>(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        batch: &Batch,
        attend: impl FnOnce(&Tensor) -> Result<(Tensor, T)>,
    ) -> Result<(Output, T)> {
        let (stages, watch) = (batch.stages(), batch.watch());
        let (x, residual) =
            stages.run(Stage::Norms, || self.input_layernorm.forward(x, residual))?; // [n, hidden]
        let x = watch.show("mla.x", x)?; // [n, hidden]
        let (attention, more) = attend(&x)?; // [n, hidden]
        let (x, residual) = stages.run(Stage::Norms, || {
            self.post_attention_layernorm.forward(&attention, Some(&residual))
        })?; // [n, hidden]
        let residual = watch.show("block.residual", residual)?; // [n, hidden]
        let ffn_in = watch.show("block.ffn_in", x)?; // [n, hidden]
        let x = match &self.mlp {
            Mlp::Dense(mlp) => stages.run(Stage::FeedForward, || mlp.forward(&ffn_in))?,
            Mlp::Experts(mlp) => stages.run(Stage::Experts, || mlp.forward(&ffn_in, watch))?,
        }; // [n, hidden]
        let x = watch.show("block.ffn_out", x)?; // [n, hidden]
        Ok((Output { attention, ffn_in, x, residual }, more))
    }
}
