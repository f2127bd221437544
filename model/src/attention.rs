//! The attention of one layer on the kernels: multi-head latent attention, dense or with DSA.
//!
//! ```text
//! qr = RMSNorm(x·Wq_aᵀ)            c ‖ k_pe = x·Wkv_aᵀ, c = RMSNorm(c), k_pe = RoPE(k_pe) → cache
//! q_nope ‖ q_pe = qr·Wq_bᵀ         q_pe = RoPE(q_pe)
//!
//! expanded: k_nope ‖ v = c·Wkv_bᵀ  attention of q_nope ‖ q_pe to k_nope ‖ k_pe, values v
//! absorbed: q' = q_nope·W_UK       attention of q' ‖ q_pe to c ‖ k_pe, values c; o = o'·W_UV
//! ```
//!
//! | | prefill | decode |
//! |---|---|---|
//! | [`Mode::Dense`] | expanded, all keys | absorbed, all keys |
//! | [`Mode::Sparse`] | absorbed, the keys the indexer selects | the same |
//!
//! The mode is the one switch: projections, cache and rounding are the same code in both. Keys
//! always come from the cache, so a prompt may come in chunks of any length.
//!
//! Source: `MLA` and `Indexer` of the DeepSeek-V3.2-Exp inference demo (November 2025), in the forms
//! of its production kernels. Linears multiply weights dequantised to the layer's type; the demo
//! also rounds their inputs to fp8. Every intermediate is rounded to the layer's type.
//!
//! ```text
//! let layer = Attention::new(&device, &config, &layers.at(0).at("self_attn"), DType::Bf16)?;
//! let mut cache = Cache::new(&device, &config, size, DType::Bf16, KvFormat::Elements)?;
//! let y = layer.forward(&x, &mut cache, 0, 0, Mode::Sparse, &mut Stages::new())?;    // a prompt
//! let y = layer.decode(&x, &mut cache, &[n], Mode::Sparse, &mut Stages::new())?;     // a token
//! ```

use crate::cache::Cache;
use crate::config::Config;
use crate::error::{Error, Result};
use dsa_kernels::attention::AttentionArgs;
use dsa_kernels::dense_attention::{dense_mha, dense_mla};
use dsa_kernels::indexer::ScoreFn;
use dsa_kernels::norm::{rms_norm, rms_norm_into};
use dsa_kernels::quant::{ScaleFmt, round_trip};
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::sparse_attention::{sparse_mla, sparse_mla_paged};
use dsa_kernels::top_k::Policy;
use dsa_kernels::{DType, Device, Tensor};
use heads::{Heads, KvB, linear, table_rows};
use indexer::Indexer;
use step::{Places, Step};

pub use stages::{Stage, Stages};
pub use step::Phase;
pub use weights::{random_weights, read_weights};

mod build;
mod heads;
mod indexer;
mod stages;
pub(crate) mod step;
#[cfg(test)]
mod tests;
mod weights;

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All up to its own position: DeepSeek-V3.1.
    Dense,
    /// The `index_topk` that the indexer selects among them: DeepSeek-V3.2.
    Sparse,
}

/// The weights of one layer's attention on a device. Matrices are `[1, out, in]`.
#[derive(Clone)]
pub struct Attention {
    q_a_proj: Tensor,           // [1, q_lora_rank, hidden]
    q_a_layernorm: Tensor,      // [q_lora_rank] f32
    q_b_proj: Tensor,           // [1, h · (nope + rope), q_lora_rank]
    kv_a_proj_with_mqa: Tensor, // [1, rank + rope, hidden]
    kv_a_layernorm: Tensor,     // [rank] f32
    kv_b_proj: KvB,
    o_proj: Tensor, // [1, hidden, h · v]
    indexer: Indexer,
    device: Device,
    config: Config,
    dtype: DType,
    /// How an indexer head's product becomes its share of the score.
    pub score_fn: ScoreFn,
    /// Which keys are taken by their scores.
    pub policy: Policy,
    /// Sparse prefill in the expanded form while the context is no longer than `index_topk`: all
    /// of them are selected then. Off by default.
    pub expand_short_prefill: bool,
}

/// How the scales of rounded activations are rounded.
pub(crate) fn scale_fmt(config: &Config) -> ScaleFmt {
    if config.ue8m0() { ScaleFmt::Ue8m0 } else { ScaleFmt::Plain }
}

/// Which values rotate together.
fn pairing(interleaved: bool) -> Pairing {
    if interleaved { Pairing::Interleaved } else { Pairing::HalfSplit }
}

