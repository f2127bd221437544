//! The Hadamard transform: spreads an outlier over the whole vector before it goes to 8 bits.
//!
//! `y = H·x / √n`, `H_ij = (−1)^popcount(i & j)` (Sylvester's order). H/√n is orthogonal and its
//! own inverse: applied to q **and** k it leaves every dot product as it was, applied to one side
//! alone it ruins them.
//!
//! Source: the demo's `rotate_activation` (fast_hadamard_transform with scale n^−½).
use crate::error::{Result, check_value};
use ndarray::{Array2, ArrayView2};

/// The transform of each row of `x` `[rows, n]`; returns `[rows, n]`.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if n is no power of two.
pub fn hadamard(x: ArrayView2<f32>) -> Result<Array2<f32>> {
    let n = x.ncols();
    check_value("row length", n, "a power of two", n.is_power_of_two())?;
    let norm = (n as f64).sqrt().recip();
    Ok(Array2::from_shape_fn(x.dim(), |(row, i)| {
        let mut y = 0.0f64;
        for j in 0..n {
            let sign = if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
            y += sign * f64::from(x[(row, j)]);
        }
        (y * norm) as f32
    })) // [rows, n]
}
