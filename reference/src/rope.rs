//! Rotary positions with YaRN: turns pairs of dimensions by an angle that grows with the position.
//!
//! Source: `precompute_freqs_cis` and `apply_rotary_emb` of the DeepSeek-V3.2-Exp inference demo
//! (November 2025); names as in the Hugging Face configuration.
use ndarray::{Array2, Array3, ArrayView2, ArrayView3};
use std::f64::consts::PI;

/// Which two dimensions turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// (2i, 2i+1): the main attention.
    Interleaved,
    /// (i, i + dim/2): the indexer. The first demo used the interleaved pairing there by mistake;
    /// nothing shows it on short prompts.
    HalfSplit,
}

impl Pairing {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("interleaved", Self::Interleaved), ("half_split", Self::HalfSplit)];
}

/// YaRN: low frequencies are slowed down so that a longer context spans the angles of the trained
/// one; high frequencies stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How many times longer the context is (40).
    pub factor: f64,
    /// The length trained with plain positions (4096).
    pub original_max_position_embeddings: usize,
    /// Turns within that length above which a frequency stays (32).
    pub beta_fast: f64,
    /// Turns below which it is slowed by the whole factor (1).
    pub beta_slow: f64,
    /// See [`Yarn::attention_factor`] (1).
    pub mscale: f64,
    /// See [`softmax_scale`] (1).
    pub mscale_all_dim: f64,
}

impl Yarn {
    /// What cos and sin are multiplied with: `m(mscale) / m(mscale_all_dim)`, 1 in DeepSeek-V3.2.
    pub fn attention_factor(&self) -> f64 {
        self.m(self.mscale) / self.m(self.mscale_all_dim)
    }

    /// `m = 0.1 · mscale · ln(factor) + 1`; 1 where the context is not stretched.
    fn m(&self, mscale: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
    }
}

/// The `dim/2` angles a token turns by from one position to the next.
///
/// ```text
/// f_i    = 1 / θ^(2i/dim)
/// d(r)   = dim · ln(original / (2π r)) / (2 ln θ)        the i that makes r turns; f64
/// low    = max(floor d(beta_fast), 0),  high = min(ceil d(beta_slow), dim − 1)
/// smooth = 1 − clamp((i − low) / (high − low), 0, 1)
/// f'_i   = f_i / factor · (1 − smooth) + f_i · smooth    if YaRN
/// ```
/// Where `low == high`, 0.001 is added to `high`. Each step is an f32 and in the demo's order: the
/// last bit depends on it, and with it, some layers later, which keys are selected.
pub fn frequencies(dim: usize, theta: f64, yarn: Option<&Yarn>) -> Vec<f32> {
    let plain = |i: usize| 1.0 / theta.powf((2 * i) as f64 / dim as f64) as f32;
    let Some(yarn) = yarn else {
        return (0..dim / 2).map(plain).collect(); // [dim/2]
    };
    let original = yarn.original_max_position_embeddings as f64;
    let d = |turns: f64| dim as f64 * (original / (2.0 * PI * turns)).ln() / (2.0 * theta.ln());
    let low = d(yarn.beta_fast).floor().max(0.0);
    let high = d(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
    let high = if high == low { high + 0.001 } else { high };
    let stretched = |i: usize| {
        let smooth = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        plain(i) / yarn.factor as f32 * (1.0 - smooth) + plain(i) * smooth
    };
    (0..dim / 2).map(stretched).collect() // [dim/2]
}

/// cos and sin `[n, dim/2]` of `position · frequency`; `freqs` `[dim/2]`, `positions` `[n]`.
///
/// The angle is formed in f32, as the model does: near 1e5 that rounds it by up to 0.004 rad, and
/// the trained weights have seen those rounded angles. Only cos and sin of it are exact.
pub fn cos_sin(freqs: &[f32], positions: &[usize]) -> (Array2<f32>, Array2<f32>) {
    let shape = (positions.len(), freqs.len());
    let angle = Array2::from_shape_fn(shape, |(t, i)| positions[t] as f32 * freqs[i]); // [n, dim/2]
    let cos = angle.mapv(|angle| f64::from(angle).cos() as f32); // [n, dim/2]
    let sin = angle.mapv(|angle| f64::from(angle).sin() as f32); // [n, dim/2]
    (cos, sin)
}

/// Turns each pair of `x` `[n, heads, dim]` by its angle, `cos` and `sin` `[n, dim/2]`; the result
/// `[n, heads, dim]` keeps the order of the dimensions.
///
/// `(a, b) → (a·cos − b·sin, a·sin + b·cos)`. A pair without an entry in the tables becomes NaN;
/// of an odd `dim` the last element stays as it is.
pub fn rope(
    x: ArrayView3<f32>,
    cos: ArrayView2<f32>,
    sin: ArrayView2<f32>,
    pairing: Pairing,
) -> Array3<f32> {
    let (n, heads, dim) = x.dim();
    let mut y = x.to_owned(); // [n, heads, dim]
    for t in 0..n {
        for i in 0..dim / 2 {
            let (first, second) = match pairing {
                Pairing::Interleaved => (2 * i, 2 * i + 1),
                Pairing::HalfSplit => (i, i + dim / 2),
            };
            let cos = f64::from(cos.get((t, i)).copied().unwrap_or(f32::NAN));
            let sin = f64::from(sin.get((t, i)).copied().unwrap_or(f32::NAN));
            for head in 0..heads {
                let a = f64::from(x[(t, head, first)]);
                let b = f64::from(x[(t, head, second)]);
                y[(t, head, first)] = (a * cos - b * sin) as f32;
                y[(t, head, second)] = (a * sin + b * cos) as f32;
            }
        }
    }
    y
}

/// What a dot product of queries and keys is multiplied with before the softmax:
/// `qk_head_dim^(−½) · m²`, `m = 0.1 · mscale_all_dim · ln(factor) + 1` if YaRN.
///
/// 0.1352337789 for 192 dimensions and factor 40. The indexer's scale does not contain `m²`.
pub fn softmax_scale(qk_head_dim: usize, yarn: Option<&Yarn>) -> f64 {
    let m = yarn.map_or(1.0, |yarn| yarn.m(yarn.mscale_all_dim));
    (qk_head_dim as f64).sqrt().recip() * m * m
}
