//! SwiGLU: what stands between the two products of a feed-forward network.
//!
//! Source: `MLP` and `Expert` of the DeepSeek-V3.2-Exp inference demo.
use crate::arithmetic::Arithmetic;
use crate::error::{Result, check_shape};
use ndarray::{Array2, ArrayView2, Zip};

/// `y = round( gate / (1 + e^−gate) · up )`, all `[n, dim]`; nothing is rounded in between.
/// An infinite `up` gives an infinity, unless gate is 0, infinite or NaN.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes differ.
pub fn swiglu(
    gate: ArrayView2<f32>,
    up: ArrayView2<f32>,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    check_shape("up", up.shape(), gate.shape())?;
    let y = Zip::from(gate).and(up).map_collect(|&gate, &up| {
        let (gate, up) = (f64::from(gate), f64::from(up));
        let silu = gate / (1.0 + (-gate).exp());
        // silu may have vanished, and 0 · inf would be NaN.
        let y = if up.is_infinite() && gate.is_finite() { gate * up } else { silu * up };
        y as f32
    }); // [n, dim]
    Ok(arithmetic.rounded(y))
}
