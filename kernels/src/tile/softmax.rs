//! The online softmax of flash attention (Milakov and Gimelshein 2018; Dao et al. 2022): running row
//! maxima and sums, so that scores are seen once, a tile at a time.

use super::fragment::{
    Fragment, Layout, group_of, lane_of, max_cell, max_lanes, row_of, sum_cell, sum_lanes,
};
use super::machine::{Machine, Part, Piece, sync_team, team_memory};
use super::nvptx::{exp2_fast, reciprocal_fast};
use cubecl::prelude::*;

/// What is known of each row after some tiles of scores: the largest score, and of each unit's own part
/// of the row the sum of `exp(softmax_scale · (score - largest))`. One entry for each row of the unit's own.
#[derive(CubeType)]
pub struct OnlineSoftmax {
    top: Array<f32>,
    sum: Array<f32>,
    softmax_scale: f32,
    /// One number of each row for each of the warpgroups that share it.
    exchange: Shared<[f32]>,
    #[cube(comptime)]
    layout: Layout,
}

impl OnlineSoftmax {
    /// The team memory of one of scores laid out as `layout`.
    pub fn piece(layout: Layout) -> Piece {
        Piece { bytes: exchanged(layout) * size_of::<f32>(), alignment: ALIGNMENT }
    }
}

/// Where the numbers that groups exchange begin.
const ALIGNMENT: usize = 16;

/// How many these are; one that nobody reads if no groups share a row.
fn exchanged(layout: Layout) -> usize {
    if layout.across() == 1 { 1 } else { layout.across() * layout.rows }
}

#[cube]
impl OnlineSoftmax {
    /// No score seen. `softmax_scale`, the factor of the scores, is positive.
    pub fn new(softmax_scale: f32, #[comptime] layout: Layout) -> Self {
        let top = Array::<f32>::new(comptime![layout.own_rows()]);
        let sum = Array::<f32>::new(comptime![layout.own_rows()]);
        let numbers = comptime![exchanged(layout)];
        let exchange = team_memory::<f32>(numbers, ALIGNMENT, comptime![layout.machine]);
        let mut softmax = OnlineSoftmax { top, sum, softmax_scale, exchange, layout };
        softmax.clear();
        softmax
    }

