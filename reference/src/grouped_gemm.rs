//! Products of tokens with the weights of their experts, the pairs of both sorted by expert.
//!
//! Source: the loop over experts in `MoE` of the DeepSeek-V3.2-Exp inference demo.
use crate::error::{Result, check_shape, check_value};
use crate::linear::{linear, linear_fp8};
use crate::math::key;
use crate::quant::ScaleFmt;
use crate::weight::Weight;
use ndarray::{Array2, ArrayView2, Axis};

/// Which rows of x the pairs take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// That of their token: pair `t · top_k + j` is token t with the j-th of its experts.
    Tokens {
        /// Experts of a token.
        top_k: usize,
    },
    /// Their own: x is in the order of the pairs.
    Pairs,
}

/// `y[i] = x[row of pair order[i]]·w[e]ᵀ`, where e is the first expert with `i < ends[e]`.
///
/// `x` `[n, k]`, or `[pairs, k]`; `w` `[experts]` of `[m, k]`; `order` `[pairs]`; `ends` `[experts]`, ascending;
/// `y` `[pairs, m]`. With 8-bit weights x is quantised as in [`linear_fp8`]. Pairs behind the last end, and pairs that
/// name no token, are rows of zeros.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together; [`Error::Value`](crate::Error::Value)
/// without a weight, or a `top_k` of 0.
pub fn grouped_gemm(
    x: ArrayView2<f32>,
    w: &[Weight],
    order: &[i32],
    ends: &[i32],
    rows: Rows,
    fmt: ScaleFmt,
) -> Result<Array2<f32>> {
    check_shape("ends", &[ends.len()], &[w.len()])?;
    check_value("experts", w.len(), "at least 1", !w.is_empty())?;
    check_value("top_k", 0, "at least 1", rows != Rows::Tokens { top_k: 0 })?;
    let m = w.iter().map(|w| w.shape()[0]).max().unwrap_or(0);
    let mut y = Array2::zeros((order.len(), m)); // [pairs, m]
    let mut start = 0;
    for (w, &end) in w.iter().zip(ends) {
        check_shape("w", w.shape(), &[m, x.ncols()])?;
        let end = usize::try_from(end).unwrap_or(0).clamp(start, order.len());
        let row_of = |i: usize| match rows {
            Rows::Tokens { top_k } => {
                key(order[i], x.nrows().saturating_mul(top_k)).map(|pair| pair / top_k)
            }
            Rows::Pairs => (i < x.nrows()).then_some(i),
        };
        let (places, taken): (Vec<usize>, Vec<usize>) =
            (start..end).filter_map(|i| Some((i, row_of(i)?))).unzip(); // [the expert's]
        let x = x.select(Axis(0), &taken); // [the expert's, k]
        let out = match w {
            Weight::F32(w) => linear(x.view(), w.view()), // [the expert's, m]
            Weight::Fp8 { codes, scale } => {
                linear_fp8(x.view(), codes.view(), scale.view(), fmt)? // [the expert's, m]
            }
        };
        for (&i, out) in places.iter().zip(out.rows()) {
            y.row_mut(i).assign(&out);
        }
        start = end;
    }
    Ok(y)
}
