//! The online softmax of flash attention (Milakov and Gimelshein 2018; Dao et al. 2022): running row
//! maxima and sums, so that scores are seen once, a tile at a time.

use super::{
    Fragment, Machine, Share, exp2_fast, group_of, lane_of, max_cell, max_lanes, reciprocal_fast,
    row_of, sum_cell, sum_lanes, sync_team, team_memory,
};
use cubecl::prelude::*;

/// What is known of each row after some tiles of scores: the largest score, and of each unit's own part
/// of the row the sum of `exp(softmax_scale · (score - largest))`. One entry per slot of the unit.
#[derive(CubeType)]
pub struct OnlineSoftmax {
    top: Array<f32>,
    sum: Array<f32>,
    softmax_scale: f32,
    /// One number of each row for each of the warpgroups that share it.
    exchange: Shared<[f32]>,
    #[cube(comptime)]
    share: Share,
}

#[cube]
impl OnlineSoftmax {
    /// No score seen. `softmax_scale`, the factor of the scores, is positive.
    pub fn new(softmax_scale: f32, #[comptime] share: Share) -> Self {
        let top = Array::<f32>::new(comptime![share.slots()]);
        let sum = Array::<f32>::new(comptime![share.slots()]);
        let numbers = comptime![if share.across() == 1 { 1 } else { share.across() * share.rows }];
        let exchange = team_memory::<f32>(numbers, 16usize, comptime![share.machine]);
        let mut softmax = OnlineSoftmax { top, sum, softmax_scale, exchange, share };
        softmax.clear();
        softmax
    }

    /// Forgets all scores.
    pub fn clear(&mut self) {
        let share = comptime![self.share];
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            self.top[slot] = f32::NEG_INFINITY;
            self.sum[slot] = 0.0f32;
        }
    }

    /// Takes in a tile of scores (not yet scaled; -inf where there is no key), turns it into
    /// probabilities relative to the new maxima, and rescales `acc` from the old maxima to the new.
    ///
    /// The maximum starts at -inf, so that any finite score counts, however low; a row that has seen
    /// no key subtracts 0 instead, since -inf - -inf is NaN. A score that is NaN makes the maximum NaN, and all
    /// of the row.
    pub fn step<W: Size>(&mut self, scores: &mut Fragment<W>, acc: &mut Fragment<W>) {
        let share = comptime![self.share];
        let mut tops = Array::<f32>::new(comptime![share.slots()]);
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            let mut tile_top = scores.get(slot, 0usize);
            #[unroll(share.unrolled())]
            for cell in 1..comptime![share.run()] {
                tile_top = max_nan(tile_top, scores.get(slot, cell));
            }
            tops[slot] = max_lanes(max_cell(tile_top), share);
        }
        if comptime![share.across() > 1] {
            publish(&mut self.exchange, &tops, share);
            #[unroll]
            for slot in 0..comptime![share.slots()] {
                let row = row_of(slot, share);
                #[unroll]
                for group in 0..comptime![share.across()] {
                    let other = self.exchange[group * share.rows + row];
                    tops[slot] = max_nan(tops[slot], other);
                }
            }
        }
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            let old = self.top[slot];
            let top = max_nan(old, tops[slot]);
            let shift = select(top == f32::NEG_INFINITY, 0.0f32, top);
            let mut tile_sum = Vector::<f32, W>::new(0.0f32);
            #[unroll(share.unrolled())]
            for cell in 0..comptime![share.run()] {
                let p = exp_of::<W>(scores.get(slot, cell), shift, self.softmax_scale, share);
                tile_sum += p;
                scores.set(slot, cell, p);
            }
            let old = Vector::<f32, Const<1>>::new(old);
            let rescale = exp_of::<Const<1>>(old, shift, self.softmax_scale, share).extract(0usize);
            self.top[slot] = top;
            self.sum[slot] = self.sum[slot] * rescale + sum_cell(tile_sum);
            acc.scale_row(slot, rescale);
        }
    }

    /// Adds up the parts of each row; after the last step, before anything is read.
    ///
    /// A score is an f32 once it is scaled: beyond the range it is an infinity. If the largest is +inf the row is
    /// NaN, if it is -inf the row has no key.
    pub fn finish(&mut self) {
        let share = comptime![self.share];
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            self.sum[slot] = sum_lanes(self.sum[slot], share);
        }
        if comptime![share.across() > 1] {
            sync_team(comptime![share.machine]);
            publish(&mut self.exchange, &self.sum, share);
            #[unroll]
            for slot in 0..comptime![share.slots()] {
                let row = row_of(slot, share);
                let mut sum = 0.0f32.runtime();
                #[unroll]
                for group in 0..comptime![share.across()] {
                    sum += self.exchange[group * share.rows + row];
                }
                self.sum[slot] = sum;
            }
        }
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            let top = self.max_logit(slot);
            let sum = select(top == f32::INFINITY, f32::NAN, self.sum[slot]);
            self.sum[slot] = select(top == f32::NEG_INFINITY, 0.0f32, sum);
        }
    }

    /// Whether `slot`'s row is made of numbers: not if a score was NaN or +inf.
    pub fn is_known(&self, slot: usize) -> bool {
        !self.sum[slot].is_nan()
    }

    /// The largest score of `slot`'s row; -inf if it has seen no key.
    pub fn max_logit(&self, slot: usize) -> f32 {
        self.top[slot] * self.softmax_scale
    }

    /// What `acc`'s row is multiplied by: 1 over the sum of the probabilities; 0 for a row without a key.
    pub fn normaliser(&self, slot: usize) -> f32 {
        let sum = self.sum[slot];
        select(sum == 0.0f32, 0.0f32, reciprocal(sum, self.share.machine))
    }

    /// The natural logarithm of the sum of exponentials of `slot`'s row; +inf if it has seen no key
    /// (FlashMLA's convention).
    pub fn lse(&self, slot: usize) -> f32 {
        self.lse_beyond(slot, self.max_logit(slot))
    }

    /// [`OnlineSoftmax::lse`] where the largest score counts as `max_logit`: 0 for what the others add to it.
    pub fn lse_beyond(&self, slot: usize, max_logit: f32) -> f32 {
        select(self.sum[slot] == 0.0f32, f32::INFINITY, max_logit + self.sum[slot].ln())
    }
}

