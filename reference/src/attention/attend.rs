//! The attention itself, in each of the demo's two forms.
//!
//! ```text
//! prefill    k_nope ‖ v = round(c·Wkv_bᵀ)
//!            S = round( round(⟨q, k_nope ‖ k_pe⟩) · τ )      P = round(softmax S)      o = round(P·v)
//!
//! decode     q' = round(q_nope·W_UK)
//!            S = round( round( round⟨q', c⟩ + round⟨q_pe, k_pe⟩ ) · τ )      P = round(softmax S)
//!            o' = round(P·c)      o = round(o'·W_UV)
//! ```
//! In exact arithmetic nothing is rounded but q', k, v, o' and o, to f32, and both forms are the same
//! function. In the official one all of it is rounded to bf16. The published model multiplies c by the fp8 weight in prefill, with c quantised once more (which
//! changes nothing where scales are powers of two), and by the weight rounded to bf16 in decoding.
//! So there a token's output depends on the form, in its last bits.
//!
//! Source: `MLA.forward` of the DeepSeek-V3.2-Exp inference demo (November 2025).
use super::AttentionWeights;
use crate::arithmetic::Arithmetic;
use crate::attention_layer::AttentionConfig;
use crate::attention_layer::heads::{join, split_heads};
use crate::error::{Result, check_shape, check_value};
use crate::linear::linear;
use crate::math::{dot, key, softmax};
use crate::quant::bf16_round;
use crate::sparse_attention::row;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis, Slice};

/// In which form the demo computes a token. In exact arithmetic both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// With keys and values of each head: the tokens of a prompt.
    Prefill,
    /// Absorbed, with one latent row a key for all heads: a token by itself.
    Decode,
}

/// The attention of `q` `[n, h, qk_nope + qk_rope]` to those rows of `c` `[s, kv_lora_rank]` and
/// `k_pe` `[s, qk_rope]` that `indices` `[n, k]` names; the result is `[n, h, v]`. An index that is
/// negative or at least s is no key.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
#[allow(clippy::too_many_arguments)]
pub fn attend(
    q: ArrayView3<f32>,
    c: ArrayView2<f32>,
    k_pe: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    form: Form,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (n, s, heads) = (q.dim().0, c.nrows(), config.num_attention_heads);
    check_shape("q", q.shape(), &[n, heads, config.qk_head_dim()])?;
    check_shape("c", c.shape(), &[s, config.kv_lora_rank])?;
    check_shape("k_pe", k_pe.shape(), &[s, config.qk_rope_head_dim])?;
    check_shape("indices", indices.shape(), &[n, indices.ncols()])?;
    let kv_b_rows = heads.saturating_mul(config.kv_b_head_dim());
    check_shape("kv_b_proj", weights.kv_b_proj.shape(), &[kv_b_rows, config.kv_lora_rank])?;
    check_value("num_attention_heads", heads, "at least 1", heads > 0)?;
    match form {
        Form::Prefill => prefill(q, c, k_pe, indices, config, weights, arithmetic),
        Form::Decode => decode(q, c, k_pe, indices, config, weights, arithmetic),
    }
}

fn prefill(
    q: ArrayView3<f32>,
    c: ArrayView2<f32>,
    k_pe: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (s, heads) = (c.nrows(), config.num_attention_heads);
    let (nope, rope_dim) = (config.qk_nope_head_dim, config.qk_rope_head_dim);
    let rows = heads * config.kv_b_head_dim();
    let kv = weights.kv_b_proj.linear("kv_b_proj", c, rows, arithmetic)?; // [s, h · (nope + v)]
    let kv = split_heads(kv, heads, config.kv_b_head_dim()); // [s, h, nope + v]
    let (k_nope, v) = kv.view().split_at(Axis(2), nope); // [s, h, nope], [s, h, v]
    let k_pe = Array3::from_shape_fn((s, heads, rope_dim), |(n, _, i)| k_pe[(n, i)]); // [s, h, rope]
    let k = join(k_nope, k_pe.view()); // [s, h, nope + rope]
    let tau = f64::from(config.softmax_scale());
    let round = |x| round(x, arithmetic);
    let score = |t, head, n| round(tau * round(dot(row(&q, t, head), row(&k.view(), n, head))));
    let value = |head, n| row(&v, n, head); // [v]
    Ok(weigh(indices, s, heads, config.v_head_dim, score, value, arithmetic))
}

