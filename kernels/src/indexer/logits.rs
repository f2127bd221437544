//! Writing the indexer's logits.

use super::keys::{IndexTiles, KeyRanges, Queries, Span};
use crate::tile::*;
use cubecl::prelude::*;

/// Which logits of a tile this lane writes. The lanes that hold the products of a key share them out, one for each
/// query of the tile: of the tile's key `row` and of a query, if it `exists`, that sees the keys of `ranges` and whose
/// logits begin at `at`.
#[derive(CubeType)]
pub(super) struct LaneLogits {
    pub row: Array<usize>,
    pub ranges: RowRanges,
    pub at: Array<usize>,
    pub exists: Array<bool>,
    /// Logits of a key: queries of a tile.
    #[cube(comptime)]
    queries: usize,
    #[cube(comptime)]
    layout: Layout,
}

/// The logits of one tile that a lane writes: of which key, its scale, and whether the query has `seen` it.
#[derive(CubeType)]
pub(super) struct TileLogits {
    pub key: Array<usize>,
    pub scale: Array<f32>,
    pub seen: Array<bool>,
}

#[cube]
impl LaneLogits {
    /// Those of the `count` queries from the `first`-th of the request, the `t0`-th of all, on, of at most
    /// `queries` in a tile.
    pub fn new<E: Numeric, N: Size>(
        ranges: &KeyRanges<'_>,
        on: &Queries<'_, E, N>,
        logits_row: usize,
        #[comptime] queries: usize,
        #[comptime] layout: Layout,
    ) -> Self {
        let pairs = comptime![layout.own_rows() * queries];
        let owned = comptime![pairs.div_ceil(layout.lanes())];
        let mut own = LaneLogits {
            row: Array::new(owned),
            ranges: RowRanges::new(owned),
            at: Array::new(owned),
            exists: Array::new(owned),
            queries,
            layout,
        };
        #[unroll(layout.unrolled())]
        for i in 0..owned {
            let pair = i * comptime![layout.lanes()] + lane_of(layout);
            let exists = pair < pairs;
            // Lanes that are left over look at what others write, so that what they read exists.
            let pair = pair % pairs;
            let t = pair % queries;
            let (start, end) = ranges.of(on.first + t);
            own.row[i] = row_of(pair / queries, layout);
            own.ranges.start[i] = start as i32;
            own.ranges.end[i] = end as i32;
            own.at[i] = on.row(t) * logits_row;
            own.exists[i] = exists && t < on.count;
        }
        own
    }

    /// What there is to know of this lane's logits of the `n`-th tile.
    pub fn of_tile<E: Numeric, N: Size, B: Size, S: Numeric>(
        &self,
        keys: &IndexTiles<'_, E, N, B, S>,
        n: usize,
    ) -> TileLogits {
        let layout = comptime![self.layout];
        let owned = self.row.len();
        let mut own = TileLogits {
            key: Array::new(owned),
            scale: Array::new(owned),
            seen: Array::new(owned),
        };
        #[unroll(layout.unrolled())]
        for i in 0..owned {
            let key = keys.first_of(n) + self.row[i];
            let (scale, exists) = keys.scale(n, self.row[i]);
            own.key[i] = key;
            own.scale[i] = scale;
            own.seen[i] = exists && self.ranges.see(i, key as i32);
        }
        own
    }

    /// The `i`-th of this lane's logits, not yet scaled, from every lane's part `sums` of the sum over the heads,
    /// entry `own · queries + t`. All lanes call it.
    pub fn sum(&self, sums: &Array<f32>, i: usize) -> f32 {
        let layout = comptime![self.layout];
        let pairs = comptime![layout.own_rows() * self.queries];
        scatter_sums(sums, i * comptime![layout.lanes()], pairs, layout)
    }
}

/// Writes -inf to the logits of `queries` of the keys of `span` that no tile of it has.
#[cube]
pub(super) fn fill_unseen<E: Numeric, N: Size>(
    logits: &mut View<f32>,
    queries: &Queries<'_, E, N>,
    span: &Span,
    #[comptime] machine: Machine,
) {
    for t in 0..queries.count {
        let row = queries.row(t) * logits.stride(0);
        fill(&mut logits.data, row + span.start, row + span.first, machine);
        fill(&mut logits.data, row + span.last, row + span.end, machine);
    }
}

/// Writes -inf to `logits[from .. to]`.
#[cube]
fn fill(logits: &mut [f32], from: usize, to: usize, #[comptime] machine: Machine) {
    let team = comptime![machine.team];
    for step in 0..(to - from).div_ceil(team) {
        let at = from + step * team + unit_id(machine);
        if at < to {
            logits[at] = f32::NEG_INFINITY;
        }
    }
}
