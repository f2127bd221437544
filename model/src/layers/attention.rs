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
//! of its production kernels. Linears multiply weights dequantised to the layer's type, or in fp8
//! as they are stored, with their inputs rounded to it ([`Precision`](super::Precision)). Every intermediate is rounded to the layer's type.
//!
//! ```text
//! let layer = Attention::new(&device, &config, &layers.at(0).at("self_attn"), DType::Bf16)?;
//! let mut cache = Cache::new(&device, &config, size, DType::Bf16, KvFormat::Elements)?;
//! let batch = Batch::chunk(&cache, 0, 0, n, Mode::Sparse)?;          // a prompt of n tokens
//! let y = layer.forward(&x, &batch, cache.layer(0)?)?;
//! cache.advance(&batch);
//! let batch = Batch::decode(&cache, &[n], Mode::Sparse)?;            // the next token
//! ```

use super::indexer::{Choice, Indexer};
use super::kv_b::KvB;
use super::limits::check_rows;
use super::linear::{Linear, Loader, Precision, check_dtype};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::run::{Batch, Execution, LayerCache, Mode, Phase, Stage};
use crate::weights::Weights;
use dsa_kernels::attention::AttentionArgs;
use dsa_kernels::cache_read::slots_of_keys;
use dsa_kernels::dense_attention::dense_mha;
use dsa_kernels::indexer::ScoreFn;
use dsa_kernels::keys::Keys;
use dsa_kernels::norm::{rms_norm, rms_norm_into};
use dsa_kernels::quant::round_trip;
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::sparse_attention::mla;
use dsa_kernels::top_k::Policy;
use dsa_kernels::{DType, Device, Tensor};
mod select;

/// The attention of one layer: its weights on a device.
#[derive(Clone)]
pub struct Attention {
    q_a_proj: Linear,           // [q_lora_rank, hidden]
    q_a_layernorm: Tensor,      // [q_lora_rank] f32
    q_b_proj: Linear,           // [h · (nope + rope), q_lora_rank]
    kv_a_proj_with_mqa: Linear, // [rank + rope, hidden]
    kv_a_layernorm: Tensor,     // [rank] f32
    kv_b_proj: KvB,
    o_proj: Linear, // [hidden, h · v]
    /// `None`: the keys are those that the last layer before it selected.
    indexer: Option<Indexer>,
    device: Device,
    config: Config,
    dtype: DType,
    /// How an indexer head's product becomes its share of the score.
    pub score_fn: ScoreFn,
    /// Which keys are taken by their scores.
    pub policy: Policy,
    /// How a step is computed.
    pub execution: Execution,
}

/// Every tensor of the layer, below `self_attn`.
const READ: [&str; 12] = [
    "q_a_proj.weight",
    "q_a_layernorm.weight",
    "q_b_proj.weight",
    "kv_a_proj_with_mqa.weight",
    "kv_a_layernorm.weight",
    "kv_b_proj.weight",
    "o_proj.weight",
    "indexer.wq_b.weight",
    "indexer.wk.weight",
    "indexer.k_norm.weight",
    "indexer.k_norm.bias",
    "indexer.weights_proj.weight",
];

/// Parts that the keys of a token are summed in, each by a program of its own, where a row may not depend on its
/// company: a number that no number of rows changes.
///
/// Lists are as long in a prompt, whose rows keep every core busy, as in decoding: more parts would cost it a write and a read.
const LISTED_PARTS: usize = 1;
/// Ranges are of decoded tokens alone, of which there are few, and of any length: a prompt has the expanded form.
const SEEN_PARTS: usize = 32;

/// Which values rotate together.
pub(super) fn pairing(interleaved: bool) -> Pairing {
    if interleaved { Pairing::Interleaved } else { Pairing::HalfSplit }
}

/// What a step computed, for those who compare.
pub struct Trace {
    /// `[n, hidden]`.
    pub hidden: Tensor,
    /// `[n, h, nope + rope]` expanded, `[n, h, rank + rope]` absorbed.
    pub q: Tensor,
    /// Keys and values of each head, if expanded: `[rows, h, nope + rope]`, `[rows, h, v]`.
    pub expanded: Option<(Tensor, Tensor)>,
    /// Positions of each token's request that were attended to, `[n, index_topk]` i32: those that the layer selected, or the
    /// layer whose keys it shares.
    pub indices: Option<Tensor>,
    /// What the attention kernel returned.
    pub attention: dsa_kernels::attention::AttentionOut,
}

