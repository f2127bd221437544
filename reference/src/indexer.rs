//! The lightning indexer: the score of every key for every query.
//!
//! ```text
//! I[t, n] = k_scale[n] · Σ_h relu(⟨q[t, h], k[n]⟩) · w[t, h]
//! ```
//! q and k are the decoded e4m3 codes. There is no scale of q: it is folded into the weights,
//! `w = (x·Wᵀ) · H^−½ · q_scale · D^−½`. The weights are signed, so scores may be negative, and
//! with every ReLU closed a score is exactly 0: ties are the normal case.
//!
//! Source: the DeepSeek-V3.2 paper's index score; argument order and layouts of DeepGEMM's
//! `fp8_mqa_logits` and `fp8_paged_mqa_logits`.
use crate::cache_write::index_cache_read;
use crate::error::{Result, check_shape, check_value};
use crate::math::{dot, key, key_range};
use crate::quant::e4m3_decode;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayView3, ArrayView4, Axis};

/// What a head makes of its dot product before the heads are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScoreFn {
    /// `relu(dot) · w`, as published. A NaN stays NaN.
    #[default]
    ReluWeighted,
    /// `sigmoid(dot) · w`: an example of another function in the same place. The key's scale still
    /// multiplies the sum, so the sigmoid sees the dot product of the codes, without scales.
    SigmoidWeighted,
}

impl ScoreFn {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("relu", Self::ReluWeighted), ("sigmoid", Self::SigmoidWeighted)];

    /// What one head adds to the score.
    pub fn apply(self, dot: f64, w: f64) -> f64 {
        match self {
            Self::ReluWeighted => w * if dot <= 0.0 { 0.0 } else { dot },
            Self::SigmoidWeighted => w / (1.0 + (-dot).exp()),
        }
    }
}

/// Scores `[s, s_kv]` of a prompt; −inf outside `[ks, ke)`, where no key is read.
///
/// `q` `[s, H, D]`, `k` `[s_kv, D]`, `k_scale` `[s_kv]`, `weights` `[s, H]`, `ks` and `ke` `[s]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
#[allow(clippy::too_many_arguments)]
pub fn indexer_logits(
    q: ArrayView3<f32>,
    k: ArrayView2<f32>,
    k_scale: ArrayView1<f32>,
    weights: ArrayView2<f32>,
    ks: &[i32],
    ke: &[i32],
    score_fn: ScoreFn,
) -> Result<Array2<f32>> {
    let (s, heads, d) = q.dim();
    let s_kv = k.nrows();
    check_shape("k", k.shape(), &[s_kv, d])?;
    check_shape("k_scale", k_scale.shape(), &[s_kv])?;
    check_shape("weights", weights.shape(), &[s, heads])?;
    check_shape("ks", &[ks.len()], &[s])?;
    check_shape("ke", &[ke.len()], &[s])?;
    let mut logits = Array2::from_elem((s, s_kv), f32::NEG_INFINITY); // [s, s_kv]
    for t in 0..s {
        let q = q.index_axis(Axis(0), t); // [H, D]
        for n in key_range(ks[t], ke[t], s_kv) {
            logits[(t, n)] = logit(q, k.row(n), k_scale[n], weights.row(t), score_fn);
        }
    }
    Ok(logits)
}

/// One score: `k_scale · Σ_h f(⟨q[h], k⟩, w[h])`; `q` `[H, D]`, `k` `[D]`, `weights` `[H]`.
fn logit(
    q: ArrayView2<f32>,
    k: ArrayView1<f32>,
    k_scale: f32,
    weights: ArrayView1<f32>,
    score_fn: ScoreFn,
) -> f32 {
    let mut sum = 0.0f64;
    for (q, &w) in q.axis_iter(Axis(0)).zip(weights) {
        sum += score_fn.apply(dot(q, k), f64::from(w));
    }
    (f64::from(k_scale) * sum) as f32
}

/// Scores `[b · next_n, max_context]` of a decoding step over a paged cache.
///
/// `q` `[b, next_n, H, D]`; `cache` `[n_pages, page_size · (D + 4)]` bytes, see
/// [`index_cache_pages`](crate::cache_write::index_cache_pages); `weights` `[b · next_n, H]`;
/// `context_lens` `[b]`; `block_table` `[b, max_pages]`: key n of request b lies in page
/// `block_table[b, n / page_size]`, slot `n % page_size`.
///
/// A request's last `next_n` tokens are its queries: query i sees the keys
/// `n < context_len − next_n + i + 1`. Elsewhere, and on a page that does not exist (an entry that
/// is negative, at least `n_pages`, or beyond the table), the score is −inf and nothing is read.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together,
/// [`Error::Value`](crate::Error::Value) if `page_size` is 0.
#[allow(clippy::too_many_arguments)]
pub fn indexer_logits_paged(
    q: ArrayView4<f32>,
    cache: ArrayView2<u8>,
    page_size: usize,
    weights: ArrayView2<f32>,
    context_lens: &[i32],
    block_table: ArrayView2<i32>,
    max_context: usize,
    score_fn: ScoreFn,
) -> Result<Array2<f32>> {
    let (b, next_n, heads, d) = q.dim();
    let n_pages = cache.nrows();
    check_value("page_size", page_size, "at least 1 key a page", page_size > 0)?;
    check_shape("cache", cache.shape(), &[n_pages, page_size.saturating_mul(d + 4)])?;
    check_shape("weights", weights.shape(), &[b * next_n, heads])?;
    check_shape("context_lens", &[context_lens.len()], &[b])?;
    check_shape("block_table", block_table.shape(), &[b, block_table.ncols()])?;
    let (codes, k_scale) = index_cache_read(cache, page_size)?;
    let k = codes.mapv(e4m3_decode); // [n_pages · page_size, D]
    let mut logits = Array2::from_elem((b * next_n, max_context), f32::NEG_INFINITY);
    for (request, &context_len) in context_lens.iter().enumerate() {
        for i in 0..next_n {
            let row = request * next_n + i;
            let q = q.index_axis(Axis(0), request);
            let q = q.index_axis(Axis(0), i); // [H, D]
            let hidden = (next_n - 1 - i) as i64; // this query's successors
            let visible = i64::from(context_len).saturating_sub(hidden);
            let visible = usize::try_from(visible).unwrap_or(0).min(max_context);
            for n in 0..visible {
                let entry = block_table.get((request, n / page_size)).copied().unwrap_or(-1);
                let Some(page) = key(entry, n_pages) else {
                    continue;
                };
                let slot = page * page_size + n % page_size;
                logits[(row, n)] = logit(q, k.row(slot), k_scale[slot], weights.row(row), score_fn);
            }
        }
    }
    Ok(logits)
}
