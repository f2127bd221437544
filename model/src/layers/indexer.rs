//! The lightning indexer of a layer: from its input to the keys that each token attends to.

use super::attention::pairing;
use super::limits::logits_parts;
use super::linear::{Linear, Loader};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::run::{Batch, IndexCache, LayerCache, Stage};
use crate::weights::Weights;
use dsa_kernels::cache_read::place_indices;
use dsa_kernels::embedding::embedding;
use dsa_kernels::fold_scales::fold_scales;
use dsa_kernels::hadamard::hadamard;
use dsa_kernels::indexer::{IndexKeys, ScoreFn, logits};
use dsa_kernels::norm::layer_norm;
use dsa_kernels::quant::{ScaleFmt, act_quant};
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::seen::{KeyRange, Seen};
use dsa_kernels::top_k::{Policy, shift_indices, top_k};
use dsa_kernels::{DType, Tensor};
use std::ops::Range;

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

/// Which keys are chosen, and in how much memory.
pub(super) struct Choice {
    pub topk: usize,
    pub score_fn: ScoreFn,
    pub policy: Policy,
    /// Most bytes of logits that are held at a time.
    pub logits_budget: usize,
}

/// What tokens ask the indexer with.
pub(super) struct Queries {
    /// `[n, H, D]`, as the keys are.
    q: Tensor,
    /// `[n, H]` f32, the scales of q folded in.
    weights: Tensor,
}

