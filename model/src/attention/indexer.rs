//! The lightning indexer of a layer: from its input to the keys that each token attends to.

use super::step::{Places, Step};
use super::weights::Uploader;
use super::{Heads, linear, pairing, scale_fmt};
use crate::cache::{Cache, IndexKeys};
use crate::config::Config;
use crate::error::Result;
use dsa_kernels::fold_scales::fold_scales;
use dsa_kernels::hadamard::hadamard;
use dsa_kernels::indexer::{ScoreFn, indexer_logits, indexer_logits_paged};
use dsa_kernels::norm::layer_norm;
use dsa_kernels::quant::{ScaleFmt, act_quant};
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::top_k::{Policy, top_k};
use dsa_kernels::{DType, Device, Tensor};
use dsa_reference::attention_layer::IndexerWeights;

/// eps of `k_norm`, a LayerNorm; no configuration names it.
const K_NORM_EPS: f32 = 1e-6;

/// The weights `indexer.*` and their sizes. Matrices are `[1, out, in]`.
#[derive(Clone, Debug)]
pub(super) struct Indexer {
    wq_b: Tensor,          // [1, H · D, q_lora_rank]
    wk: Tensor,            // [1, D, hidden]
    k_norm_weight: Tensor, // [D] f32
    k_norm_bias: Tensor,   // [D] f32
    weights_proj: Tensor,  // [1, H, hidden]
    heads: Heads,
    rope_dim: usize,
    pairing: Pairing,
    hadamard: bool,
    scale_fmt: ScaleFmt,
    /// H^-½ · D^-½.
    scale: f32,
}

impl Indexer {
    pub fn new(to: &Uploader, c: &Config, w: &IndexerWeights) -> Result<Self> {
        let (n, dim) = (c.index_n_heads, c.index_head_dim);
        let weights_proj = [n, c.hidden_size];
        Ok(Self {
            wq_b: to.matrix("indexer.wq_b", &w.wq_b, [n * dim, c.q_lora_rank])?,
            wk: to.matrix("indexer.wk", &w.wk, [dim, c.hidden_size])?,
            k_norm_weight: to.vector("indexer.k_norm.weight", &w.k_norm_weight, dim)?,
            k_norm_bias: to.vector("indexer.k_norm.bias", &w.k_norm_bias, dim)?,
            weights_proj: to.matrix("indexer.weights_proj", &w.weights_proj, weights_proj)?,
            heads: Heads { n, dim },
            rope_dim: c.qk_rope_head_dim,
            pairing: pairing(c.indexer_rope_interleaved),
            scale_fmt: scale_fmt(c),
            hadamard: c.attention_options.hadamard,
            scale: c.index_scale() as f32,
        })
    }

    /// The new tokens' keys, for the cache: `x` `[n, hidden]` to `[n, D]`.
    pub fn keys(
        &self,
        device: &Device,
        x: &Tensor,
        at: &Places,
        cache: &Cache,
    ) -> dsa_kernels::Result<Tensor> {
        let k = linear(device, x, &self.wk, x.dtype())?; // [n, D]
        let (weight, bias) = (&self.k_norm_weight, &self.k_norm_bias);
        let k = layer_norm(device, &k, weight, bias, K_NORM_EPS)?; // [n, D]
        self.turn(device, &k, 1, at, cache) // [n, D]
    }

    /// Logits of the new tokens: `x` `[n, hidden]`, `qr` `[n, q_lora_rank]`.
    ///
    /// Returns `[n, columns]` f32. Where the keys are paged, columns are positions in each token's
    /// own request; where they are rows, columns are rows of the step's table ([`Places`]).
    pub fn logits(
        &self,
        device: &Device,
        x: &Tensor,
        qr: &Tensor,
        (step, at): (&Step, &Places),
        cache: &Cache,
        score_fn: ScoreFn,
    ) -> dsa_kernels::Result<Tensor> {
        let (n, Heads { n: heads, dim }) = (step.tokens(), self.heads);
        let q = linear(device, qr, &self.wq_b, x.dtype())?; // [n, H · D]
        let q = self.turn(device, &q, heads, at, cache)?; // [n, H · D]
        // The demo computes these in f32, and so does gemm, rounding only its inputs.
        let w = linear(device, x, &self.weights_proj, DType::F32)?; // [n, H]
        match cache.index_keys() {
            IndexKeys::Paged(pages) => {
                let q = q.reshape(&[n * heads, dim])?;
                let q8 = act_quant(device, &q, self.scale_fmt)?; // [n · H, D], [n · H, 1]
                let q_scale = q8.scale.reshape(&[n, heads])?;
                let w = fold_scales(device, &w, &q_scale, self.scale)?; // [n, H]
                // A chunk is one request with n new tokens, a batch n requests with one each.
                let next_n = n / step.requests;
                let q = q8.codes.reshape(&[step.requests, next_n, heads, dim])?;
                let table = cache.block_table(step)?; // [requests, max_pages]
                indexer_logits_paged(
                    device,
                    &q,
                    pages,
                    cache.page_size(),
                    &w,
                    &at.contexts,
                    &table,
                    step.longest(),
                    score_fn,
                ) // [n, longest]
            }
            IndexKeys::Rows { keys, ones } => {
                let q_scale = ones.narrow(0, 0, n * heads)?.reshape(&[n, heads])?;
                let w = fold_scales(device, &w, &q_scale, self.scale)?; // [n, H]
                let q = q.reshape(&[n, heads, dim])?;
                let (start, rows) = cache.context(step);
                let k = keys.narrow(0, start, rows)?; // [rows, D]
                let scale = ones.narrow(0, 0, rows)?; // [rows]
                indexer_logits(device, &q, &k, &scale, &w, &at.first, &at.last, score_fn) // [n, rows]
            }
        }
    }

    /// The `topk` best columns of the logits: `[n, topk]` i32, ascending, then -1.
    pub fn select(
        &self,
        device: &Device,
        logits: &Tensor,
        at: &Places,
        cache: &Cache,
        topk: usize,
        policy: Policy,
    ) -> dsa_kernels::Result<Tensor> {
        let (ks, ke) = match cache.index_keys() {
            IndexKeys::Paged(_) => (&at.zero, &at.seen),
            IndexKeys::Rows { .. } => (&at.first, &at.last),
        };
        top_k(device, logits, ks, ke, topk, policy) // [n, topk]
    }

    /// Gives position to the first dimensions of every head (in the main attention it is the last),
    /// and spreads outliers: `x` `[n, heads · D]` to the same shape. Changes x.
    fn turn(
        &self,
        device: &Device,
        x: &Tensor,
        heads: usize,
        at: &Places,
        cache: &Cache,
    ) -> dsa_kernels::Result<Tensor> {
        let (n, dim) = (x.shape()[0], self.heads.dim);
        let turned = x.reshape(&[n, heads, dim])?.narrow(2, 0, self.rope_dim)?; // [n, heads, rope]
        let (cos, sin) = cache.cos_sin();
        rope(device, &turned, cos, sin, &at.positions, &turned, self.pairing)?;
        if !self.hadamard {
            return Ok(x.clone());
        }
        let spread = hadamard(device, &x.reshape(&[n * heads, dim])?)?; // [n · heads, D]
        spread.reshape(&[n, heads * dim])
    }
}
