//! The attention itself: exact in f64, or with the demo's roundings in each of its two forms.
//!
//! ```text
//! exact      q' = q_nope·W_UK, attention of q' ‖ q_pe to c ‖ k_pe (sparse_mla), o = o'·W_UV
//!
//! prefill    k_nope ‖ v = round(c·Wkv_bᵀ)
//!            S = round( round(⟨q, k_nope ‖ k_pe⟩) · τ )      P = round(softmax S)      o = round(P·v)
//!
//! decode     q' = round(q_nope·W_UK)
//!            S = round( round( round⟨q', c⟩ + round⟨q_pe, k_pe⟩ ) · τ )      P = round(softmax S)
//!            o' = round(P·c)      o = round(o'·W_UV)
//! ```
//! The published model multiplies c by the fp8 weight in prefill, with c quantised once more (which
//! changes nothing where scales are powers of two), and by the weight rounded to bf16 in decoding.
//! So a token's output depends on the form, in its last bits.
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
use crate::sparse_attention::{row, sparse_mla};
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
        _ if !arithmetic.bf16 => exact(q, c, k_pe, indices, config, weights),
        Form::Prefill => prefill(q, c, k_pe, indices, config, weights, arithmetic),
        Form::Decode => decode(q, c, k_pe, indices, config, weights),
    }
}

fn exact(
    q: ArrayView3<f32>,
    c: ArrayView2<f32>,
    k_pe: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Result<Array3<f32>> {
    let kv_b = weights.kv_b_proj.dequantise()?; // [h · (nope + v), rank]
    let (q_nope, q_pe) = q.split_at(Axis(2), config.qk_nope_head_dim); // [n, h, nope], [n, h, rope]
    let q_absorbed = absorb(q_nope, kv_b.view(), config); // [n, h, rank]
    let q = join(q_absorbed.view(), q_pe); // [n, h, rank + rope]
    let kv = join(c.insert_axis(Axis(1)), k_pe.insert_axis(Axis(1))); // [s, 1, rank + rope]
    let kv = kv.remove_axis(Axis(1)); // [s, rank + rope]
    let (tau, rank) = (config.softmax_scale(), config.kv_lora_rank);
    let latent = sparse_mla(q.view(), kv.view(), indices, tau, rank, None, None)?.out; // [n, h, rank]
    Ok(unabsorb(latent.view(), kv_b.view(), config))
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
    let tau = config.softmax_scale();
    let score = |t, head, n| {
        let product = bf16_round(dot(row(&q, t, head), row(&k.view(), n, head)) as f32);
        bf16_round(product * tau)
    };
    let value = |head, n| row(&v, n, head); // [v]
    Ok(weigh(indices, s, heads, config.v_head_dim, score, value))
}

fn decode(
    q: ArrayView3<f32>,
    c: ArrayView2<f32>,
    k_pe: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
) -> Result<Array3<f32>> {
    let (s, heads, rank) = (c.nrows(), config.num_attention_heads, config.kv_lora_rank);
    let kv_b = weights.kv_b_proj.dequantise()?.mapv(bf16_round); // [h · (nope + v), rank]
    let (q_nope, q_pe) = q.split_at(Axis(2), config.qk_nope_head_dim); // [n, h, nope], [n, h, rope]
    let q_absorbed = absorb(q_nope, kv_b.view(), config).mapv(bf16_round); // [n, h, rank]
    let tau = config.softmax_scale();
    let score = |t, head, n| {
        let latent = bf16_round(dot(row(&q_absorbed.view(), t, head), c.row(n)) as f32);
        let rotary = bf16_round(dot(row(&q_pe, t, head), k_pe.row(n)) as f32);
        bf16_round(bf16_round(latent + rotary) * tau)
    };
    let value = |_, n| c.index_axis_move(Axis(0), n); // [rank]
    let latent = weigh(indices, s, heads, rank, score, value); // [n, h, rank]
    Ok(unabsorb(latent.view(), kv_b.view(), config).mapv(bf16_round))
}

/// `o[t, h] = round( Σ_n P[t, h, n] · value(h, n) )`, `P = round(softmax(score(t, h, n)))` over the
/// keys that `indices` `[n, k]` names: `[n, h, d]`, 0 in a row without a key.
fn weigh<'a>(
    indices: ArrayView2<i32>,
    s: usize,
    heads: usize,
    d: usize,
    score: impl Fn(usize, usize, usize) -> f32,
    value: impl Fn(usize, usize) -> ArrayView1<'a, f32>,
) -> Array3<f32> {
    let mut o = Array3::zeros((indices.nrows(), heads, d)); // [n, h, d]
    for (t, listed) in indices.rows().into_iter().enumerate() {
        let keys: Vec<usize> = listed.iter().filter_map(|&index| key(index, s)).collect(); // [keys]
        for head in 0..heads {
            let scores: Vec<f64> = keys.iter().map(|&n| f64::from(score(t, head, n))).collect(); // [keys]
            let p = softmax(&scores).p; // [keys]
            let p: Vec<f32> = p.iter().map(|&p| bf16_round(p as f32)).collect(); // [keys]
            for i in 0..d {
                let terms =
                    p.iter().zip(&keys).map(|(&p, &n)| f64::from(p) * f64::from(value(head, n)[i]));
                o[(t, head, i)] = bf16_round(terms.sum::<f64>() as f32);
            }
        }
    }
    o
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