impl Attention {
    /// The layer whose weights are those of `weights` (`model.layers.N.self_attn`), in `dtype`, f32 or bf16, which
    /// is the type of its input and output too.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`] for the weights, [`Error::Unread`] for one
    /// that the layer would compute without; [`Error::Argument`] for another `dtype`; [`Error::Kernel`] if the device refuses.
    pub fn new<W: Weights>(
        device: &Device,
        config: &Config,
        weights: W,
        dtype: DType,
    ) -> Result<Self> {
        let precision = Precision::dequantised(dtype);
        Self::build(&Loader::new(device, weights, precision, config), config, true)
    }

    /// [`Attention::new`] of a layer that shares its keys: it attends to those that the last layer before it with an
    /// indexer selected in the same step. Weights of an indexer that are there nevertheless are not read.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn shared<W: Weights>(
        device: &Device,
        config: &Config,
        weights: W,
        dtype: DType,
    ) -> Result<Self> {
        let precision = Precision::dequantised(dtype);
        Self::build(&Loader::new(device, weights, precision, config), config, false)
    }

    /// The layer whose weights are where `to` is: with an indexer, or one that shares another's keys.
    pub(super) fn build<W: Weights>(to: &Loader<W>, config: &Config, full: bool) -> Result<Self> {
        let (c, device, dtype) = (config, to.device, to.precision.dtype);
        check_dtype(dtype)?;
        to.weights.refuse_others(&READ)?;
        let (hidden, heads, query) = (c.hidden_size, c.num_attention_heads, c.q_lora_rank);
        Ok(Self {
            q_a_proj: to.linear("q_a_proj", [query, hidden])?,
            q_a_layernorm: to.vector("q_a_layernorm.weight", query)?,
            q_b_proj: to.linear("q_b_proj", [heads * c.qk_head_dim(), query])?,
            kv_a_proj_with_mqa: to.linear("kv_a_proj_with_mqa", [c.latent_dim(), hidden])?,
            kv_a_layernorm: to.vector("kv_a_layernorm.weight", c.kv_lora_rank)?,
            kv_b_proj: KvB::new(to, c)?,
            o_proj: to.linear("o_proj", [hidden, heads * c.v_head_dim])?,
            indexer: full.then(|| Indexer::new(&to.at("indexer"), c)).transpose()?,
            device: device.clone(),
            config: c.clone(),
            dtype,
            score_fn: ScoreFn::default(),
            policy: Policy::default(),
            execution: Execution::default(),
        })
    }

    /// The type of the weights, of the input and of the output.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The configuration it was made for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[cfg(test)]
    pub(super) fn indexer(&self) -> Option<&Indexer> {
        self.indexer.as_ref()
    }

    /// A step: what is added to the residual, `[n, hidden]`.
    ///
    /// - `x`: `[n, hidden]` of the layer's type, contiguous: the hidden states of the batch's n tokens after
    ///   `input_layernorm`;
    /// - `cache`: this layer's, of the [`Cache`](crate::run::Cache) that the batch was made for. What it holds at
    ///   the tokens' positions is replaced.
    ///
    /// # Errors
    /// [`Error::Argument`] if x or the cache is not the batch's; [`Error::Kernel`] if a kernel refuses or fails.
    pub fn forward(&self, x: &Tensor, batch: &Batch, cache: &mut LayerCache) -> Result<Tensor> {
        Ok(self.trace(x, batch, cache)?.hidden)
    }

    /// [`Attention::forward`], with what it computed on the way.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn trace(&self, x: &Tensor, batch: &Batch, cache: &mut LayerCache) -> Result<Trace> {
        self.run(x, batch, cache, None)
    }

    /// [`Attention::trace`] of a sparse step that attends to `keys`, positions of each token's request `[n, topk]` i32 as the
    /// indexer gives them, whatever the indexer would select: for comparisons in which a selection that rounding
    /// decides is no error of attention.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn trace_with_keys(
        &self,
        x: &Tensor,
        batch: &Batch,
        cache: &mut LayerCache,
        keys: &Tensor,
    ) -> Result<Trace> {
        self.run(x, batch, cache, Some(keys))
    }

    fn run(
        &self,
        x: &Tensor,
        batch: &Batch,
        cache: &mut LayerCache,
        keys: Option<&Tensor>,
    ) -> Result<Trace> {
        let sparse = batch.mode() == Mode::Sparse;
        let topk = self.config.index_topk;
        let all_kept = self.execution.expand_short_prefill && batch.longest() <= topk;
        let expanded = batch.phase() == Phase::Prefill && (!sparse || all_kept);
        self.check(x, batch, cache, expanded)?;

        let (stages, watch) = (batch.stages(), batch.watch());
        let (qr, q) = stages.run(Stage::Projections, || self.project(x, expanded, batch, cache))?;
        let mut indices = None;
        if let (true, Some(indexer)) = (sparse, &self.indexer) {
            stages.run(Stage::Indexer, || {
                let k = indexer.keys(x, batch)?; // [n, D]
                cache.store_index_keys(&k, batch)
            })?;
            if !expanded {
                let selected = indexer.selected(x, &qr, batch, cache, &self.choice())?; // [n, topk]
                let selected = keys.cloned().unwrap_or(selected);
                let selected = watch.show("index.topk", selected)?; // [n, topk]
                batch.select(&selected);
                indices = Some(selected);
            }
        } else if sparse && !expanded {
            indices = keys.cloned().or_else(|| batch.selected());
            let none = "none: no layer before it selected any in this step";
            Error::check(indices.is_some(), "the keys of a shared layer", none, "selected ones")?;
            indices = indices.map(|keys| watch.show("index.topk", keys)).transpose()?; // [n, topk]
        }
        let (q, o, expanded, attention) = if expanded {
            let (k, v) = stages
                .run(Stage::Expansion, || self.kv_b_proj.expand(&cache.latents(batch)?, batch))?; // [rows, h, nope + rope], [rows, h, v]
            let attend = || dense_mha(&q, &k, &v, &batch.seen_rows(), self.scale());
            let attention = stages.run(Stage::Attention, attend)?; // [n, h, v]
            (q, attention.out.clone(), Some((k, v)), attention)
        } else {
            let q = watch.show("mla.q", q)?; // [n, h, rank + rope]
            let attention =
                stages.run(Stage::Attention, || self.attend(&q, indices.as_ref(), batch, cache))?; // [n, h, rank]
            let o = stages.run(Stage::Projections, || self.kv_b_proj.values(&attention.out))?; // [n, h, v]
            (q, o, None, attention)
        };
        watch.show("mla.lse", attention.lse.clone())?; // [n, h]
        let o = watch.show("mla.o", o)?; // [n, h, v]
        let hidden = stages.run(Stage::Projections, || {
            let o = o.reshape(&[batch.tokens(), o.shape()[1] * o.shape()[2]])?; // [n, h · v]
            self.o_proj.forward(&o) // [n, hidden]
        })?;
        let hidden = watch.show("mla.out", hidden)?; // [n, hidden]
        Ok(Trace { hidden, q, expanded, indices, attention })
    }

    /// qr `[n, q_lora_rank]`, and q with position: `[n, h, nope + rope]` expanded, `[n, h, rank +
    /// rope]` absorbed. c and k_pe go to the cache.
    fn project(
        &self,
        x: &Tensor,
        expanded: bool,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<(Tensor, Tensor)> {
        let (device, c, n) = (&self.device, &self.config, batch.tokens());
        let watch = batch.watch();
        let (rank, rope_dim, nope) = (c.kv_lora_rank, c.qk_rope_head_dim, c.qk_nope_head_dim);
        let (rotary, eps) = (batch.rotary(), c.latent_norm_eps as f32);
        let turn = |from: &Tensor, to: &Tensor| {
            let pairing = pairing(c.rope_interleaved);
            rope(from, &rotary.cos, &rotary.sin, batch.at(), to, pairing)
        };

        let qr = self.q_a_proj.forward(x)?; // [n, q_lora_rank]
        let qr = rms_norm(&qr, &self.q_a_layernorm, eps)?; // [n, q_lora_rank]
        let qr = watch.show("mla.qr", qr)?; // [n, q_lora_rank]
        let q = self.q_b_proj.forward(&qr)?; // [n, h · (nope + rope)]
        let q = q.reshape(&[n, c.num_attention_heads, nope + rope_dim])?;
        watch.show_part("mla.q_nope", &q.narrow(2, 0, nope)?)?; // [n, h, nope]
        let q_pe = q.narrow(2, nope, rope_dim)?; // [n, h, rope]
        let q = if expanded { q } else { self.kv_b_proj.absorb(&q)? };
        let turned = q.narrow(2, q.shape()[2] - rope_dim, rope_dim)?; // [n, h, rope]
        turn(&q_pe, &turned)?;
        watch.show_part("mla.q_pe", &turned)?;

        let kv_a = self.kv_a_proj_with_mqa.forward(x)?; // [n, rank + rope]
        let kv = device.empty(&[n, rank + rope_dim], self.dtype)?; // [n, rank + rope]
        let latent = kv.narrow(1, 0, rank)?; // [n, rank]
        rms_norm_into(&kv_a.narrow(1, 0, rank)?, &self.kv_a_layernorm, &latent, eps)?;
        watch.show_part("mla.c_before", &latent)?;
        if c.attention_options.kv_fp8 {
            round_trip(&latent, &latent, c.scale_fmt())?;
        }
        watch.show_part("mla.c", &latent)?;
        let k_pe = |row: &Tensor| {
            row.reshape(&[n, 1, rank + rope_dim])?.narrow(2, rank, rope_dim) // [n, 1, rope]
        };
        turn(&k_pe(&kv_a)?, &k_pe(&kv)?)?;
        watch.show_part("mla.k_pe", &k_pe(&kv)?)?;
        cache.store_latents(&kv, batch)?;
        Ok((qr, q))
    }

    /// Absorbed attention of `q` `[n, h, rank + rope]` to the rows listed, or else to all that each
    /// token may see: out `[n, h, rank]`.
    fn attend(
        &self,
        q: &Tensor,
        indices: Option<&Tensor>,
        batch: &Batch,
        cache: &LayerCache,
    ) -> dsa_kernels::Result<dsa_kernels::attention::AttentionOut> {
        let d_v = self.config.kv_lora_rank;
        let mut args = AttentionArgs::new(self.scale(), d_v);
        if !self.execution.fast {
            args.splits = Some(if indices.is_some() { LISTED_PARTS } else { SEEN_PARTS });
        }
        // Both forms list slots of the pool. A list of all keys costs 4 bytes a key beside its row; a range would need
        // the rows of every request gathered, in every layer.
        let (kv, pages) = cache.pool();
        match indices {
            Some(indices) => {
                let (n, topk) = (batch.tokens(), indices.shape()[1]);
                let by_request = [batch.requests(), n / batch.requests(), topk];
                let indices = indices.reshape(&by_request)?;
                let table = batch.block_table();
                let slots = slots_of_keys(&indices, table, pages, cache.page_size())?;
                mla(q, &kv, &Keys::listed(&slots.reshape(&[n, topk])?), &args)
            }
            None => {
                // Decoded tokens: a row of the step's table is a request's.
                let shape = [batch.tokens(), batch.longest()];
                let indices = &batch.table_slots().reshape(&shape)?;
                let topk_length = Some(batch.seen_positions().ke);
                mla(q, &kv, &Keys::Listed { indices, topk_length }, &args)
            }
        }
    }

    fn choice(&self) -> Choice {
        Choice {
            topk: self.config.index_topk,
            score_fn: self.score_fn,
            policy: self.policy,
            logits_budget: self.execution.logits_budget,
        }
    }

    fn scale(&self) -> f32 {
        self.config.softmax_scale() as f32
    }

    /// Refuses an input or a cache that is not this layer's and the batch's, and a step whose largest tensors have
    /// more rows than the kernels can number, before anything of it is done.
    fn check(&self, x: &Tensor, batch: &Batch, cache: &LayerCache, expanded: bool) -> Result<()> {
        let (n, hidden) = (batch.tokens(), self.config.hidden_size);
        let right = *x.shape() == [n, hidden] && x.dtype() == self.dtype && x.is_contiguous();
        let got = format!("{} {:?} of strides {:?}", x.dtype(), x.shape(), x.strides());
        let expected = format!("{} [{n}, {hidden}], contiguous", self.dtype);
        Error::check(right, "x", got, expected)?;
        let expected = (self.config.latent_dim(), self.config.index_head_dim);
        let right = cache.widths() == expected && cache.dtype() == self.dtype;
        let got = format!("{} rows of widths {:?}", cache.dtype(), cache.widths());
        Error::check(right, "cache", got, format!("{} rows of {expected:?}", self.dtype))?;
        if self.indexer.is_some() && batch.mode() == Mode::Sparse {
            cache.index_keys()?;
        }
        check_rows(&self.config, n, batch.rows(), batch.mode(), expanded)
    }
}
