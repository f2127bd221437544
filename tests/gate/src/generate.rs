//! Inputs chosen to break kernels: shapes that fit no tile, ties, plateaus, signed zeros, infinities, NaN,
//! empty and reversed ranges, bad indices, poison in every place that must not be read.

use crate::case::{GAPS, HostTensor};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;
use proptest::prelude::*;

pub(crate) mod extreme;
mod form;

pub(crate) use form::Exactly;
pub use form::{Form, Forms, Model};

/// Columns of a result that are so few that all of a row may cancel: what is left of it would be held against itself.
pub(crate) const FEW_COLUMNS: usize = 64;

/// Makes the first `cols` elements of each row positive, so that sums of them do not cancel.
pub(crate) fn make_positive(tensor: &mut HostTensor, cols: usize) {
    let row = tensor.shape.last().copied().unwrap_or(1).max(1);
    let mut values = tensor.to_f32();
    for row in values.chunks_mut(row) {
        row.iter_mut().take(cols).for_each(|value| *value = value.abs());
    }
    *tensor = HostTensor::new(tensor.dtype, &tensor.shape.clone(), &values);
}

/// What values a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Normal, deviation 1.
    Normal,
    /// Normal over ten, as FlashMLA's tests.
    Tenth,
    /// Whole numbers from -2 to 2: many exact ties.
    Ties,
    /// Mostly zeros of either sign.
    Zeros,
    /// Normal, with single elements a thousand times larger.
    Outliers,
    /// From 1e-6 to 1e6 in magnitude.
    Wide,
    /// Normal with NaN, infinities and signed zeros strewn in.
    Special,
    /// Rows that are huge, tiny, of mixed magnitudes, ordinary, or with specials strewn in.
    Extreme,
}

impl Fill {
    fn value(self, rng: &mut Rng) -> f32 {
        match self {
            Self::Normal => rng.normal(),
            Self::Tenth => rng.normal() / 10.0,
            Self::Ties => rng.below(5) as f32 - 2.0,
            Self::Zeros if rng.one_in(8) => rng.normal(),
            Self::Zeros => [0.0, -0.0][rng.below(2)],
            Self::Outliers => rng.normal() * if rng.one_in(40) { 1000.0 } else { 1.0 },
            Self::Wide => rng.normal() * 10f32.powi(rng.below(13) as i32 - 6),
            // In a tensor it is made by rows.
            Self::Special | Self::Extreme => match rng.below(12) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3 => -0.0,
                4 => 0.0,
                _ => rng.normal(),
            },
        }
    }
}

/// A tensor of `fill`.
pub fn tensor(rng: &mut Rng, dtype: DType, shape: &[usize], fill: Fill) -> HostTensor {
    if fill == Fill::Extreme {
        return extreme::rows(rng, dtype, shape);
    }
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| fill.value(rng)).collect();
    HostTensor::new(dtype, shape, &values)
}

/// What rows of any kind are drawn from.
pub(crate) const ALL_FILLS: [Fill; 7] = [
    Fill::Normal,
    Fill::Tenth,
    Fill::Ties,
    Fill::Zeros,
    Fill::Outliers,
    Fill::Extreme,
    Fill::Extreme,
];

/// Any of the types of activations.
pub(crate) fn float() -> impl Strategy<Value = DType> {
    proptest::sample::select(&DType::FLOATS[..])
}

/// Any gap, every other time none.
pub(crate) fn gap() -> impl Strategy<Value = &'static str> {
    (0..GAPS.len() + 1).prop_map(|nth| GAPS[nth.saturating_sub(1)].0)
}

/// Half-open ranges within and beyond `0..n`: whole, causal, random, empty, reversed, out of bounds.
pub(crate) fn ranges(rng: &mut Rng, rows: usize, n: usize) -> (HostTensor, HostTensor) {
    let kind = rng.below(4);
    let (mut ks, mut ke) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let (start, end) = match kind {
            0 => (0, n as i64),
            1 => (0, (n + row + 1) as i64 - rows as i64),
            2 => (rng.below(n + 1) as i64, rng.below(n + 1) as i64),
            _ => {
                (rng.below(2 * n + 2) as i64 - 1 - (n / 2) as i64, rng.below(3 * n + 2) as i64 - 1)
            }
        };
        let extreme = rng.below(40);
        ks.push(if extreme == 0 { i32::MIN } else { start as i32 });
        ke.push(if extreme == 1 { i32::MAX } else { end as i32 });
    }
    (HostTensor::i32(&[rows], &ks), HostTensor::i32(&[rows], &ke))
}

/// Indices that FlashMLA's tests use for "no key", beside -1.
const BAD_INDICES: [i32; 8] =
    [-1, i32::MIN, -123_456, i32::MAX, 114_514, 1_919_810, 2_147_480_000, -2];

/// Index lists over `n_rows`: distinct rows in random order, with bad indices strewn in; some rows of the
/// list entirely bad.
pub(crate) fn index_lists(rng: &mut Rng, s: usize, topk: usize, n_rows: usize) -> Vec<i32> {
    let mut all = Vec::with_capacity(s * topk);
    for _ in 0..s {
        let empty = rng.one_in(8);
        let bad_one_in = [2, 5, 1_000_000][rng.below(3)];
        let mut order: Vec<Option<usize>> = (0..n_rows).map(Some).collect();
        // A list that is longer than there are rows has them anywhere, or all before its end.
        if rng.one_in(2) {
            order.resize(topk.max(n_rows), None);
        }
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        for j in 0..topk {
            let row = order.get(j).copied().flatten();
            let row = row.filter(|_| !empty && !rng.one_in(bad_one_in));
            let mut index = BAD_INDICES[rng.below(BAD_INDICES.len())];
            if index == 114_514 && rng.one_in(2) {
                index = n_rows as i32;
            }
            all.push(row.map_or(index, |row| row as i32));
        }
    }
    all
}

/// Fills with NaN every row that no list names.
pub(crate) fn poison_unused(tensor: &mut HostTensor, cols: usize, indices: &[i32]) {
    let bytes = cols * tensor.dtype.size();
    for (row, chunk) in tensor.bytes.chunks_mut(bytes.max(1)).enumerate() {
        if !indices.contains(&(row as i32)) {
            chunk.fill(0xff);
        }
    }
}

/// Slots of a cache, some of them out of range, and in half of the cases some for several rows.
pub(crate) fn slots(rng: &mut Rng, n: usize, n_slots: usize) -> HostTensor {
    let mut order: Vec<i32> = (0..n_slots as i32).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    let mut values: Vec<i32> = Vec::with_capacity(n);
    let crowded = rng.one_in(2);
    for i in 0..n {
        values.push(match order.get(i) {
            Some(_) if crowded && i > 0 && rng.one_in(2) => values[rng.below(i)],
            Some(slot) if !rng.one_in(10) => *slot,
            _ => [-1, i32::MIN, n_slots as i32, i32::MAX][rng.below(4)],
        });
    }
    HostTensor::i32(&[n], &values)
}
