//! The attention of a whole model's layer: stage by stage, in exact arithmetic or in the official
//! one, from weights as they are stored.
//!
//! [`attention_layer`](crate::attention_layer) is the same function of one sequence in f32; here a
//! stage can be given what the stage before it should have returned, the tokens may stand anywhere
//! (`start`), weights may be fp8, and a layer may attend to the keys that another one selected.
//!
//! ```text
//! qr      = RMSNorm(x·Wq_aᵀ)                    query_latent
//! q       = qr·Wq_bᵀ, its last part turned      queries
//! c, k_pe = x·Wkv_aᵀ, c = RMSNorm(c)            latents      what a cache holds, with
//! c       = e4m3 and back                       store_latent
//! keys    = the indexer's                       index
//! o       = attention of q to the keys          attend
//! out     = o·Woᵀ                               output
//! ```
//! Each result is rounded to bf16 if the [`Arithmetic`] says so.
//!
//! Source: `MLA` of the DeepSeek-V3.2-Exp inference demo (November 2025).
use crate::arithmetic::Arithmetic;
use crate::attention_layer::AttentionConfig;
use crate::attention_layer::heads::{join_heads, part, split_heads};
use crate::error::{Result, check_shape};
use crate::linear::BLOCK;
use crate::norm::rms_norm;
use crate::quant::act_quant;
use crate::rope::{Pairing, rope};
use crate::watch::Watch;
use crate::weight::Weight;
use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, Axis, Slice};
use std::ops::Range;

mod attend;
mod index;
pub use attend::{Form, attend};
pub use index::{
    IndexerWeights, index_keys, index_quantise, index_queries, index_scores, index_topk,
    index_weights,
};

/// Weights of one layer's attention, `self_attn.*`. Shapes as in
/// [`attention_layer::AttentionWeights`](crate::attention_layer::AttentionWeights).
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionWeights {
    /// `[q_lora_rank, hidden_size]`.
    pub q_a_proj: Weight,
    /// `[q_lora_rank]`.
    pub q_a_layernorm: Array1<f32>,
    /// `[h · (qk_nope + qk_rope), q_lora_rank]`.
    pub q_b_proj: Weight,
    /// `[kv_lora_rank + qk_rope, hidden_size]`.
    pub kv_a_proj_with_mqa: Weight,
    /// `[kv_lora_rank]`.
    pub kv_a_layernorm: Array1<f32>,
    /// `[h · (qk_nope + v), kv_lora_rank]`.
    pub kv_b_proj: Weight,
    /// `[hidden_size, h · v]`.
    pub o_proj: Weight,
    /// `None` in a layer that attends to the keys of the layer before it.
    pub indexer: Option<IndexerWeights>,
}

/// `qr` `[s, q_lora_rank]` of `x` `[s, hidden_size]`: attention and indexer share it.
///
/// The eps of both latents' norms is `config.rms_norm_eps`; a model's other norms may have another.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together, as in all stages.
pub fn query_latent(
    x: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let qr = weights.q_a_proj.linear("q_a_proj", x, config.q_lora_rank, arithmetic)?; // [s, q_lora_rank]
    let qr = rms_norm(qr.view(), weights.q_a_layernorm.view(), config.rms_norm_eps)?; // [s, q_lora_rank]
    Ok(arithmetic.rounded(qr))
}

/// `q` `[s, h, qk_nope + qk_rope]` of `qr` `[s, q_lora_rank]`, the tokens at `start ..`.
///
/// # Errors
/// As [`query_latent`].
pub fn queries(
    qr: ArrayView2<f32>,
    start: usize,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (heads, head_dim) = (config.num_attention_heads, config.qk_head_dim());
    let q = weights.q_b_proj.linear("q_b_proj", qr, heads.saturating_mul(head_dim), arithmetic)?; // [s, h · (nope + rope)]
    let q = split_heads(q, heads, head_dim); // [s, h, nope + rope]
    let turned = config.qk_nope_head_dim..head_dim;
    Ok(arithmetic.rounded(rope_at(q, turned, start, config, arithmetic.dsa.pairing)))
}