    /// Forgets all scores.
    pub fn clear(&mut self) {
        let layout = comptime![self.layout];
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            self.top[own] = f32::NEG_INFINITY;
            self.sum[own] = 0.0f32;
        }
    }

    /// Takes in a tile of scores (not yet scaled; -inf where there is no key), turns it into
    /// probabilities relative to the new maxima, and rescales `acc` from the old maxima to the new.
    pub fn step<W: Size>(&mut self, scores: &mut Fragment<W>, acc: &mut Fragment<W>) {
        let layout = comptime![self.layout];
        let factors = self.raise(&*scores);
        self.exponentiate(scores, comptime![Part::WHOLE]);
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            acc.scale_row(own, factors[own]);
        }
    }

    /// The first half of [`OnlineSoftmax::step`]: raises the maxima to those of a tile of scores, and returns what
    /// each of the unit's rows of probabilities so far is to be multiplied by.
    ///
    /// The maximum starts at -inf, so that any finite score counts, however low; a row that has seen
    /// no key subtracts 0 instead, since -inf - -inf is NaN. A score that is NaN makes the maximum NaN, and all
    /// of the row.
    pub fn raise<W: Size>(&mut self, scores: &Fragment<W>) -> Array<f32> {
        let layout = comptime![self.layout];
        let mut tops = Array::<f32>::new(comptime![layout.own_rows()]);
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let mut tile_top = scores.get(own, 0usize);
            #[unroll(layout.unrolled())]
            for cell in 1..comptime![layout.run()] {
                tile_top = max_nan(tile_top, scores.get(own, cell));
            }
            tops[own] = max_lanes(max_cell(tile_top), layout);
        }
        if comptime![layout.across() > 1] {
            publish(&mut self.exchange, &tops, layout);
            #[unroll]
            for own in 0..comptime![layout.own_rows()] {
                let row = row_of(own, layout);
                #[unroll]
                for group in 0..comptime![layout.across()] {
                    let other = self.exchange[group * layout.rows + row];
                    tops[own] = max_nan(tops[own], other);
                }
            }
        }
        let mut factors = Array::<f32>::new(comptime![layout.own_rows()]);
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let old = self.top[own];
            let top = max_nan(old, tops[own]);
            let old = Vector::<f32, Const<1>>::new(old);
            let factor = exp_of(old, shift_of(top), self.softmax_scale, layout).extract(0usize);
            self.top[own] = top;
            self.sum[own] *= factor;
            factors[own] = factor;
        }
        factors
    }

    /// The second half of [`OnlineSoftmax::step`], of a part of each row's cells: turns scores that
    /// [`OnlineSoftmax::raise`] has seen into probabilities.
    pub fn exponentiate<W: Size>(&mut self, scores: &mut Fragment<W>, #[comptime] part: Part) {
        let layout = comptime![self.layout];
        let (first, count) = comptime![(part.first(layout.run()), part.count(layout.run()))];
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let shift = shift_of(self.top[own]);
            let mut sum = Vector::<f32, W>::new(0.0f32);
            #[unroll(layout.unrolled())]
            for cell in 0..count {
                let cell = first + cell;
                let p = exp_of(scores.get(own, cell), shift, self.softmax_scale, layout);
                sum += p;
                scores.set(own, cell, p);
            }
            self.sum[own] += sum_cell(sum);
        }
    }

    /// Adds up the parts of each row; after the last step, before anything is read.
    ///
    /// A score is an f32 once it is scaled: beyond the range it is an infinity. If the largest is +inf the row is
    /// NaN, if it is -inf the row has no key.
    pub fn finish(&mut self) {
        let layout = comptime![self.layout];
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            self.sum[own] = sum_lanes(self.sum[own], layout);
        }
        if comptime![layout.across() > 1] {
            sync_team(comptime![layout.machine]);
            publish(&mut self.exchange, &self.sum, layout);
            #[unroll]
            for own in 0..comptime![layout.own_rows()] {
                let row = row_of(own, layout);
                let mut sum = 0.0f32.runtime();
                #[unroll]
                for group in 0..comptime![layout.across()] {
                    sum += self.exchange[group * layout.rows + row];
                }
                self.sum[own] = sum;
            }
        }
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let top = self.max_logit(own);
            let sum = select(top == f32::INFINITY, f32::NAN, self.sum[own]);
            self.sum[own] = select(top == f32::NEG_INFINITY, 0.0f32, sum);
        }
    }

    /// Whether the `own`-th row is made of numbers: not if a score was NaN or +inf.
    pub fn is_known(&self, own: usize) -> bool {
        !self.sum[own].is_nan()
    }

    /// The largest score of the `own`-th row; -inf if it has seen no key.
    pub fn max_logit(&self, own: usize) -> f32 {
        self.top[own] * self.softmax_scale
    }

    /// What `acc`'s row is multiplied by: 1 over the sum of the probabilities; 0 for a row without a key.
    pub fn normaliser(&self, own: usize) -> f32 {
        let sum = self.sum[own];
        select(sum == 0.0f32, 0.0f32, reciprocal(sum, self.layout.machine))
    }

    /// The natural logarithm of the sum of exponentials of the `own`-th row; +inf if it has seen no key
    /// (FlashMLA's convention).
    pub fn lse(&self, own: usize) -> f32 {
        self.lse_beyond(own, self.max_logit(own))
    }

    /// [`OnlineSoftmax::lse`] where the largest score counts as `max_logit`: 0 for what the others add to it.
    pub fn lse_beyond(&self, own: usize, max_logit: f32) -> f32 {
        select(self.sum[own] == 0.0f32, f32::INFINITY, max_logit + self.sum[own].ln())
    }
}

/// `1 / x`; on a machine of fast mathematics to 1 unit in the last place.
#[cube]
pub fn reciprocal(x: f32, #[comptime] machine: Machine) -> f32 {
    if comptime![machine.can().fast_math] { reciprocal_fast(x) } else { 1.0f32 / x }
}

/// What is subtracted from the scores of a row whose largest is `top`.
#[cube]
fn shift_of(top: f32) -> f32 {
    select(top == f32::NEG_INFINITY, 0.0f32, top)
}

/// `exp(softmax_scale · (score - shift))`.
#[cube]
fn exp_of<W: Size>(
    score: Vector<f32, W>,
    shift: f32,
    softmax_scale: f32,
    #[comptime] layout: Layout,
) -> Vector<f32, W> {
    if comptime![layout.machine.can().fast_math] {
        // The difference first: the products of large scores leave f32's range, or differ by their rounding. The
        // unit that computes powers of two is the slower one, and hides it.
        let scale = softmax_scale * core::f32::consts::LOG2_E;
        Vector::new(exp2_fast((score.extract(0usize) - shift) * scale))
    } else {
        ((score - Vector::new(shift)) * Vector::new(softmax_scale)).exp()
    }
}

/// Lets the warpgroups that share a row see each other's number of it, one of each own row.
#[cube]
fn publish(exchange: &mut Shared<[f32]>, numbers: &Array<f32>, #[comptime] layout: Layout) {
    #[unroll]
    for own in 0..comptime![layout.own_rows()] {
        if lane_of(layout) & 3 == 0 {
            exchange[group_of(layout) * layout.rows + row_of(own, layout)] = numbers[own];
        }
    }
    sync_team(comptime![layout.machine]);
}
