//! Numbers at the ends of what a type holds, and those that are none.
//!
//! Where the order of a sum decides whether it leaves f32's range on its way (inf against NaN) or which of two scores
//! is larger, there is no right answer: each generator here says how it stays clear of that.

use crate::case::HostTensor;
use dsa_kernels::DType;
use dsa_kernels::random::Rng;

/// Powers of two by which numbers of `dtype` are made huge, or tiny: normal numbers of them stay finite and normal.
fn reach(dtype: DType) -> i32 {
    match dtype {
        DType::F32 | DType::Bf16 => 115,
        DType::F16 => 11,
        _ => 6,
    }
}

/// A number that a sum does not survive, or hardly.
fn special(rng: &mut Rng) -> f32 {
    rng.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0])
}

/// Rows (along the last axis) each of ordinary, huge, tiny or mixed numbers, or with specials strewn in.
pub(super) fn rows(rng: &mut Rng, dtype: DType, shape: &[usize]) -> HostTensor {
    rows_within(rng, dtype, shape, reach(dtype))
}

/// [`rows`] of at most about `2^most` and at least about `2^-most`.
///
/// For sums of products: with `most` a third of f32's 127 at each factor no partial sum of finite terms overflows,
/// in whatever order, so that an infinity or NaN in a result is there because it is in the terms.
pub(crate) fn rows_within(rng: &mut Rng, dtype: DType, shape: &[usize], most: i32) -> HostTensor {
    let most = most.min(reach(dtype));
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let mut values = vec![0.0; shape.iter().product()];
    for row in values.chunks_mut(cols) {
        let kind = rng.below(6);
        let exponent = most / 2 + rng.below(1 + most as usize / 2) as i32;
        for value in row {
            *value = rng.normal()
                * match kind {
                    0 => 2f32.powi(exponent),
                    1 => 2f32.powi(-exponent),
                    2 => 2f32.powi(rng.below(2 * most as usize + 1) as i32 - most),
                    _ => 1.0,
                };
            if kind == 3 && rng.one_in(8) {
                *value = special(rng);
            }
        }
    }
    HostTensor::new(dtype, shape, &values)
}

/// Finite numbers of one magnitude, ordinary, huge or tiny: for what multiplies a row of any magnitudes, where a
/// term too small for f32 times a factor too large for it would be a matter of the order.
pub(crate) fn even(rng: &mut Rng, dtype: DType, shape: &[usize]) -> HostTensor {
    let most = reach(dtype);
    let by = 2f32.powi(rng.choose(&[0, 0, most, -most]));
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() * by).collect();
    HostTensor::new(dtype, shape, &values)
}

/// What the rows of keys or values are made of, beside ordinary numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Huge and tiny rows, too.
    pub scaled: bool,
    /// Rows with NaN, infinities and zeros, too.
    pub special: bool,
}

/// Queries `[.., d]` of whole numbers from -2 to 2, whose last element is `last` in every row.
///
/// Together with [`keys`] every score is exact in f32, however large: so it does not depend on the order of a sum
/// which of two large scores wins, or whether they are equal.
pub(super) fn queries(rng: &mut Rng, dtype: DType, shape: &[usize], last: f32) -> HostTensor {
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let mut values: Vec<f32> = (0..shape.iter().product()).map(|_| whole(rng)).collect();
    values.chunks_mut(cols).for_each(|row| row[cols - 1] = last);
    HostTensor::new(dtype, shape, &values)
}

/// Keys, or values, `[.., d]`: rows of whole numbers from -2 to 2, times a power of two where they are `scaled`,
/// with specials where they are `special`: half of those rows have only their last element infinite, so that with
/// [`queries`] their score is -inf, or +inf, for all heads.
pub(super) fn keys(rng: &mut Rng, dtype: DType, shape: &[usize], of: Rows) -> HostTensor {
    let cols = shape.last().copied().unwrap_or(1).max(1);
    // Of f16 the product with a query still fits.
    let far = if reach(dtype) > 60 { 60 } else { 6 };
    let mut values = vec![0.0; shape.iter().product()];
    // Mostly infinities of the sign that leaves a key out: any other spoils its rows.
    let spoiling = rng.one_in(3);
    for row in values.chunks_mut(cols) {
        let by = match rng.below(8) {
            0 if of.scaled => 2f32.powi(far),
            1 if of.scaled => 2f32.powi(-far),
            _ => 1.0,
        };
        row.fill_with(|| whole(rng) * by);
        if of.special && rng.one_in(10) {
            if spoiling && rng.one_in(2) {
                let at = rng.below(cols);
                row[at] = special(rng);
            } else {
                row[cols - 1] = f32::NEG_INFINITY;
            }
        }
    }
    HostTensor::new(dtype, shape, &values)
}

fn whole(rng: &mut Rng) -> f32 {
    rng.below(5) as f32 - 2.0
}
