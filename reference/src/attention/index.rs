//! The indexer's stages, from its weights to the keys it selects.
//!
//! Source: `Indexer` of the DeepSeek-V3.2-Exp inference demo (November 2025).
use super::rope_at;
use crate::arithmetic::Arithmetic;
use crate::attention_layer::AttentionConfig;
use crate::attention_layer::heads::split_heads;
use crate::error::{Result, check_shape, check_value};
use crate::hadamard::hadamard;
use crate::indexer::{ScoreFn, indexer_logits};
use crate::linear::linear;
use crate::norm::layer_norm;
use crate::quant::{act_quant, e4m3_decode};
use crate::top_k::{Policy, top_k};
use crate::weight::Weight;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};

/// eps of the LayerNorm; no configuration names it.
const K_NORM_EPS: f64 = 1e-6;

/// Weights of the indexer, `self_attn.indexer.*`.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexerWeights {
    /// `[H · D, q_lora_rank]`.
    pub wq_b: Weight,
    /// `[D, hidden_size]`.
    pub wk: Weight,
    /// `[D]`.
    pub k_norm_weight: Array1<f32>,
    /// `[D]`.
    pub k_norm_bias: Array1<f32>,
    /// `[H, hidden_size]`; f32 in every arithmetic.
    pub weights_proj: Array2<f32>,
}

/// The queries `[s, H, D]` before they go to 8 bits; `qr` `[s, q_lora_rank]`, tokens at `start ..`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together;
/// [`Error::Value`](crate::Error::Value) if D is less than `qk_rope_head_dim`, or no power of two
/// where the Hadamard transform is asked for.
pub fn index_queries(
    qr: ArrayView2<f32>,
    start: usize,
    config: &AttentionConfig,
    weights: &IndexerWeights,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (heads, d) = (config.index_n_heads, config.index_head_dim);
    let q = weights.wq_b.linear("indexer.wq_b", qr, heads.saturating_mul(d), arithmetic)?; // [s, H · D]
    turn_and_spread(split_heads(q, heads, d), start, config, arithmetic)
}

/// The keys `[s, D]` before they go to 8 bits; `x` `[s, hidden_size]`, tokens at `start ..`.
///
/// The norm is a LayerNorm, with mean and bias.
///
/// # Errors
/// As [`index_queries`].
pub fn index_keys(
    x: ArrayView2<f32>,
    start: usize,
    config: &AttentionConfig,
    weights: &IndexerWeights,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let k = weights.wk.linear("indexer.wk", x, config.index_head_dim, arithmetic)?; // [s, D]
    let (weight, bias) = (weights.k_norm_weight.view(), weights.k_norm_bias.view()); // [D], [D]
    let k = arithmetic.rounded(layer_norm(k.view(), weight, bias, K_NORM_EPS)?); // [s, D]
    let k = k.insert_axis(Axis(1)); // [s, 1, D]
    Ok(turn_and_spread(k, start, config, arithmetic)?.remove_axis(Axis(1)))
}

/// RoPE of the first `qk_rope_head_dim` dimensions (in the main attention it is the last), then the
/// Hadamard transform of all: `x` `[s, heads, D]`, result the same.
fn turn_and_spread(
    x: Array3<f32>,
    start: usize,
    config: &AttentionConfig,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (d, rope_dim) = (x.dim().2, config.qk_rope_head_dim);
    check_value("index_head_dim", d, "at least qk_rope_head_dim", d >= rope_dim)?;
    let x = rope_at(x, 0..rope_dim, start, config, arithmetic.dsa.indexer_pairing); // [s, heads, D]
    let mut x = arithmetic.rounded(x); // [s, heads, D]
    if arithmetic.dsa.hadamard {
        for head in 0..x.dim().1 {
            let spread = arithmetic.rounded(hadamard(x.index_axis(Axis(1), head))?); // [s, D]
            x.index_axis_mut(Axis(1), head).assign(&spread);
        }
    }
    Ok(x)
}

/// Queries or keys `[n, D]` in 8 bits: what the codes stand for `[n, D]`, and the scale of each row
/// `[n]`. Without [`index_fp8`](crate::attention_layer::Options::index_fp8) as they are, scale 1.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if D is 0.
pub fn index_quantise(
    x: ArrayView2<f32>,
    arithmetic: &Arithmetic,
) -> Result<(Array2<f32>, Array1<f32>)> {
    if !arithmetic.dsa.index_fp8 {
        return Ok((x.to_owned(), Array1::ones(x.nrows())));
    }
    let q = act_quant(x, x.ncols(), arithmetic.scale_fmt)?;
    Ok((q.codes.mapv(e4m3_decode), q.scale.column(0).to_owned()))
}

/// `w = (x·Wᵀ) · H^−½ · q_scale · D^−½` `[s, H]`, f32; `x` `[s, hidden_size]`, `q_scale` `[s, H]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
pub fn index_weights(
    x: ArrayView2<f32>,
    q_scale: ArrayView2<f32>,
    config: &AttentionConfig,
    weights: &IndexerWeights,
) -> Result<Array2<f32>> {
    let (heads, d) = (config.index_n_heads, config.index_head_dim);
    check_shape("indexer.weights_proj", weights.weights_proj.shape(), &[heads, x.ncols()])?;
    check_shape("q_scale", q_scale.shape(), &[x.nrows(), heads])?;
    let scale = ((heads as f64).sqrt().recip() * (d as f64).sqrt().recip()) as f32;
    Ok(linear(x, weights.weights_proj.view()) * q_scale * scale) // [s, H]
}

/// Scores `[s, s_kv]` of the keys up to each query, −inf behind; `q` `[s, H, D]` and `k` `[s_kv, D]`
/// without scales, `k_scale` `[s_kv]`, `w` `[s, H]`. The queries are the tokens at `start ..`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
pub fn index_scores(
    q: ArrayView3<f32>,
    k: ArrayView2<f32>,
    k_scale: ArrayView1<f32>,
    w: ArrayView2<f32>,
    start: usize,
) -> Result<Array2<f32>> {
    let (ks, ke) = causal(q.dim().0, start); // [s], [s]
    indexer_logits(q, k, k_scale, w, &ks, &ke, ScoreFn::ReluWeighted)
}

/// The `topk` best keys `[s, topk]` of each row of `scores` `[s, s_kv]`, the tokens at `start ..`.
pub fn index_topk(scores: ArrayView2<f32>, start: usize, topk: usize) -> Array2<i32> {
    let (ks, ke) = causal(scores.nrows(), start); // [s], [s]
    top_k(scores, &ks, &ke, topk, Policy::Fixed)
}

/// `ks = 0`, `ke = start + t + 1`: token t sees itself and what came before.
fn causal(s: usize, start: usize) -> (Vec<i32>, Vec<i32>) {
    (vec![0; s], (0..s).map(|t| (start + t + 1) as i32).collect())
}
