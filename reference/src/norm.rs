//! The two norms of the model: RMSNorm for hidden states and latents, LayerNorm for indexer keys.
//!
//! Source: the demo's `RMSNorm` and `LayerNorm`, both f32 in the model with eps 1e-6. The
//! indexer's `k_norm` subtracts the mean and has a bias; taking it for an RMSNorm is a usual slip.
use crate::error::{Result, check_shape};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

/// `y = weight · x / √(mean(x²) + eps)` of each row of `x` `[n, dim]`; `weight` `[dim]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `weight` is not `[dim]`.
pub fn rms_norm(x: ArrayView2<f32>, weight: ArrayView1<f32>, eps: f64) -> Result<Array2<f32>> {
    let (n, dim) = x.dim();
    check_shape("weight", weight.shape(), &[dim])?;
    let mut y = Array2::zeros((n, dim)); // [n, dim]
    for (x, mut y) in x.axis_iter(Axis(0)).zip(y.axis_iter_mut(Axis(0))) {
        let mean_square = mean(x.iter().map(|&x| f64::from(x).powi(2)), dim);
        let r = (mean_square + eps).sqrt().recip();
        for i in 0..dim {
            y[i] = (f64::from(weight[i]) * f64::from(x[i]) * r) as f32;
        }
    }
    Ok(y)
}

/// `y = weight · (x − mean) / √(var + eps) + bias` of each row of `x` `[n, dim]`; `weight` and
/// `bias` `[dim]`; var is the mean of the squared deviations.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `weight` or `bias` is not `[dim]`.
pub fn layer_norm(
    x: ArrayView2<f32>,
    weight: ArrayView1<f32>,
    bias: ArrayView1<f32>,
    eps: f64,
) -> Result<Array2<f32>> {
    let (n, dim) = x.dim();
    check_shape("weight", weight.shape(), &[dim])?;
    check_shape("bias", bias.shape(), &[dim])?;
    let mut y = Array2::zeros((n, dim)); // [n, dim]
    for (x, mut y) in x.axis_iter(Axis(0)).zip(y.axis_iter_mut(Axis(0))) {
        let mu = mean(x.iter().map(|&x| f64::from(x)), dim);
        let var = mean(x.iter().map(|&x| (f64::from(x) - mu).powi(2)), dim);
        let r = (var + eps).sqrt().recip();
        for i in 0..dim {
            let centred = (f64::from(x[i]) - mu) * r;
            y[i] = (f64::from(weight[i]) * centred + f64::from(bias[i])) as f32;
        }
    }
    Ok(y)
}

/// Mean of `dim` values.
fn mean(values: impl Iterator<Item = f64>, dim: usize) -> f64 {
    values.sum::<f64>() / dim as f64
}
