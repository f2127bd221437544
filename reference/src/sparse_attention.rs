//! Sparse attention over the selected keys, in the absorbed (multi-query) form of MLA.
//!
//! ```text
//! S[t,h,j] = τ · ⟨q[t,h], kv[J_tj]⟩           J_t: the index list of token t
//! P        = softmax over the j that are keys
//! O[t,h]   = Σ_j P[t,h,j] · kv[J_tj][0 : d_v]
//! LSE[t,h] = ln Σ_j exp S[t,h,j]
//! ```
//! All heads share one key row (latent ‖ rotary key, 512 + 64), whose first `d_v` columns are the
//! value as well.
//!
//! Source: the DeepSeek-V3.2 paper; arguments, sink and edge conventions of FlashMLA's
//! `flash_mla_sparse_fwd`, the logarithm natural.
use crate::cache_write::KvRecord;
use crate::error::{Result, check_shape, check_value};
use crate::math::{attend, key, score};
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis, Slice};
use std::collections::HashSet;

/// What an attention returns.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionOut {
    /// `[s, h, d_v]`; 0 in a row without a key.
    pub out: Array3<f32>,
    /// ln Σ exp(score) `[s, h]`; +inf in a row without a key. A sink does not change it.
    pub lse: Array2<f32>,
    /// The largest score, scaled, `[s, h]`; −inf in a row without a key.
    pub max_logits: Array2<f32>,
}

impl AttentionOut {
    /// All rows without a key.
    pub(crate) fn empty(s: usize, h: usize, d_v: usize) -> Self {
        Self {
            out: Array3::zeros((s, h, d_v)),
            lse: Array2::from_elem((s, h), f32::INFINITY),
            max_logits: Array2::from_elem((s, h), f32::NEG_INFINITY),
        }
    }
}

/// Attention of `q` `[s, h, d_qk]` to the rows of `kv` `[s_kv, d_qk]` that `indices` `[s, topk]`
/// names; the values are the first `d_v` columns of the same rows.
///
/// * An index that is negative or at least `s_kv` is no key; an index that is there twice counts
///   twice ([`find_duplicates`]).
/// * `topk_length` `[s]`: entries at and after it are no key.
/// * `attn_sink` `[h]`: `out *= e^lse / (e^lse + e^sink)`; −inf changes nothing, +inf gives 0.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together or `d_v > d_qk`;
/// [`Error::Value`](crate::Error::Value) if `softmax_scale` is not positive and finite.
#[allow(clippy::too_many_arguments)]
pub fn sparse_mla(
    q: ArrayView3<f32>,
    kv: ArrayView2<f32>,
    indices: ArrayView2<i32>,
    softmax_scale: f32,
    d_v: usize,
    topk_length: Option<&[i32]>,
    attn_sink: Option<&[f32]>,
) -> Result<AttentionOut> {
    let (s, h, d_qk) = q.dim();
    let (s_kv, topk) = (kv.nrows(), indices.ncols());
    check_shape("kv", kv.shape(), &[s_kv, d_qk])?;
    check_shape("indices", indices.shape(), &[s, topk])?;
    check_value("d_v", d_v, "at most d_qk", d_v <= d_qk)?;
    check_scale(softmax_scale)?;
    if let Some(length) = topk_length {
        check_shape("topk_length", &[length.len()], &[s])?;
    }
    if let Some(sink) = attn_sink {
        check_shape("attn_sink", &[sink.len()], &[h])?;
    }
    let tau = f64::from(softmax_scale);
    let v = kv.slice_axis(Axis(1), Slice::from(..d_v)); // [s_kv, d_v]
    let mut a = AttentionOut::empty(s, h, d_v);
    for t in 0..s {
        let length = topk_length.map_or(topk, |l| usize::try_from(l[t]).unwrap_or(0));
        let listed = indices.row(t); // [topk]
        let keys: Vec<usize> =
            listed.iter().take(length).filter_map(|&index| key(index, s_kv)).collect();
        for head in 0..h {
            let q = row(&q, t, head); // [d_qk]
            let scores: Vec<f64> = keys.iter().map(|&n| score(tau, q, kv.row(n))).collect();
            let value = |j: usize| v.index_axis_move(Axis(0), keys[j]); // [d_v]
            let sink = attn_sink.map_or(f64::NEG_INFINITY, |sink| f64::from(sink[head]));
            let mut out = a.out.index_axis_mut(Axis(0), t);
            let out = out.index_axis_mut(Axis(0), head); // [d_v]
            let (lse, max) = attend(&scores, value, sink, out);
            a.lse[(t, head)] = lse;
            a.max_logits[(t, head)] = max;
        }
    }
    Ok(a)
}

