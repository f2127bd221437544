//! Matrix products with a weight stored `[out, in]`, plain and in 8 bits. No linear has a bias.
//!
//! Source: `linear`, `fp8_gemm` of the DeepSeek-V3.2-Exp inference demo.
use crate::error::{Result, check_shape};
use crate::math::dot;
use crate::quant::{ScaleFmt, act_quant, e4m3_decode};
use ndarray::{Array2, ArrayView2, Axis, Slice};

/// Side of the square of weights that share a scale, and length of the activations that do.
pub const BLOCK: usize = 128;

/// `y = x·wᵀ`: `x` `[m, k]`, `w` `[n, k]`, `y` `[m, n]`. If the two k differ, y is NaN.
pub fn linear(x: ArrayView2<f32>, w: ArrayView2<f32>) -> Array2<f32> {
    let fits = x.ncols() == w.ncols();
    Array2::from_shape_fn((x.nrows(), w.nrows()), |(t, n)| {
        if fits { dot(x.row(t), w.row(n)) as f32 } else { f32::NAN }
    }) // [m, n]
}

/// `y = x·wᵀ` with x quantised 1×128 on the way in and w stored in 128×128 blocks.
///
/// ```text
/// q, a_scale = act_quant(x, 128, fmt)
/// y[t, n]    = Σ_b ⟨q[t, b], w[n, b]⟩ · (a_scale[t, b] · w_scale[n / 128, b])      b: 128 columns
/// ```
/// `x` `[m, k]`, `w` e4m3 codes `[n, k]`, `w_scale` `[ceil(n/128), ceil(k/128)]` (the checkpoint's
/// `weight_scale_inv`, which multiplies despite its name), `y` `[m, n]`; the last block of either
/// axis may be partial. The model rounds y to bf16; here it is f32.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
pub fn linear_fp8(
    x: ArrayView2<f32>,
    w: ArrayView2<u8>,
    w_scale: ArrayView2<f32>,
    fmt: ScaleFmt,
) -> Result<Array2<f32>> {
    let ((m, k), n) = (x.dim(), w.nrows());
    check_shape("w", w.shape(), &[n, k])?;
    check_shape("w_scale", w_scale.shape(), &[n.div_ceil(BLOCK), k.div_ceil(BLOCK)])?;
    let a = act_quant(x, BLOCK, fmt)?;
    let q = a.codes.mapv(e4m3_decode); // [m, k]
    let w = w.mapv(e4m3_decode); // [n, k]
    let mut y = Array2::zeros((m, n)); // [m, n]
    for ((t, n), y) in y.indexed_iter_mut() {
        let mut sum = 0.0f64;
        for b in 0..w_scale.ncols() {
            let columns = Slice::from(b * BLOCK..((b + 1) * BLOCK).min(k));
            let (q, w) = (q.row(t), w.row(n)); // [k], [k]
            let block = dot(q.slice_axis(Axis(0), columns), w.slice_axis(Axis(0), columns));
            sum += block * (f64::from(a.scale[(t, b)]) * f64::from(w_scale[(n / BLOCK, b)]));
        }
        *y = sum as f32;
    }
    Ok(y)
}
