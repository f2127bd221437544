//! The arithmetic that every module shares: dot product, visible range, softmax of one row.
use ndarray::{ArrayView1, ArrayViewMut1};
use std::ops::Range;

const LANES: usize = 8;

/// ⟨a, b⟩ in f64. Element i goes to running sum i mod 8: the order is fixed, whatever the strides.
pub(crate) fn dot(a: ArrayView1<f32>, b: ArrayView1<f32>) -> f64 {
    let mut sums = [0.0f64; LANES];
    if let (Some(a), Some(b)) = (a.to_slice(), b.to_slice()) {
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                *sum += f64::from(a) * f64::from(b);
            }
        }
    } else {
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            sums[i % LANES] += f64::from(a) * f64::from(b);
        }
    }
    sums.iter().sum()
}

/// A scaled score `τ · ⟨q, k⟩`, an f32 as everybody keeps it: beyond the range it is an infinity. (Its precision is
/// left alone.)
pub(crate) fn score(tau: f64, q: ArrayView1<f32>, k: ArrayView1<f32>) -> f64 {
    let score = tau * dot(q, k);
    if (score as f32).is_infinite() { f64::INFINITY.copysign(score) } else { score }
}

/// The keys `[ks, ke)` that exist, as a range of row numbers; empty where `ke <= ks`.
pub(crate) fn key_range(ks: i32, ke: i32, s_kv: usize) -> Range<usize> {
    let start = usize::try_from(ks).unwrap_or(0).min(s_kv);
    let end = usize::try_from(ke).unwrap_or(0).min(s_kv);
    start..end.max(start)
}

/// The row number an index names, or `None` where it is no key (negative, or at least `s_kv`).
pub(crate) fn key(index: i32, s_kv: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&n| n < s_kv)
}

/// Softmax of one row of scores, with what is kept of it.
pub(crate) struct Softmax {
    /// Probabilities, one a score; all 0 where no score is above −inf.
    pub p: Vec<f64>,
    /// ln Σ exp(score); +inf where no score is above −inf.
    pub lse: f64,
    /// The largest score; NaN if any is.
    pub max: f64,
}

/// `p = exp(score − max) / Σ exp(score − max)`. A score of −inf is no key.
pub(crate) fn softmax(scores: &[f64]) -> Softmax {
    let mut max = f64::NEG_INFINITY;
    for &score in scores {
        if score > max || score.is_nan() {
            max = score;
        }
    }
    if max == f64::NEG_INFINITY {
        return Softmax { p: vec![0.0; scores.len()], lse: f64::INFINITY, max };
    }
    let exp: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect(); // [keys]
    let sum: f64 = exp.iter().sum();
    let p = exp.iter().map(|e| e / sum).collect(); // [keys]
    Softmax { p, lse: max + sum.ln(), max }
}

/// One head of one query: `out = Σ_j p_j · value(j)`, and its (lse, max).
///
/// `sink` is one more logit that takes weight and has no value:
/// `out *= e^lse / (e^lse + e^sink)`, written `1 / (1 + e^(sink − lse))`; −inf is no sink.
/// The value of a key with score −inf is not read, and with a sink of +inf none is: out is 0.
pub(crate) fn attend<'a>(
    scores: &[f64],
    value: impl Fn(usize) -> ArrayView1<'a, f32>,
    sink: f64,
    mut out: ArrayViewMut1<f32>,
) -> (f32, f32) {
    let Softmax { p, lse, max } = softmax(scores);
    if max == f64::NEG_INFINITY {
        out.fill(0.0);
        return (lse as f32, max as f32);
    }
    let mut o = vec![0.0f64; out.len()]; // [d_v]
    for (j, &p) in p.iter().enumerate() {
        if scores[j] == f64::NEG_INFINITY {
            continue;
        }
        for (o, &v) in o.iter_mut().zip(value(j)) {
            *o += p * f64::from(v);
        }
    }
    let kept = 1.0 / (1.0 + (sink - lse).exp());
    for (out, o) in out.iter_mut().zip(o) {
        *out = if kept == 0.0 { 0.0 } else { (o * kept) as f32 };
    }
    (lse as f32, max as f32)
}
