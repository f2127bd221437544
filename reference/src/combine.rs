//! The sum over a token's experts, whose outputs lie in the order of the experts.
//!
//! Source: `MoE` of the DeepSeek-V3.2-Exp inference demo.
use crate::arithmetic::Arithmetic;
use crate::dispatch::Dispatch;
use crate::error::{Result, check_shape, check_value};
use crate::math::key;
use crate::router::Routing;
use ndarray::{Array2, ArrayView2};

/// `out[t] = round( Σ_e weights[t, e] · y[t, e] + shared[t] )`, f32, by ascending expert: `y` `[n · top_k, d]`, of which
/// row i belongs to pair `order[i]`, `shared` and out `[n, d]`.
///
/// An expert that a token lists twice counts twice; a pair of no expert, which comes behind the last end, is left out.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together; [`Error::Value`](crate::Error::Value) if
/// the dispatch names a pair that there is not.
pub fn combine(
    y: ArrayView2<f32>,
    dispatch: &Dispatch,
    routing: &Routing,
    shared: Option<ArrayView2<f32>>,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let (n, top_k) = routing.indices.dim();
    check_shape("weights", routing.weights.shape(), &[n, top_k])?;
    check_shape("y", y.shape(), &[n * top_k, y.ncols()])?;
    check_shape("order", &[dispatch.order.len()], &[n * top_k])?;
    let mut out = Array2::zeros((n, y.ncols())); // [n, d]
    let counted = dispatch.ends.last().map_or(0, |&end| usize::try_from(end).unwrap_or(0));
    for (&pair, y) in dispatch.order.iter().zip(y.rows()).take(counted) {
        let at = key(pair, n * top_k);
        check_value("pair", pair, "at least 0 and below n · top_k", at.is_some())?;
        if let Some(at) = at {
            let (token, slot) = (at / top_k, at % top_k);
            out.row_mut(token).scaled_add(routing.weights[(token, slot)], &y);
        }
    }
    if let Some(shared) = shared {
        check_shape("shared", shared.shape(), out.shape())?;
        out += &shared;
    }
    Ok(arithmetic.rounded(out))
}
