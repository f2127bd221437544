//! Dense attention, the baseline: every key of `[ks, ke)`, as in DeepSeek-V3.1.
//!
//! [`dense_mha`] is the expanded form with keys and values of each head, [`dense_mla`] the absorbed
//! form with one latent row for all heads. They are the same function of the hidden states.
//! [`dense_masked`] is how the paper writes sparse attention: `softmax(τ·q·k + M)·v`.
//!
//! Source: multi-head latent attention of DeepSeek-V2; edge conventions as in
//! [`sparse_attention`](crate::sparse_attention).
use crate::error::{Result, check_shape, check_value};
use crate::math::{attend, key_range, score};
use crate::sparse_attention::{AttentionOut, check_scale, row};
use ndarray::{ArrayView2, ArrayView3, Axis, Slice};

/// `softmax(τ · q·kᵀ) · v` head by head over the keys `[ks, ke)`.
///
/// `q` `[s, h, d_qk]`, `k` `[s_kv, h, d_qk]`, `v` `[s_kv, h, d_v]`, `ks` and `ke` `[s]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together;
/// [`Error::Value`](crate::Error::Value) if `softmax_scale` is not positive and finite.
pub fn dense_mha(
    q: ArrayView3<f32>,
    k: ArrayView3<f32>,
    v: ArrayView3<f32>,
    ks: &[i32],
    ke: &[i32],
    softmax_scale: f32,
) -> Result<AttentionOut> {
    let (s, h, d_qk) = q.dim();
    let (s_kv, _, d_v) = v.dim();
    check_shape("k", k.shape(), &[s_kv, h, d_qk])?;
    check_shape("v", v.shape(), &[s_kv, h, d_v])?;
    check_shape("ks", &[ks.len()], &[s])?;
    check_shape("ke", &[ke.len()], &[s])?;
    check_scale(softmax_scale)?;
    let tau = f64::from(softmax_scale);
    let mut a = AttentionOut::empty(s, h, d_v);
    for t in 0..s {
        let keys = key_range(ks[t], ke[t], s_kv);
        for head in 0..h {
            let q = row(&q, t, head); // [d_qk]
            let scores: Vec<f64> = keys.clone().map(|n| score(tau, q, row(&k, n, head))).collect(); // [keys]
            let value = |j: usize| row(&v, keys.start + j, head); // [d_v]
            let mut out = a.out.index_axis_mut(Axis(0), t);
            let out = out.index_axis_mut(Axis(0), head); // [d_v]
            let (lse, max) = attend(&scores, value, f64::NEG_INFINITY, out);
            a.lse[(t, head)] = lse;
            a.max_logits[(t, head)] = max;
        }
    }
    Ok(a)
}

/// The absorbed form over the keys `[ks, ke)`: `q` `[s, h, d_qk]`, `kv` `[s_kv, d_qk]`, whose first
/// `d_v` columns are the value.
///
/// # Errors
/// As [`dense_mha`], and if `d_v > d_qk`.
pub fn dense_mla(
    q: ArrayView3<f32>,
    kv: ArrayView2<f32>,
    ks: &[i32],
    ke: &[i32],
    softmax_scale: f32,
    d_v: usize,
) -> Result<AttentionOut> {
    let (s, h, d_qk) = q.dim();
    let s_kv = kv.nrows();
    check_shape("kv", kv.shape(), &[s_kv, d_qk])?;
    check_shape("ks", &[ks.len()], &[s])?;
    check_shape("ke", &[ke.len()], &[s])?;
    check_value("d_v", d_v, "at most d_qk", d_v <= d_qk)?;
    check_scale(softmax_scale)?;
    let v = kv.slice_axis(Axis(1), Slice::from(..d_v)); // [s_kv, d_v]
    let tau = f64::from(softmax_scale);
    let mut a = AttentionOut::empty(s, h, d_v);
    for t in 0..s {
        let keys = key_range(ks[t], ke[t], s_kv);
        for head in 0..h {
            let q = row(&q, t, head); // [d_qk]
            let scores: Vec<f64> = keys.clone().map(|n| score(tau, q, kv.row(n))).collect(); // [keys]
            let value = |j: usize| v.index_axis_move(Axis(0), keys.start + j); // [d_v]
            let mut out = a.out.index_axis_mut(Axis(0), t);
            let out = out.index_axis_mut(Axis(0), head); // [d_v]
            let (lse, max) = attend(&scores, value, f64::NEG_INFINITY, out);
            a.lse[(t, head)] = lse;
            a.max_logits[(t, head)] = max;
        }
    }
    Ok(a)
}

/// The absorbed form over all keys with a mask that is added to the scores:
/// `q` `[s, h, d_qk]`, `kv` `[s_kv, d_qk]`, `mask` `[s, s_kv]`. A key masked with −inf is not read.
///
/// # Errors
/// As [`dense_mla`].
pub fn dense_masked(
    q: ArrayView3<f32>,
    kv: ArrayView2<f32>,
    mask: ArrayView2<f32>,
    softmax_scale: f32,
    d_v: usize,
) -> Result<AttentionOut> {
    let (s, h, d_qk) = q.dim();
    let s_kv = kv.nrows();
    check_shape("kv", kv.shape(), &[s_kv, d_qk])?;
    check_shape("mask", mask.shape(), &[s, s_kv])?;
    check_value("d_v", d_v, "at most d_qk", d_v <= d_qk)?;
    check_scale(softmax_scale)?;
    let tau = f64::from(softmax_scale);
    let v = kv.slice_axis(Axis(1), Slice::from(..d_v)); // [s_kv, d_v]
    let mut a = AttentionOut::empty(s, h, d_v);
    for t in 0..s {
        let score = |n: usize, head| match mask[(t, n)] {
            f32::NEG_INFINITY => f64::NEG_INFINITY,
            m => score(tau, row(&q, t, head), kv.row(n)) + f64::from(m),
        };
        for head in 0..h {
            let scores: Vec<f64> = (0..s_kv).map(|n| score(n, head)).collect(); // [s_kv]
            let value = |n: usize| v.index_axis_move(Axis(0), n); // [d_v]
            let mut out = a.out.index_axis_mut(Axis(0), t);
            let out = out.index_axis_mut(Axis(0), head); // [d_v]
            let (lse, max) = attend(&scores, value, f64::NEG_INFINITY, out);
            a.lse[(t, head)] = lse;
            a.max_logits[(t, head)] = max;
        }
    }
    Ok(a)
}