/// [`sparse_mla`] over the fp8 cache: `records` `[n_slots, record.bytes()]`.
///
/// `indices` are slots, `page · page_size + offset`, already translated: pages do not matter here.
/// A slot that is negative or at least `n_slots` is no key. The cache is dequantised first, so
/// that the error of quantising is part of the expected result; a slot that no index names may
/// hold anything.
///
/// # Errors
/// As [`sparse_mla`], and if `records` or the last axis of `q` do not fit `record`.
#[allow(clippy::too_many_arguments)]
pub fn sparse_mla_paged(
    q: ArrayView3<f32>,
    records: ArrayView2<u8>,
    record: KvRecord,
    indices: ArrayView2<i32>,
    softmax_scale: f32,
    d_v: usize,
    topk_length: Option<&[i32]>,
    attn_sink: Option<&[f32]>,
) -> Result<AttentionOut> {
    check_shape("records", records.shape(), &[records.nrows(), record.bytes()])?;
    let kv = record.dequantise_kv(records); // [n_slots, kv_lora_rank + rope_dim]
    sparse_mla(q, kv.view(), indices, softmax_scale, d_v, topk_length, attn_sink)
}

/// One attention out of several over disjoint sets of keys, all of the same shapes.
///
/// It is a softmax over the splits: each one's score is its lse, its value its (normalised) out,
/// `lse = ln Σ_i e^lse_i`, `out = Σ_i e^(lse_i − lse) · out_i`. A split whose lse is infinite had
/// no key and is left out; without any split, or with none that had a key, the row has no key. A
/// sink must be applied to the merged result, not to the splits. Splits of unequal shapes have no
/// merge: everything is NaN.
pub fn merge_splits(partials: &[AttentionOut]) -> AttentionOut {
    let Some(first) = partials.first() else {
        return AttentionOut::empty(0, 0, 0);
    };
    let (s, h, d_v) = first.out.dim();
    let mut merged = AttentionOut::empty(s, h, d_v);
    let fits = |p: &AttentionOut| {
        p.out.dim() == (s, h, d_v) && p.lse.dim() == (s, h) && p.max_logits.dim() == (s, h)
    };
    if !partials.iter().all(fits) {
        merged.out.fill(f32::NAN);
        merged.lse.fill(f32::NAN);
        merged.max_logits.fill(f32::NAN);
        return merged;
    }
    for t in 0..s {
        for head in 0..h {
            let seen: Vec<&AttentionOut> =
                partials.iter().filter(|p| !p.lse[(t, head)].is_infinite()).collect(); // [splits]
            let lses: Vec<f64> = seen.iter().map(|p| f64::from(p.lse[(t, head)])).collect();
            let outs: Vec<_> = seen.iter().map(|p| p.out.view()).collect(); // [splits][s, h, d_v]
            let value = |i: usize| row(&outs[i], t, head); // [d_v]
            let mut out = merged.out.index_axis_mut(Axis(0), t);
            let out = out.index_axis_mut(Axis(0), head); // [d_v]
            (merged.lse[(t, head)], _) = attend(&lses, value, f64::NEG_INFINITY, out);
            for p in seen {
                let max = p.max_logits[(t, head)];
                if max > merged.max_logits[(t, head)] || max.is_nan() {
                    merged.max_logits[(t, head)] = max;
                }
            }
        }
    }
    merged
}

/// Every (row, index) of `indices` `[s, topk]` that is listed more than once, in order, each one
/// once. Negative entries do not count. A duplicate is a mistake of the caller: its key would be
/// weighted twice.
pub fn find_duplicates(indices: ArrayView2<i32>) -> Vec<(usize, i32)> {
    let mut duplicates = Vec::new();
    for (t, listed) in indices.axis_iter(Axis(0)).enumerate() {
        let (mut seen, mut again) = (HashSet::new(), HashSet::new());
        for &index in listed.iter().filter(|&&index| index >= 0) {
            if !seen.insert(index) && again.insert(index) {
                duplicates.push((t, index));
            }
        }
    }
    duplicates
}

/// `x[t, head]` of `[s, h, d]`: `[d]`.
pub(crate) fn row<'a>(x: &ArrayView3<'a, f32>, t: usize, head: usize) -> ArrayView1<'a, f32> {
    x.index_axis_move(Axis(0), t).index_axis_move(Axis(0), head)
}

/// Refuses a scale that is not positive, NaN or infinite.
pub(crate) fn check_scale(softmax_scale: f32) -> Result<()> {
    let ok = softmax_scale.is_finite() && softmax_scale > 0.0;
    check_value("softmax_scale", softmax_scale, "a finite positive number", ok)
}
