//! The attention half of one layer, from its weights: multi-head latent attention with DSA.
//!
//! The input x is the hidden state after `input_layernorm`, one whole sequence at the positions
//! 0 .. s; the result is what is added to the residual. Weights are f32 (dequantised), and nothing
//! is rounded to bf16 between the steps.
//!
//! ```text
//! qr = RMSNorm(x·Wq_aᵀ)            c ‖ k_pe = x·Wkv_aᵀ, c = RMSNorm(c), k_pe = RoPE(k_pe)
//! q_nope ‖ q_pe = qr·Wq_bᵀ         q_pe = RoPE(q_pe)
//!
//! expanded:  k_nope ‖ v = c·Wkv_bᵀ     attention of q_nope ‖ q_pe to k_nope ‖ k_pe, values v
//! absorbed:  q' = q_nope·W_UK          attention of q' ‖ q_pe to c ‖ k_pe, values c; o = o'·W_UV
//! ```
//! W_UK and W_UV are the key's and the value's rows of Wkv_b. As `⟨q_nope, W_UK·c⟩` is
//! `⟨q_nope·W_UK, c⟩`, both forms are the same function. The absorbed one needs a single row a
//! token, shared by all heads, which is what makes gathering selected tokens worth while.
//!
//! Source: `MLA` and `Indexer` of the DeepSeek-V3.2-Exp inference demo (November 2025).
use crate::cache_write::KvRecord;
use crate::dense_attention::{dense_mha, dense_mla};
use crate::error::{Result, check_value};
use crate::hadamard::hadamard;
use crate::indexer::{ScoreFn, indexer_logits};
use crate::linear::{BLOCK, linear};
use crate::norm::{layer_norm, rms_norm};
use crate::quant::{act_quant, e4m3_decode};
use crate::sparse_attention::sparse_mla;
use crate::top_k::{Policy, top_k};
use heads::{causal, join, join_heads, part, rope_part, split_heads};
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, Axis, Slice};

pub(crate) mod heads;
mod weights;
pub use weights::{AttentionConfig, AttentionWeights, IndexerWeights, Options};

/// eps of the indexer's LayerNorm; no configuration names it.
const K_NORM_EPS: f64 = 1e-6;

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The `index_topk` that the indexer selects.
    Sparse,
    /// All up to its own position.
    Dense,
}

/// The keys `[s, index_topk]` that the indexer selects for each token of `x` `[s, hidden_size]`,
/// among those up to its own position.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if x or the weights do not fit the configuration;
/// [`Error::Value`](crate::Error::Value) if its sizes contradict each other, or if `index_head_dim`
/// is no power of two and the Hadamard transform is asked for.
pub fn indexer_topk(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    options: &Options,
) -> Result<Array2<i32>> {
    weights.check(x, config)?;
    let qr = query_latent(x, config, weights)?; // [s, q_lora_rank]
    let i = indexer_inputs(x, qr.view(), config, weights, options)?;
    let (q, k, k_scale, w) = (i.q.view(), i.k.view(), i.k_scale.view(), i.w.view());
    let (ks, ke) = causal(x.nrows()); // [s], [s]
    let logits = indexer_logits(q, k, k_scale, w, &ks, &ke, ScoreFn::ReluWeighted)?; // [s, s]
    let (logits, topk) = (logits.view(), config.index_topk);
    Ok(top_k(logits, &ks, &ke, topk, Policy::Fixed))
}

/// What [`indexer_logits`] takes.
struct IndexerInputs {
    /// `[s, H, D]`, without its scale.
    q: Array3<f32>,
    /// `[s, D]`, without its scale.
    k: Array2<f32>,
    /// `[s]`.
    k_scale: Array1<f32>,
    /// `(x·Wᵀ) · H^−½ · q_scale · D^−½` `[s, H]`.
    w: Array2<f32>,
}