/// What the tokens `rows` of a step see.
fn of_rows(seen: &KeyRange, rows: &Range<usize>) -> dsa_kernels::Result<(Tensor, Tensor)> {
    let of = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
    Ok((of(seen.ks)?, of(seen.ke)?))
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

    /// The keys that each of the new tokens attends to, of `x` `[n, hidden]` and `qr` `[n, q_lora_rank]`: positions of
    /// its request `[n, topk]` i32, ascending, then -1.
    ///
    /// The tokens are scored in parts whose logits are within the budget.
    pub fn selected(
        &self,
        x: &Tensor,
        qr: &Tensor,
        batch: &Batch,
        cache: &LayerCache,
        choice: &Choice,
    ) -> Result<Tensor> {
        let Choice { topk, score_fn, policy, logits_budget } = *choice;
        let (stages, n) = (batch.stages(), batch.tokens());
        let queries =
            stages.run(Stage::Indexer, || self.queries(x, qr, batch, cache.index_keys()?))?;
        // Who watches sees the logits of all tokens at once.
        let budget = if batch.watch().is_there() { usize::MAX } else { logits_budget };
        let parts = logits_parts(n, self.columns(batch, cache)?, budget);
        let select = |rows: Range<usize>| {
            let score = || self.logits(&queries, rows.clone(), batch, cache, score_fn);
            let logits = stages.run(Stage::Indexer, score)?; // [rows, columns]
            let choose = || self.select(&logits, rows.clone(), batch, cache, topk, policy);
            Ok::<_, Error>(stages.run(Stage::TopK, choose)?) // [rows, topk]
        };
        if parts.len() == 1 {
            return select(0..n);
        }
        let selected = x.device().empty(&[n, topk], DType::I32)?; // [n, topk]
        for rows in parts {
            place_indices(&select(rows.clone())?, &selected.narrow(0, rows.start, rows.len())?)?;
        }
        Ok(selected)
    }

    /// What the new tokens ask with: `x` `[n, hidden]`, `qr` `[n, q_lora_rank]`, of keys that are kept as `keys` are.
    pub fn queries(
        &self,
        x: &Tensor,
        qr: &Tensor,
        batch: &Batch,
        keys: &IndexCache,
    ) -> Result<Queries> {
        let (n, Heads { n: heads, dim }, watch) = (batch.tokens(), self.heads, batch.watch());
        let q = self.wq_b.forward(qr)?; // [n, H · D]
        let q = self.turn(&q, heads, batch)?.reshape(&[n, heads, dim])?; // [n, H, D]
        let q = watch.show("index.q", q)?; // [n, H, D]
        // The demo computes these in f32, and so does the product, rounding only its inputs.
        let w = self.weights_proj.forward_f32(x)?; // [n, H]
        let (q, q_scale) = match keys {
            IndexCache::Paged(_) => {
                let q8 = act_quant(&q.reshape(&[n * heads, dim])?, self.scale_fmt)?; // [n · H, D], [n · H, 1]
                let codes = watch.show("index.q_codes", q8.codes)?; // [n · H, D]
                (codes, watch.show("index.q_scale", q8.scale.reshape(&[n, heads])?)?) // [n, H]
            }
            IndexCache::Rows { ones, .. } => {
                (q, ones.narrow(0, 0, n * heads)?.reshape(&[n, heads])?)
            }
        };
        let weights = fold_scales(&w, &q_scale, self.scale)?; // [n, H]
        let weights = watch.show("index.weights", weights)?; // [n, H]
        Ok(Queries { q: q.reshape(&[n, heads, dim])?, weights })
    }

    /// Logits of the new tokens `rows`, `[rows, columns]` f32. Where the keys are paged, columns are positions in each
    /// token's own request; where they are rows, columns are rows of the step's table ([`Batch`]).
    pub fn logits(
        &self,
        queries: &Queries,
        rows: Range<usize>,
        batch: &Batch,
        cache: &LayerCache,
        score_fn: ScoreFn,
    ) -> Result<Tensor> {
        let (first, n) = (rows.start, rows.len());
        let q = queries.q.narrow(0, first, n)?; // [rows, H, D]
        let w = queries.weights.narrow(0, first, n)?; // [rows, H]
        let logits = match cache.index_keys()? {
            IndexCache::Paged(pages) => {
                let Heads { n: heads, dim } = self.heads;
                // A chunk is one request with several new tokens, a batch requests with one each.
                let (requests, block_table) = match batch.requests() {
                    1 => (1, batch.block_table().clone()),
                    _ => (n, batch.block_table().narrow(0, first, n)?),
                };
                let q = q.reshape(&[requests, n / requests, heads, dim])?;
                let longest = batch.positions()[rows.clone()].iter().max().map_or(0, |p| p + 1);
                let keys = IndexKeys::Paged {
                    cache: pages,
                    page_size: cache.page_size(),
                    block_table: &block_table,
                    max_context: longest,
                };
                let (ks, ke) = of_rows(&batch.seen_positions(), &rows)?;
                let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
                logits(&q, &w, &keys, &seen, score_fn)? // [rows, longest]
            }
            IndexCache::Rows { keys, ones } => {
                let k = embedding(keys, batch.table_slots())?; // [table rows, D]
                let scale = ones.narrow(0, 0, batch.rows())?; // [table rows]
                let keys = IndexKeys::Rows { k: &k, k_scale: &scale };
                let (ks, ke) = of_rows(&batch.seen_rows(), &rows)?;
                let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
                logits(&q, &w, &keys, &seen, score_fn)? // [rows, table rows]
            }
        };
        batch.watch().show("index.scores", logits)
    }

    /// The keys that each of the tokens `rows` attends to: the `topk` best columns of the logits, as positions of its
    /// request `[rows, topk]` i32, ascending, then -1.
    fn select(
        &self,
        logits: &Tensor,
        rows: Range<usize>,
        batch: &Batch,
        cache: &LayerCache,
        topk: usize,
        policy: Policy,
    ) -> dsa_kernels::Result<Tensor> {
        let of_table = matches!(cache.index_keys()?, IndexCache::Rows { .. });
        let seen = if of_table { batch.seen_rows() } else { batch.seen_positions() };
        let (ks, ke) = of_rows(&seen, &rows)?;
        let chosen = top_k(logits, &KeyRange { ks: &ks, ke: &ke }, topk, policy)?; // [rows, topk]
        // Columns of paged keys are positions. Those of rows are rows of the table, where one request's are positions
        // too.
        if !of_table || batch.requests() == 1 {
            return Ok(chosen);
        }
        shift_indices(&chosen, &batch.back().narrow(0, rows.start, rows.len())?)
    }

    /// Columns of the logits of a step.
    fn columns(&self, batch: &Batch, cache: &LayerCache) -> dsa_kernels::Result<usize> {
        Ok(match cache.index_keys()? {
            IndexCache::Paged(_) => batch.longest(),
            IndexCache::Rows { .. } => batch.rows(),
        })
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