/// `c` `[s, kv_lora_rank]`, before it is stored, and `k_pe` `[s, qk_rope]` of `x`
/// `[s, hidden_size]`, the tokens at `start ..`.
///
/// # Errors
/// As [`query_latent`].
pub fn latents(
    x: ArrayView2<f32>,
    start: usize,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<(Array2<f32>, Array2<f32>)> {
    let (rank, rope_dim) = (config.kv_lora_rank, config.qk_rope_head_dim);
    let kv_a = &weights.kv_a_proj_with_mqa;
    let kv_a = kv_a.linear("kv_a_proj_with_mqa", x, rank.saturating_add(rope_dim), arithmetic)?; // [s, rank + rope]
    let c = kv_a.slice_axis(Axis(1), Slice::from(..rank)); // [s, rank]
    let c = rms_norm(c, weights.kv_a_layernorm.view(), config.rms_norm_eps)?; // [s, rank]
    let k_pe = kv_a.slice_axis(Axis(1), Slice::from(rank..)); // [s, rope]
    let k_pe = k_pe.insert_axis(Axis(1)).to_owned(); // [s, 1, rope]
    let k_pe = rope_at(k_pe, 0..rope_dim, start, config, arithmetic.dsa.pairing); // [s, 1, rope]
    Ok((arithmetic.rounded(c), arithmetic.rounded(k_pe.remove_axis(Axis(1)))))
}

/// `c` `[s, kv_lora_rank]` as the cache holds it: through e4m3 and back, if
/// [`kv_fp8`](crate::attention_layer::Options::kv_fp8) says so.
///
/// # Errors
/// Those of [`act_quant`].
pub fn store_latent(c: ArrayView2<f32>, arithmetic: &Arithmetic) -> Result<Array2<f32>> {
    if !arithmetic.dsa.kv_fp8 {
        return Ok(c.to_owned());
    }
    let stored = act_quant(c, BLOCK, arithmetic.scale_fmt)?;
    Ok(arithmetic.rounded(stored.dequantise()))
}

/// The layer's output `[s, hidden_size]` of what the attention returned, `o` `[s, h, v]`.
///
/// # Errors
/// As [`query_latent`].
pub fn output(
    o: ArrayView3<f32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let o = join_heads(o.to_owned()); // [s, h · v]
    weights.o_proj.linear("o_proj", o.view(), config.hidden_size, arithmetic)
}

/// The keys `[s, index_topk]` that the indexer selects for each row of `x` `[s, hidden_size]` among
/// the tokens up to it; `qr` `[s, q_lora_rank]`.
///
/// # Errors
/// As [`query_latent`], and if `index_head_dim` is no power of two and the Hadamard transform is
/// asked for.
pub fn index(
    x: ArrayView2<f32>,
    qr: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &IndexerWeights,
    arithmetic: &Arithmetic,
    watch: &mut Watch,
) -> Result<Array2<i32>> {
    let (s, heads, d) = (x.nrows(), config.index_n_heads, config.index_head_dim);
    check_shape("qr", qr.shape(), &[s, config.q_lora_rank])?;
    let q = watch.floats("index.q", index_queries(qr, 0, config, weights, arithmetic)?)?; // [s, H, D]
    let k = watch.floats("index.k", index_keys(x, 0, config, weights, arithmetic)?)?; // [s, D]
    let q = join_rows(q); // [s · H, D]
    let (q, q_scale) = index_quantise(q.view(), arithmetic)?; // [s · H, D], [s · H]
    let (k, k_scale) = index_quantise(k.view(), arithmetic)?; // [s, D], [s]
    let q = Array3::from_shape_fn((s, heads, d), |(t, head, i)| q[(t * heads + head, i)]); // [s, H, D]
    let q_scale = Array2::from_shape_fn((s, heads), |(t, head)| q_scale[t * heads + head]); // [s, H]
    let (q, q_scale) = (watch.floats("index.q_codes", q)?, watch.floats("index.q_scale", q_scale)?);
    let (k, k_scale) = (watch.floats("index.k_codes", k)?, watch.floats("index.k_scale", k_scale)?);
    let w = index_weights(x, q_scale.view(), config, weights)?; // [s, H]
    let w = watch.floats("index.weights", w)?; // [s, H]
    let scores = index_scores(q.view(), k.view(), k_scale.view(), w.view(), 0)?; // [s, s]
    let scores = watch.floats("index.scores", scores)?; // [s, s]
    watch.integers("index.topk", index_topk(scores.view(), 0, config.index_topk)) // [s, index_topk]
}

/// `[s, h, d]` as `[s · h, d]`.
fn join_rows(x: Array3<f32>) -> Array2<f32> {
    let (s, h, d) = x.dim();
    Array2::from_shape_fn((s * h, d), |(row, i)| x[(row / h, row % h, i)])
}

/// RoPE of some dimensions of `x` `[s, heads, d]` at the positions `start ..`; the others stay.
fn rope_at(
    mut x: Array3<f32>,
    dims: Range<usize>,
    start: usize,
    config: &AttentionConfig,
    pairing: Pairing,
) -> Array3<f32> {
    let (cos, sin) = config.cos_sin(start + x.dim().0); // [start + s, rope/2] each
    let cos = cos.slice_axis(Axis(0), Slice::from(start..)); // [s, rope/2]
    let sin = sin.slice_axis(Axis(0), Slice::from(start..)); // [s, rope/2]
    let turned = rope(part(&x, dims.clone()), cos, sin, pairing); // [s, heads, rope]
    x.slice_axis_mut(Axis(2), Slice::from(dims)).assign(&turned);
    x
}