/// Projects, turns, spreads and quantises the indexer's queries and keys.
fn indexer_inputs(
    x: ArrayView2<f32>,
    qr: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    options: &Options,
) -> Result<IndexerInputs> {
    let (s, heads, d) = (x.nrows(), config.index_n_heads, config.index_head_dim);
    let i = &weights.indexer;
    let q = split_heads(linear(qr, i.wq_b.view()), heads, d); // [s, H, D]
    let k = linear(x, i.wk.view()); // [s, D]
    let (weight, bias) = (i.k_norm_weight.view(), i.k_norm_bias.view()); // [D], [D]
    let k = layer_norm(k.view(), weight, bias, K_NORM_EPS)?; // [s, D]
    let k = k.insert_axis(Axis(1)); // [s, 1, D]
    // The first qk_rope_head_dim dimensions have position (in the main attention it is the last).
    let positions = 0..config.qk_rope_head_dim;
    let mut q = rope_part(q, positions.clone(), config, options.indexer_pairing); // [s, H, D]
    let k = rope_part(k, positions, config, options.indexer_pairing); // [s, 1, D]
    let mut k = k.remove_axis(Axis(1)); // [s, D]
    if options.hadamard {
        for head in 0..heads {
            let spread = hadamard(q.index_axis(Axis(1), head))?; // [s, D]
            q.index_axis_mut(Axis(1), head).assign(&spread);
        }
        k = hadamard(k.view())?; // [s, D]
    }
    let mut q_scale = Array2::ones((s, heads)); // [s, H]
    let mut k_scale = Array1::ones(s); // [s]
    if options.index_fp8 {
        for head in 0..heads {
            let q8 = act_quant(q.index_axis(Axis(1), head), d, options.scale_fmt)?;
            let decoded = q8.codes.mapv(e4m3_decode); // [s, D]
            q.index_axis_mut(Axis(1), head).assign(&decoded);
            q_scale.column_mut(head).assign(&q8.scale.column(0)); // [s]
        }
        let k8 = act_quant(k.view(), d, options.scale_fmt)?;
        k = k8.codes.mapv(e4m3_decode); // [s, D]
        k_scale = k8.scale.column(0).to_owned(); // [s]
    }
    let scale = ((heads as f64).sqrt().recip() * (d as f64).sqrt().recip()) as f32;
    let w = linear(x, i.weights_proj.view()) * &q_scale * scale; // [s, H]
    Ok(IndexerInputs { q, k, k_scale, w })
}

/// The layer in absorbed form: `x` `[s, hidden_size]` to `[s, hidden_size]`.
///
/// # Errors
/// As [`indexer_topk`].
pub fn attention(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    options: &Options,
    mode: Mode,
) -> Result<Array2<f32>> {
    let absorbed = Absorbed::new(x, config, weights, options)?;
    match mode {
        Mode::Sparse => {
            let indices = indexer_topk(x, config, weights, options)?; // [s, index_topk]
            absorbed.sparse(indices.view(), config, weights)
        }
        Mode::Dense => absorbed.dense(config, weights),
    }
}

/// The layer up to the attention itself: queries, and the rows that a cache holds. The attention can
/// then be asked for any keys, not only for those that the indexer selects.
#[derive(Debug, Clone, PartialEq)]
pub struct Absorbed {
    /// `[s, h, kv_lora_rank + qk_rope]`.
    pub q: Array3<f32>,
    /// `[s, kv_lora_rank + qk_rope]`.
    pub kv: Array2<f32>,
}

impl Absorbed {
    /// Of `x` `[s, hidden_size]`.
    ///
    /// # Errors
    /// As [`indexer_topk`].
    pub fn new(
        x: ArrayView2<f32>,
        config: &AttentionConfig,
        weights: &AttentionWeights,
        options: &Options,
    ) -> Result<Self> {
        weights.check(x, config)?;
        let (q, c, k_pe) = project(x, config, weights, options)?;
        let nope = config.qk_nope_head_dim;
        let q_nope = part(&q, 0..nope); // [s, h, nope]
        let q_pe = part(&q, nope..config.qk_head_dim()); // [s, h, rope]
        let q_absorbed = absorb(q_nope, config, weights); // [s, h, rank]
        let q = join(q_absorbed.view(), q_pe); // [s, h, rank + rope]
        let kv = join(c.view().insert_axis(Axis(1)), k_pe.view()); // [s, 1, rank + rope]
        Ok(Self { q, kv: kv.remove_axis(Axis(1)) })
    }

