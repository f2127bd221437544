//! Masks, 0 for a key that is seen and −inf for one that is not: how the paper writes selection.
//!
//! A sparse kernel never builds them. They exist to hold
//! [`sparse_mla`](crate::sparse_attention::sparse_mla) against
//! [`dense_masked`](crate::dense_attention::dense_masked). One mask serves all heads of a token:
//! DSA selects per token, not per head.
use crate::error::{Result, check_shape};
use crate::math::key;
use ndarray::{Array2, ArrayView2};

/// `M[t, n] = 0` if n is in `indices[t]`, else −inf; `indices` `[s, topk]`, result `[s, s_kv]`.
/// Entries that are negative or at least `s_kv` are no key.
pub fn index_mask(indices: ArrayView2<i32>, s_kv: usize) -> Array2<f32> {
    let s = indices.nrows();
    let mut mask = Array2::from_elem((s, s_kv), f32::NEG_INFINITY); // [s, s_kv]
    for ((t, _), &index) in indices.indexed_iter() {
        if let Some(n) = key(index, s_kv) {
            mask[(t, n)] = 0.0;
        }
    }
    mask
}

/// `M[t, n] = 0` if `n <= start + t`, else −inf; `[s, s_kv]`. The queries are the positions
/// `start .. start + s`, and each sees itself.
pub fn causal_mask(s: usize, start: usize, s_kv: usize) -> Array2<f32> {
    Array2::from_shape_fn((s, s_kv), |(t, n)| {
        if n <= start.saturating_add(t) { 0.0 } else { f32::NEG_INFINITY }
    })
}

/// `a + b` `[s, s_kv]`: a key is seen if both masks show it.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes differ.
pub fn compose(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Result<Array2<f32>> {
    check_shape("b", b.shape(), a.shape())?;
    Ok(&a + &b)
}
