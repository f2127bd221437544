//! The lightning indexer of a layer: from its input to the keys that each token attends to.

use super::attention::pairing;
use super::linear::{Linear, Loader};
use crate::config::Config;
use crate::error::Result;
use crate::run::{Batch, IndexCache, LayerCache};
use crate::weights::Weights;
use dsa_kernels::Tensor;
use dsa_kernels::fold_scales::fold_scales;
use dsa_kernels::hadamard::hadamard;
use dsa_kernels::indexer::{IndexKeys, ScoreFn, logits};
use dsa_kernels::norm::layer_norm;
use dsa_kernels::quant::{ScaleFmt, act_quant};
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::seen::Seen;
use dsa_kernels::top_k::{Policy, shift_indices, top_k};

/// eps of `k_norm`, a LayerNorm; no configuration names it.
const K_NORM_EPS: f32 = 1e-6;

/// Heads of one width, side by side in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    /// How many.
    n: usize,
    /// Elements of one.
    dim: usize,
}

/// The weights `indexer.*` and their sizes.
#[derive(Clone)]
pub(super) struct Indexer {
    wq_b: Linear,          // [H · D, q_lora_rank]
    wk: Linear,            // [D, hidden]
    k_norm_weight: Tensor, // [D] f32
    k_norm_bias: Tensor,   // [D] f32
    weights_proj: Linear,  // [H, hidden]
    heads: Heads,
    rope_dim: usize,
    pairing: Pairing,
    hadamard: bool,
    scale_fmt: ScaleFmt,
    /// H^-½ · D^-½.
    scale: f32,
}

impl Indexer {
    pub fn new<W: Weights>(to: &Loader<W>, c: &Config) -> Result<Self> {
        let (n, dim) = (c.index_n_heads, c.index_head_dim);
        Ok(Self {
            wq_b: to.linear("wq_b", [n * dim, c.q_lora_rank])?,
            wk: to.linear("wk", [dim, c.hidden_size])?,
            k_norm_weight: to.vector("k_norm.weight", dim)?,
            k_norm_bias: to.vector("k_norm.bias", dim)?,
            weights_proj: to.linear("weights_proj", [n, c.hidden_size])?,
            heads: Heads { n, dim },
            rope_dim: c.qk_rope_head_dim,
            pairing: pairing(c.indexer_rope_interleaved),
            scale_fmt: c.scale_fmt(),
            hadamard: c.attention_options.hadamard,
            scale: c.index_scale() as f32,
        })
    }

    /// The new tokens' keys, for the cache: `x` `[n, hidden]` to `[n, D]`.
    pub fn keys(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let k = self.wk.forward(x)?; // [n, D]
        let (weight, bias) = (&self.k_norm_weight, &self.k_norm_bias);
        let k = layer_norm(&k, weight, bias, K_NORM_EPS)?; // [n, D]
        batch.watch().show("index.k", self.turn(&k, 1, batch)?) // [n, D]
    }

    /// Logits of the new tokens: `x` `[n, hidden]`, `qr` `[n, q_lora_rank]`.
    ///
    /// Returns `[n, columns]` f32. Where the keys are paged, columns are positions in each token's
    /// own request; where they are rows, columns are rows of the step's table ([`Batch`]).
    pub fn logits(
        &self,
        x: &Tensor,
        qr: &Tensor,
        batch: &Batch,
        cache: &LayerCache,
        score_fn: ScoreFn,
    ) -> Result<Tensor> {
        let (n, Heads { n: heads, dim }, watch) = (batch.tokens(), self.heads, batch.watch());
        let q = self.wq_b.forward(qr)?; // [n, H · D]
        let q = self.turn(&q, heads, batch)?.reshape(&[n, heads, dim])?; // [n, H, D]
        let q = watch.show("index.q", q)?; // [n, H, D]
        // The demo computes these in f32, and so does the product, rounding only its inputs.
        let w = self.weights_proj.forward_f32(x)?; // [n, H]
        let logits = match cache.index_keys()? {
            IndexCache::Paged(pages) => {
                let q = q.reshape(&[n * heads, dim])?;
                let q8 = act_quant(&q, self.scale_fmt)?; // [n · H, D], [n · H, 1]
                let codes = watch.show("index.q_codes", q8.codes)?; // [n · H, D]
                let q_scale = watch.show("index.q_scale", q8.scale.reshape(&[n, heads])?)?; // [n, H]
                let w = fold_scales(&w, &q_scale, self.scale)?; // [n, H]
                let w = watch.show("index.weights", w)?; // [n, H]
                // A chunk is one request with n new tokens, a batch n requests with one each.
                let next_n = n / batch.requests();
                let q = codes.reshape(&[batch.requests(), next_n, heads, dim])?;
                let keys = IndexKeys::Paged {
                    cache: pages,
                    page_size: cache.page_size(),
                    block_table: batch.block_table(),
                    max_context: batch.longest(),
                };
                let seen = Seen::Context(batch.contexts());
                logits(&q, &w, &keys, &seen, score_fn)? // [n, longest]
            }
            IndexCache::Rows { keys, ones } => {
                let q_scale = ones.narrow(0, 0, n * heads)?.reshape(&[n, heads])?;
                let w = fold_scales(&w, &q_scale, self.scale)?; // [n, H]
                let w = watch.show("index.weights", w)?; // [n, H]
                let (start, rows) = batch.context();
                let k = keys.narrow(0, start, rows)?; // [rows, D]
                let scale = ones.narrow(0, 0, rows)?; // [rows]
                let keys = IndexKeys::Rows { k: &k, k_scale: &scale };
                logits(&q, &w, &keys, &Seen::Range(batch.seen_rows()), score_fn)? // [n, rows]
            }
        };
        watch.show("index.scores", logits)
    }

    /// The keys that each token attends to: the `topk` best columns of the logits, as rows of the step's table
    /// `[n, topk]` i32, ascending, then -1.
    pub fn select(
        &self,
        logits: &Tensor,
        batch: &Batch,
        cache: &LayerCache,
        topk: usize,
        policy: Policy,
    ) -> Result<Tensor> {
        let rows = matches!(cache.index_keys()?, IndexCache::Rows { .. });
        let seen = if rows { batch.seen_rows() } else { batch.seen_positions() };
        let chosen = top_k(logits, &seen, topk, policy)?; // [n, topk]
        // Columns of rows are rows. Those of paged keys are positions, which one request's rows are too; of
        // several they are to be moved to where their request begins.
        let chosen = if rows || batch.requests() == 1 {
            chosen
        } else {
            shift_indices(&chosen, batch.seen_rows().ks)?
        };
        Ok(chosen)
    }

    /// Gives position to the first dimensions of every head (in the main attention it is the last),
    /// and spreads outliers: `x` `[n, heads · D]` to the same shape. Changes x.
    fn turn(&self, x: &Tensor, heads: usize, batch: &Batch) -> dsa_kernels::Result<Tensor> {
        let (n, dim) = (x.shape()[0], self.heads.dim);
        let turned = x.reshape(&[n, heads, dim])?.narrow(2, 0, self.rope_dim)?; // [n, heads, rope]
        let rotary = batch.rotary();
        rope(&turned, &rotary.cos, &rotary.sin, batch.at(), &turned, self.pairing)?;
        if !self.hadamard {
            return Ok(x.clone());
        }
        let spread = hadamard(&x.reshape(&[n * heads, dim])?)?; // [n · heads, D]
        spread.reshape(&[n, heads * dim])
    }
}