    /// The same, its rows through the fp8 records that decoding reads and back.
    pub fn through_records(&self, config: &AttentionConfig) -> Self {
        let (rank, rope_dim) = (config.kv_lora_rank, config.qk_rope_head_dim);
        let record = KvRecord { kv_lora_rank: rank, rope_dim };
        let c = self.kv.slice_axis(Axis(1), Slice::from(..rank)); // [s, rank]
        let k_pe = self.kv.slice_axis(Axis(1), Slice::from(rank..)); // [s, rope]
        let records = record.quantise_kv(c, k_pe); // [s, record bytes]
        Self { q: self.q.clone(), kv: record.dequantise_kv(records.view()) }
    }

    /// The layer's output `[n, hidden_size]` for the last n tokens, where each attends to the keys of
    /// its row of `indices` `[n, k]`.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) if n is more than there are tokens.
    pub fn sparse(
        &self,
        indices: ArrayView2<i32>,
        config: &AttentionConfig,
        weights: &AttentionWeights,
    ) -> Result<Array2<f32>> {
        let (s, n) = (self.q.dim().0, indices.nrows());
        check_value("rows of indices", n, "at most the number of tokens", n <= s)?;
        let q = self.q.slice_axis(Axis(0), Slice::from(s - n..)); // [n, h, rank + rope]
        let (tau, rank) = (config.softmax_scale(), config.kv_lora_rank);
        let latent = sparse_mla(q, self.kv.view(), indices, tau, rank, None, None)?; // [n, h, rank]
        Ok(finish(latent.out.view(), config, weights))
    }

    /// The layer's output `[s, hidden_size]`, where each token attends to all up to itself.
    ///
    /// # Errors
    /// Those of [`dense_mla`].
    pub fn dense(
        &self,
        config: &AttentionConfig,
        weights: &AttentionWeights,
    ) -> Result<Array2<f32>> {
        let (tau, rank) = (config.softmax_scale(), config.kv_lora_rank);
        let (ks, ke) = causal(self.kv.nrows()); // [s], [s]
        let latent = dense_mla(self.q.view(), self.kv.view(), &ks, &ke, tau, rank)?; // [s, h, rank]
        Ok(finish(latent.out.view(), config, weights))
    }
}