fn decode(
    q: ArrayView3<f32>,
    c: ArrayView2<f32>,
    k_pe: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
) -> Result<Array3<f32>> {
    let (s, heads, rank) = (c.nrows(), config.num_attention_heads, config.kv_lora_rank);
    let kv_b = arithmetic.rounded(weights.kv_b_proj.dequantise()?); // [h · (nope + v), rank]
    let (q_nope, q_pe) = q.split_at(Axis(2), config.qk_nope_head_dim); // [n, h, nope], [n, h, rope]
    let q_absorbed = arithmetic.rounded(absorb(q_nope, kv_b.view(), config)); // [n, h, rank]
    let tau = f64::from(config.softmax_scale());
    let round = |x| round(x, arithmetic);
    let score = |t, head, n| {
        let latent = round(dot(row(&q_absorbed.view(), t, head), c.row(n)));
        let rotary = round(dot(row(&q_pe, t, head), k_pe.row(n)));
        round(tau * round(latent + rotary))
    };
    let value = |_, n| c.index_axis_move(Axis(0), n); // [rank]
    let latent = weigh(indices, s, heads, rank, score, value, arithmetic); // [n, h, rank]
    Ok(arithmetic.rounded(unabsorb(latent.view(), kv_b.view(), config)))
}

/// `o[t, h] = round( Σ_n P[t, h, n] · value(h, n) )`, `P = round(softmax(score(t, h, n)))` over the
/// keys that `indices` `[n, k]` names: `[n, h, d]`, 0 in a row without a key.
fn weigh<'a>(
    indices: ArrayView2<i32>,
    s: usize,
    heads: usize,
    d: usize,
    score: impl Fn(usize, usize, usize) -> f64,
    value: impl Fn(usize, usize) -> ArrayView1<'a, f32>,
    arithmetic: &Arithmetic,
) -> Array3<f32> {
    let mut out = Array3::zeros((indices.nrows(), heads, d)); // [n, h, d]
    for (t, listed) in indices.rows().into_iter().enumerate() {
        let keys: Vec<usize> = listed.iter().filter_map(|&index| key(index, s)).collect(); // [keys]
        for head in 0..heads {
            let scores: Vec<f64> = keys.iter().map(|&n| score(t, head, n)).collect(); // [keys]
            let mut o = vec![0.0f64; d]; // [d]
            for (p, &n) in softmax(&scores).p.into_iter().zip(&keys) {
                let p = round(p, arithmetic);
                for (o, &v) in o.iter_mut().zip(value(head, n)) {
                    *o += p * f64::from(v);
                }
            }
            for (i, o) in o.into_iter().enumerate() {
                out[(t, head, i)] = arithmetic.round(o as f32);
            }
        }
    }
    out
}

/// A score or a probability, which stays f64 where it is not rounded to bf16. As in the model, it is
/// an f32 before it is a bf16.
fn round(x: f64, arithmetic: &Arithmetic) -> f64 {
    if arithmetic.bf16 { f64::from(bf16_round(x as f32)) } else { x }
}

/// `q'[t, h] = q_nope[t, h]·W_UK[h]`: `[n, h, nope]` to `[n, h, kv_lora_rank]`.
fn absorb(q_nope: ArrayView3<f32>, kv_b: ArrayView2<f32>, config: &AttentionConfig) -> Array3<f32> {
    let (n, heads, nope) = q_nope.dim();
    let mut q = Array3::zeros((n, heads, config.kv_lora_rank)); // [n, h, rank]
    for head in 0..heads {
        let start = head * config.kv_b_head_dim(); // the key's rows come first
        let w_uk = kv_b.slice_axis(Axis(0), Slice::from(start..start + nope)); // [nope, rank]
        let absorbed = linear(q_nope.index_axis(Axis(1), head), w_uk.t()); // [n, rank]
        q.index_axis_mut(Axis(1), head).assign(&absorbed);
    }
    q
}

/// `o[t, h] = W_UV[h]·o'[t, h]`: `[n, h, kv_lora_rank]` to `[n, h, v]`.
fn unabsorb(
    latent: ArrayView3<f32>,
    kv_b: ArrayView2<f32>,
    config: &AttentionConfig,
) -> Array3<f32> {
    let (n, heads, _) = latent.dim();
    let mut o = Array3::zeros((n, heads, config.v_head_dim)); // [n, h, v]
    for head in 0..heads {
        let end = (head + 1) * config.kv_b_head_dim(); // the value's rows come last
        let w_uv = kv_b.slice_axis(Axis(0), Slice::from(end - config.v_head_dim..end)); // [v, rank]
        let value: Array2<f32> = linear(latent.index_axis(Axis(1), head), w_uv); // [n, v]
        o.index_axis_mut(Axis(1), head).assign(&value);
    }
    o
}