/// What a step computed, for those who compare.
pub(crate) struct Trace {
    /// `[n, hidden]`.
    pub hidden: Tensor,
    /// `[n, h, nope + rope]` expanded, `[n, h, rank + rope]` absorbed.
    pub q: Tensor,
    /// Keys and values of each head, if expanded: `[rows, h, nope + rope]`, `[rows, h, v]`.
    pub expanded: Option<(Tensor, Tensor)>,
    /// Rows of the step's table that were selected, `[n, index_topk]` i32.
    pub indices: Option<Tensor>,
    /// What the attention kernel returned.
    pub attention: dsa_kernels::attention::Attention,
}

impl Attention {
    /// The type of the weights, of the input and of the output.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The next `s` tokens of one request: a prompt, a chunk of one, or (s = 1) a decoded token.
    ///
    /// - `x`: `[s, hidden]` of the layer's type, contiguous: the hidden states after
    ///   `input_layernorm`;
    /// - `cache`: made for this layer's configuration and type; its `request` must hold at least
    ///   `start` tokens, and what it holds from there on is replaced;
    /// - `start`: position of the first token;
    /// - returns `[s, hidden]`: what is added to the residual.
    ///
    /// # Errors
    /// [`Error::Argument`] for positions that do not fit the cache, for a step whose tensors would
    /// have 2^31 rows or more, or in sparse mode if earlier tokens have no index keys; [`Error::Kernel`] for another shape or type, or if a kernel fails.
    pub fn forward(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        request: usize,
        start: usize,
        mode: Mode,
        stages: &mut Stages,
    ) -> Result<Tensor> {
        let step = Step::chunk(cache, request, start, self.tokens(x)?)?;
        Ok(self.step(x, &step, cache, mode, stages)?.hidden)
    }

    /// The next token of each of the first b requests.
    ///
    /// - `x`: `[b, hidden]`, row i of request i; `positions[i]`: where that token stands;
    /// - otherwise as [`Attention::forward`].
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn decode(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        positions: &[usize],
        mode: Mode,
        stages: &mut Stages,
    ) -> Result<Tensor> {
        let step = Step::batch(cache, positions, self.tokens(x)?)?;
        Ok(self.step(x, &step, cache, mode, stages)?.hidden)
    }

    /// One step: the algorithm.
    pub(crate) fn step(
        &self,
        x: &Tensor,
        step: &Step,
        cache: &mut Cache,
        mode: Mode,
        stages: &mut Stages,
    ) -> Result<Trace> {
        let sparse = mode == Mode::Sparse;
        cache.check(step, sparse)?;
        let at = &Places::upload(&self.device, step, cache)?;
        let device = &self.device;
        let topk = self.config.index_topk;
        let all_kept = self.expand_short_prefill && step.longest() <= topk;
        let expanded = step.phase == Phase::Prefill && (!sparse || all_kept);
        step.check_sizes(&self.config, cache.context(step).1, sparse, expanded)?;

        let held = &*cache;
        let (qr, q) =
            stages.run(Stage::Projections, || self.project(x, expanded, step, at, held))?;
        let mut indices = None;
        if sparse {
            let logits = stages.run(Stage::Indexer, || {
                let k = self.indexer.keys(device, x, at, held)?; // [n, D]
                held.store_index_keys(&k, at)?;
                if expanded {
                    return Ok(None);
                }
                self.indexer.logits(device, x, &qr, (step, at), held, self.score_fn).map(Some)
            })?;
            if let Some(logits) = logits {
                let chosen = stages.run(Stage::TopK, || {
                    let chosen =
                        self.indexer.select(device, &logits, at, held, topk, self.policy)?;
                    table_rows(device, chosen, step, held, at)
                })?; // [n, topk]
                indices = Some(chosen);
            }
        }
        let (q, o, expanded, attention) = if expanded {
            let (k, v) = stages
                .run(Stage::Expansion, || self.kv_b_proj.expand(device, &held.latents(step)?))?; // [rows, h, nope + rope], [rows, h, v]
            let attention = stages.run(Stage::Attention, || {
                dense_mha(device, &q, &k, &v, &at.first, &at.last, self.scale())
            })?; // [n, h, v]
            (q, attention.out.clone(), Some((k, v)), attention)
        } else {
            let attention = stages
                .run(Stage::Attention, || self.attend(&q, indices.as_ref(), step, at, held))?; // [n, h, rank]
            let o =
                stages.run(Stage::Projections, || self.kv_b_proj.values(device, &attention.out))?; // [n, h, v]
            (q, o, None, attention)
        };
        let hidden = stages.run(Stage::Projections, || {
            let o = o.reshape(&[step.tokens(), o.shape()[1] * o.shape()[2]])?; // [n, h · v]
            linear(device, &o, &self.o_proj, self.dtype) // [n, hidden]
        })?;
        cache.advance(step, sparse);
        Ok(Trace { hidden, q, expanded, indices, attention })
    }