/// `1 / x`. On the matrix unit's machine by one instruction, to 1 unit in the last place: the exact one is a call
/// there, and a kernel that calls has its products serialised (`dsa emit` shows it).
#[cube]
pub fn reciprocal(x: f32, #[comptime] machine: Machine) -> f32 {
    if comptime![machine.is_wgmma()] { reciprocal_fast(x) } else { 1.0f32 / x }
}

/// `exp(softmax_scale · (score - shift))`.
#[cube]
fn exp_of<W: Size>(
    score: Vector<f32, W>,
    shift: f32,
    softmax_scale: f32,
    #[comptime] share: Share,
) -> Vector<f32, W> {
    if comptime![share.machine.is_wgmma()] {
        // The difference first: the products of large scores leave f32's range, or differ by their rounding. The
        // unit that computes powers of two is the slower one, and hides it.
        let scale = softmax_scale * core::f32::consts::LOG2_E;
        Vector::new(exp2_fast((score.extract(0usize) - shift) * scale))
    } else {
        ((score - Vector::new(shift)) * Vector::new(softmax_scale)).exp()
    }
}

/// Lets the warpgroups that share a row see each other's number of it, one of each slot.
#[cube]
fn publish(exchange: &mut Shared<[f32]>, numbers: &Array<f32>, #[comptime] share: Share) {
    #[unroll]
    for slot in 0..comptime![share.slots()] {
        if lane_of(share) & 3 == 0 {
            exchange[group_of(share) * share.rows + row_of(slot, share)] = numbers[slot];
        }
    }
    sync_team(comptime![share.machine]);
}
