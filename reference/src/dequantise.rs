//! Weights from the type they are stored in to the one they are multiplied in.
//!
//! Source: `weight_dequant` of the DeepSeek-V3.2-Exp inference demo.
use crate::error::{Result, check_shape};
use crate::linear::BLOCK;
use ndarray::{Array2, ArrayView2};

/// `out[i, j] = x[i, j] · scale[i / 128, j / 128]`, or x itself: `x` `[rows, cols]`, what its codes stand for; `scale`
/// `[ceil(rows / 128), ceil(cols / 128)]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the scales do not cover x.
pub fn dequantise(x: ArrayView2<f32>, scale: Option<ArrayView2<f32>>) -> Result<Array2<f32>> {
    let Some(scale) = scale else {
        return Ok(x.to_owned());
    };
    let (rows, cols) = x.dim();
    check_shape("scale", scale.shape(), &[rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)])?;
    Ok(Array2::from_shape_fn((rows, cols), |(i, j)| x[(i, j)] * scale[(i / BLOCK, j / BLOCK)])) // [rows, cols]
}