    /// qr `[n, q_lora_rank]`, and q with position: `[n, h, nope + rope]` expanded, `[n, h, rank +
    /// rope]` absorbed. c and k_pe go to the cache.
    fn project(
        &self,
        x: &Tensor,
        expanded: bool,
        step: &Step,
        at: &Places,
        cache: &Cache,
    ) -> dsa_kernels::Result<(Tensor, Tensor)> {
        let (device, c, n) = (&self.device, &self.config, step.tokens());
        let (rank, rope_dim, nope) = (c.kv_lora_rank, c.qk_rope_head_dim, c.qk_nope_head_dim);
        let (cos, sin) = cache.cos_sin();
        let eps = c.rms_norm_eps as f32;
        let turn = |from: &Tensor, to: &Tensor| {
            rope(device, from, cos, sin, &at.positions, to, pairing(c.rope_interleaved))
        };

        let qr = linear(device, x, &self.q_a_proj, self.dtype)?; // [n, q_lora_rank]
        let qr = rms_norm(device, &qr, &self.q_a_layernorm, eps)?; // [n, q_lora_rank]
        let q = linear(device, &qr, &self.q_b_proj, self.dtype)?; // [n, h · (nope + rope)]
        let q = q.reshape(&[n, c.num_attention_heads, nope + rope_dim])?;
        let q_pe = q.narrow(2, nope, rope_dim)?; // [n, h, rope]
        let q = if expanded { q } else { self.kv_b_proj.absorb(device, &q)? };
        turn(&q_pe, &q.narrow(2, q.shape()[2] - rope_dim, rope_dim)?)?;

        let kv_a = linear(device, x, &self.kv_a_proj_with_mqa, self.dtype)?; // [n, rank + rope]
        let kv = device.empty(&[n, rank + rope_dim], self.dtype)?; // [n, rank + rope]
        let latent = kv.narrow(1, 0, rank)?; // [n, rank]
        rms_norm_into(device, &kv_a.narrow(1, 0, rank)?, &self.kv_a_layernorm, &latent, eps)?;
        if c.attention_options.kv_fp8 {
            round_trip(device, &latent, &latent, scale_fmt(c))?;
        }
        let k_pe = |row: &Tensor| {
            row.reshape(&[n, 1, rank + rope_dim])?.narrow(2, rank, rope_dim) // [n, 1, rope]
        };
        turn(&k_pe(&kv_a)?, &k_pe(&kv)?)?;
        cache.store_latents(&kv, at)?;
        Ok((qr, q))
    }

    /// Absorbed attention of `q` `[n, h, rank + rope]` to the rows listed, or else to all that each
    /// token may see: out `[n, h, rank]`.
    fn attend(
        &self,
        q: &Tensor,
        indices: Option<&Tensor>,
        step: &Step,
        at: &Places,
        cache: &Cache,
    ) -> dsa_kernels::Result<dsa_kernels::attention::Attention> {
        let (device, d_v) = (&self.device, self.config.kv_lora_rank);
        let args = AttentionArgs { softmax_scale: self.scale(), d_v, ..Default::default() };
        let kv = cache.latents(step)?; // [rows, rank + rope]
        let records = cache.records(step)?; // [pages, page bytes]
        match (indices, records) {
            (None, _) => dense_mla(device, q, &kv, &at.first, &at.last, &args),
            (Some(indices), Some((records, record))) if step.phase == Phase::Decode => {
                let page_size = cache.page_size();
                sparse_mla_paged(device, q, &records, page_size, record, indices, &args)
            }
            (Some(indices), _) => sparse_mla(device, q, &kv, indices, &args),
        }
    }

    fn scale(&self) -> f32 {
        self.config.softmax_scale() as f32
    }

    /// The rows of x, if it is an input of this layer.
    fn tokens(&self, x: &Tensor) -> Result<usize> {
        let hidden = self.config.hidden_size;
        let right = matches!(*x.shape(), [_, width] if width == hidden)
            && x.dtype() == self.dtype
            && x.is_contiguous();
        let got = format!("{} {:?} of strides {:?}", x.dtype(), x.shape(), x.strides());
        let expected = format!("{} [s, {hidden}], contiguous", self.dtype);
        Error::check(right, "x", got, expected)?;
        Ok(x.shape()[0])
    }
}
