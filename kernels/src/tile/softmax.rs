//! The online softmax of flash attention (Milakov and Gimelshein 2018; Dao et al. 2022): running row
//! maxima and sums, so that scores are seen once, a tile at a time.

use super::{Fragment, Share, max_cell, max_lanes, sum_cell, sum_lanes};
use cubecl::prelude::*;

/// What is known of each row after some tiles of scores: the largest score and the sum of
/// `exp(score - largest)`. One entry per slot of the unit.
#[derive(CubeType)]
pub struct OnlineSoftmax {
    top: Array<f32>,
    sum: Array<f32>,
    #[cube(comptime)]
    share: Share,
}

#[cube]
impl OnlineSoftmax {
    /// No score seen.
    pub fn new(#[comptime] share: Share) -> Self {
        let mut top = Array::<f32>::new(comptime![share.slots()]);
        let mut sum = Array::<f32>::new(comptime![share.slots()]);
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            top[slot] = f32::NEG_INFINITY;
            sum[slot] = 0.0f32;
        }
        OnlineSoftmax { top, sum, share }
    }

    /// Takes in a tile of scores (already scaled; -inf where there is no key), turns it into
    /// probabilities relative to the new maxima, and rescales `acc` from the old maxima to the new.
    ///
    /// The maximum starts at -inf, so that any finite score counts, however low; a row that has seen
    /// no key subtracts 0 instead, since -inf - -inf is NaN.
    pub fn step<W: Size>(&mut self, scores: &mut Fragment<W>, acc: &mut Fragment<W>) {
        let share = comptime![self.share];
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            let mut tile_top = scores.get(slot, 0usize);
            #[unroll(share.unrolled())]
            for cell in 1..comptime![share.run()] {
                tile_top = max(tile_top, scores.get(slot, cell));
            }
            let old = self.top[slot];
            let top = max(old, max_lanes(max_cell(tile_top), share));
            let shift = select(top == f32::NEG_INFINITY, 0.0f32, top);
            let rescale = (old - shift).exp();

            let mut tile_sum = Vector::<f32, W>::new(0.0f32);
            #[unroll(share.unrolled())]
            for cell in 0..comptime![share.run()] {
                let p = (scores.get(slot, cell) - Vector::new(shift)).exp();
                tile_sum += p;
                scores.set(slot, cell, p);
            }
            self.top[slot] = top;
            self.sum[slot] = self.sum[slot] * rescale + sum_lanes(sum_cell(tile_sum), share);
            acc.scale_row(slot, rescale);
        }
    }

    /// The largest score of `slot`'s row; -inf if it has seen no key.
    pub fn max_logit(&self, slot: usize) -> f32 {
        self.top[slot]
    }

    /// What `acc`'s row is divided by: the sum of the probabilities, or infinity for a row without a
    /// key, which makes its output 0.
    pub fn denominator(&self, slot: usize) -> f32 {
        select(self.sum[slot] == 0.0f32, f32::INFINITY, self.sum[slot])
    }

    /// The natural logarithm of the sum of exponentials of `slot`'s row; +inf if it has seen no key
    /// (FlashMLA's convention).
    pub fn lse(&self, slot: usize) -> f32 {
        select(self.sum[slot] == 0.0f32, f32::INFINITY, self.top[slot] + self.sum[slot].ln())
    }
}
