//! Heads and parts of heads: how the layer's rows are cut up and put together.
use super::AttentionConfig;
use crate::rope::{Pairing, rope};
use ndarray::{Array2, Array3, ArrayView3, Axis, Slice};
use std::ops::Range;

/// `ks = 0`, `ke = t + 1`: token t sees itself and what came before.
pub(crate) fn causal(s: usize) -> (Vec<i32>, Vec<i32>) {
    (vec![0; s], (0..s).map(|t| t as i32 + 1).collect())
}

/// RoPE of some dimensions of `x` `[s, heads, d]` at the positions 0 .. s; the others stay.
pub(crate) fn rope_part(
    mut x: Array3<f32>,
    dims: Range<usize>,
    config: &AttentionConfig,
    pairing: Pairing,
) -> Array3<f32> {
    let (cos, sin) = config.cos_sin(x.dim().0); // [s, rope/2] each
    let rotated = rope(part(&x, dims.clone()), cos.view(), sin.view(), pairing); // [s, heads, rope]
    x.slice_axis_mut(Axis(2), Slice::from(dims)).assign(&rotated);
    x
}

/// Some dimensions of `x` `[s, heads, d]`.
pub(crate) fn part(x: &Array3<f32>, dims: Range<usize>) -> ArrayView3<'_, f32> {
    x.slice_axis(Axis(2), Slice::from(dims))
}

/// `[s, heads · d]` as `[s, heads, d]`.
pub(crate) fn split_heads(x: Array2<f32>, heads: usize, d: usize) -> Array3<f32> {
    Array3::from_shape_fn((x.nrows(), heads, d), |(t, head, i)| x[(t, head * d + i)])
}

/// `[s, heads, d]` as `[s, heads · d]`.
pub(crate) fn join_heads(x: Array3<f32>) -> Array2<f32> {
    let (s, heads, d) = x.dim();
    Array2::from_shape_fn((s, heads * d), |(t, i)| x[(t, i / d, i % d)])
}

/// `a` `[s, heads, d_a]` followed by `b` `[s, heads, d_b]`: `[s, heads, d_a + d_b]`.
pub(crate) fn join(a: ArrayView3<f32>, b: ArrayView3<f32>) -> Array3<f32> {
    let (s, heads, d_a) = a.dim();
    Array3::from_shape_fn((s, heads, d_a + b.dim().2), |(t, head, i)| {
        if i < d_a { a[(t, head, i)] } else { b[(t, head, i - d_a)] }
    })
}
