//! The residual's addition and the norm behind it, in one step.
//!
//! Source: `RMSNorm.forward(x, residual)` of the DeepSeek-V3.2-Exp inference demo. The norm sees the
//! sum before it is rounded; what goes on as the residual is rounded. (transformers rounds first.)
use crate::arithmetic::Arithmetic;
use crate::error::{Result, check_shape};
use crate::norm::rms_norm;
use ndarray::{Array2, ArrayView1, ArrayView2};

/// The norm's output and the new residual, both `[n, dim]`:
///
/// ```text
/// sum      = x + residual                               f32
/// y        = round( weight · sum / √(mean(sum²) + eps) )
/// residual = round( sum )
/// ```
/// `x` and `residual` `[n, dim]`, `weight` `[dim]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together.
pub fn add_rms_norm(
    x: ArrayView2<f32>,
    residual: ArrayView2<f32>,
    weight: ArrayView1<f32>,
    eps: f64,
    arithmetic: &Arithmetic,
) -> Result<(Array2<f32>, Array2<f32>)> {
    check_shape("residual", residual.shape(), x.shape())?;
    let sum = &x + &residual; // [n, dim]
    let y = arithmetic.rounded(rms_norm(sum.view(), weight, eps)?); // [n, dim]
    Ok((y, arithmetic.rounded(sum)))
}