/// What the attention returned, `[n, h, kv_lora_rank]`, to the layer's output `[n, hidden_size]`.
fn finish(
    latent: ArrayView3<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Array2<f32> {
    let o = unabsorb(latent, config, weights); // [n, h, v]
    linear(join_heads(o).view(), weights.o_proj.view()) // [n, hidden_size]
}

/// The dense layer in expanded form, with keys and values of each head: `x` `[s, hidden_size]` to
/// `[s, hidden_size]`. Equal to [`attention`] with [`Mode::Dense`], up to rounding.
///
/// # Errors
/// As [`indexer_topk`].
pub fn attention_expanded(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    options: &Options,
) -> Result<Array2<f32>> {
    weights.check(x, config)?;
    let (q, c, k_pe) = project(x, config, weights, options)?;
    let (s, heads) = (x.nrows(), config.num_attention_heads);
    let kv_b = linear(c.view(), weights.kv_b_proj.view()); // [s, h · (nope + v)]
    let kv = split_heads(kv_b, heads, config.kv_b_head_dim()); // [s, h, nope + v]
    let nope = config.qk_nope_head_dim;
    let k_nope = part(&kv, 0..nope); // [s, h, nope]
    let v = part(&kv, nope..config.kv_b_head_dim()); // [s, h, v]
    let k_pe = Array3::from_shape_fn((s, heads, config.qk_rope_head_dim), |(t, _, i)| {
        k_pe[(t, 0, i)] // one for all heads
    }); // [s, h, rope]
    let k = join(k_nope, k_pe.view()); // [s, h, nope + rope]
    let (ks, ke) = causal(s); // [s], [s]
    let o = dense_mha(q.view(), k.view(), v, &ks, &ke, config.softmax_scale())?.out; // [s, h, v]
    Ok(linear(join_heads(o).view(), weights.o_proj.view()))
}

/// `qr = RMSNorm(x·Wq_aᵀ)` `[s, q_lora_rank]`: attention and indexer share it.
fn query_latent(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Result<Array2<f32>> {
    let qr = linear(x, weights.q_a_proj.view()); // [s, q_lora_rank]
    rms_norm(qr.view(), weights.q_a_layernorm.view(), config.rms_norm_eps)
}

/// q `[s, h, nope + rope]`, c `[s, kv_lora_rank]` and k_pe `[s, 1, rope]`, with position.
fn project(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    options: &Options,
) -> Result<(Array3<f32>, Array2<f32>, Array3<f32>)> {
    let (heads, head_dim) = (config.num_attention_heads, config.qk_head_dim());
    let (nope, rank) = (config.qk_nope_head_dim, config.kv_lora_rank);
    let qr = query_latent(x, config, weights)?; // [s, q_lora_rank]
    let q = split_heads(linear(qr.view(), weights.q_b_proj.view()), heads, head_dim);
    let q = rope_part(q, nope..head_dim, config, options.pairing); // [s, h, nope + rope]
    let kv_a = linear(x, weights.kv_a_proj_with_mqa.view()); // [s, rank + rope]
    let c = kv_a.slice_axis(Axis(1), Slice::from(..rank)); // [s, rank]
    let mut c = rms_norm(c, weights.kv_a_layernorm.view(), config.rms_norm_eps)?; // [s, rank]
    if options.kv_fp8 {
        c = act_quant(c.view(), BLOCK, options.scale_fmt)?.dequantise(); // [s, rank]
    }
    let k_pe = kv_a.slice_axis(Axis(1), Slice::from(rank..)); // [s, rope]
    let k_pe = k_pe.insert_axis(Axis(1)).to_owned(); // [s, 1, rope]
    let all = 0..config.qk_rope_head_dim;
    let k_pe = rope_part(k_pe, all, config, options.pairing); // [s, 1, rope]
    Ok((q, c, k_pe))
}

/// `q'[t, h] = q_nope[t, h]·W_UK[h]`: `[s, h, nope]` to `[s, h, kv_lora_rank]`.
fn absorb(
    q_nope: ArrayView3<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Array3<f32> {
    let (s, heads, nope) = q_nope.dim();
    let mut q = Array3::zeros((s, heads, config.kv_lora_rank)); // [s, h, kv_lora_rank]
    for head in 0..heads {
        let q_nope = q_nope.index_axis(Axis(1), head); // [s, nope]
        let start = head * config.kv_b_head_dim();
        let rows = Slice::from(start..start + nope); // the key's rows come first
        let w_uk = weights.kv_b_proj.slice_axis(Axis(0), rows); // [nope, kv_lora_rank]
        let absorbed = linear(q_nope, w_uk.t()); // [s, kv_lora_rank]
        q.index_axis_mut(Axis(1), head).assign(&absorbed);
    }
    q
}

/// `o[t, h] = W_UV[h]·o'[t, h]`: `[s, h, kv_lora_rank]` to `[s, h, v]`.
fn unabsorb(
    latent: ArrayView3<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Array3<f32> {
    let (s, heads, _) = latent.dim();
    let mut o = Array3::zeros((s, heads, config.v_head_dim)); // [s, h, v]
    for head in 0..heads {
        let latent = latent.index_axis(Axis(1), head); // [s, kv_lora_rank]
        let end = (head + 1) * config.kv_b_head_dim();
        let rows = Slice::from(end - config.v_head_dim..end); // the value's rows come last
        let w_uv = weights.kv_b_proj.slice_axis(Axis(0), rows); // [v, kv_lora_rank]
        let value = linear(latent, w_uv); // [s, v]
        o.index_axis_mut(Axis(1), head).assign(&value);
    }
    o
}
