//! Writing the indexer's logits.

use super::keys::KeyRanges;
use crate::tile::*;
use cubecl::prelude::*;

/// The logits of each tile that this unit writes. The lanes that hold the products of a key share them out, one
/// for each query of the tile: of the tile's key `row` and of a query, if it `exists`, that sees the keys
/// `start .. end` and whose logits begin at `at`.
#[derive(CubeType)]
pub(super) struct OwnLogits {
    pub row: Array<usize>,
    pub start: Array<usize>,
    pub end: Array<usize>,
    pub at: Array<usize>,
    pub exists: Array<bool>,
    /// Logits of a key: queries of a tile.
    #[cube(comptime)]
    queries: usize,
    #[cube(comptime)]
    share: Share,
}

#[cube]
impl OwnLogits {
    /// Those of the `count` queries from the `first`-th of the request, the `t0`-th of all, on, of at most
    /// `queries` in a tile.
    pub fn new(
        ranges: &KeyRanges<'_>,
        first: usize,
        t0: usize,
        count: usize,
        logits_row: usize,
        #[comptime] queries: usize,
        #[comptime] share: Share,
    ) -> Self {
        let pairs = comptime![share.slots() * queries];
        let owned = comptime![pairs.div_ceil(share.lanes())];
        let mut own = OwnLogits {
            row: Array::new(owned),
            start: Array::new(owned),
            end: Array::new(owned),
            at: Array::new(owned),
            exists: Array::new(owned),
            queries,
            share,
        };
        #[unroll(share.unrolled())]
        for i in 0..owned {
            let pair = i * comptime![share.lanes()] + lane_of(share);
            let t = pair % queries;
            let (start, end) = ranges.of(first + t);
            own.row[i] = row_of(pair / queries, share);
            own.start[i] = start;
            own.end[i] = end;
            own.at[i] = (t0 + t) * logits_row;
            own.exists[i] = pair < pairs && t < count;
        }
        own
    }

    /// The `i`-th of this unit's logits, not yet scaled, from every lane's part `sums` of the sum over the heads,
    /// entry `slot · queries + t`. All lanes call it.
    pub fn sum(&self, sums: &Array<f32>, i: usize) -> f32 {
        let share = comptime![self.share];
        let pairs = comptime![share.slots() * self.queries];
        scatter_sums(sums, i * comptime![share.lanes()], pairs, share)
    }
}

/// Writes -inf to `logits[from .. to]`.
#[cube]
pub(super) fn fill_unseen(
    logits: &mut [f32],
    from: usize,
    to: usize,
    #[comptime] machine: Machine,
) {
    let team = comptime![machine.team];
    for step in 0..(to - from).div_ceil(team) {
        let at = from + step * team + unit_id(machine);
        if at < to {
            logits[at] = f32::NEG_INFINITY;
        }
    }
}
