//! One layer: attention and a feed-forward network, each behind a norm of the residual stream.
//!
//! ```text
//! x, r = norm(x + r), x + r        x = attention(x)
//! x, r = norm(x + r), x + r        x = feed_forward(x), in later layers experts(x)
//! ```
//! Source: `Block` of the DeepSeek-V3.2-Exp inference demo (November 2025).

use super::attention::Attention;
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::linear::Loader;
use super::norm::Norm;
use crate::config::{Config, Indexer};
use crate::error::Result;
use crate::run::{Batch, Execution, LayerCache};
use crate::weights::Weights;
use dsa_kernels::Tensor;

/// The weights `model.layers.N.*`.
#[derive(Clone)]
pub(crate) struct Block {
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

/// What a layer makes of the residual stream, whose value is `x + residual`.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// What the attention added, `[n, hidden]`.
    pub attention: Tensor,
    /// What the feed-forward network or the experts put out, which is yet to be added, `[n, hidden]`.
    pub x: Tensor,
    /// All before it, `[n, hidden]`.
    pub residual: Tensor,
}

impl Block {
    /// Layer `layer` of the model of `config`; `to` is at `model.layers.N`.
    pub fn new<W: Weights>(to: &Loader<W>, config: &Config, layer: usize) -> Result<Self> {
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
    pub(crate) fn execute(&mut self, execution: Execution) {
        self.self_attn.execution = execution;
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
        let watch = batch.watch();
        let (x, residual) = self.input_layernorm.forward(x, residual)?; // [n, hidden]
        let x = watch.show("mla.x", x)?; // [n, hidden]
        let attention = self.self_attn.forward(&x, batch, cache)?; // [n, hidden]
        let (x, residual) = self.post_attention_layernorm.forward(&attention, Some(&residual))?; // [n, hidden]
        let residual = watch.show("block.residual", residual)?; // [n, hidden]
        let x = watch.show("block.ffn_in", x)?; // [n, hidden]
        let x = match &self.mlp {
            Mlp::Dense(mlp) => mlp.forward(&x)?,
            Mlp::Experts(mlp) => mlp.forward(&x, watch)?,
        }; // [n, hidden]
        let x = watch.show("block.ffn_out", x)?; // [n, hidden]
        Ok(Output { attention, x, residual })
    }
}
