//! Radix select over ranked columns: which are the best, and these in order.

use super::columns::*;
use crate::tile::*;
use cubecl::prelude::*;

/// Where a selection ends.
#[derive(CubeType)]
pub(crate) struct Last {
    /// A place of rank 1 at least, which as many columns reach as are wanted, or somewhat more.
    pub(crate) place: u64,
    /// How many columns reach it.
    pub(crate) reach: u32,
}

/// Bits of a place below its rank.
pub(crate) const COLUMN_BITS: u64 = 32;

/// Bits by which columns are told apart in one look at them all.
const DIGIT: u64 = 8;

/// The place of the last of the `wanted` best columns, `wanted` being at least 1, or a lower one that no more than
/// `slack` further columns reach; of fewer columns than `wanted`, one that all reach. Places are told apart by their
/// bits from `lowest_bit` on.
#[cube]
pub(crate) fn last_place<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    slack: u32,
    #[comptime] lowest_bit: u64,
    histogram: &mut Histogram,
) -> Last {
    let walk = columns.walk(start, end);
    let bounds = columns.bounds();
    // The bits that are known: those that all places begin with, and then those found. Of the columns that begin with
    // them `left` are still wanted.
    // There is at least one bit to look at, to count who reaches the place.
    let mut shift = max(shared_from(&bounds), lowest_bit + 1u64);
    let mut known = !((1u64 << shift) - 1u64);
    if shift == 64 {
        known = 0u64;
    }
    let mut found = bounds.low & known;
    let mut left = wanted;
    let mut above = 0u32.runtime();
    let mut count = 0u32.runtime();
    while shift > lowest_bit {
        let digit = min(shift - lowest_bit, DIGIT);
        shift -= digit;
        let mask = (1u64 << digit) - 1u64;
        histogram.clear();
        for step in walk.first..walk.end {
            for place in columns.load(step) {
                if rank_of(place) != 0 && (place & known) == found {
                    histogram.add(u32::cast_from((place >> shift) & mask));
                }
            }
        }
        let bin = histogram.find(left);
        found |= u64::cast_from(bin.number) << shift;
        known |= mask << shift;
        above += bin.above;
        count = bin.count;
        if bin.above + bin.count <= left + slack {
            // Hardly more than wanted: nothing more to tell apart.
            shift = lowest_bit.runtime();
        }
        left -= min(bin.above, left);
    }
    Last { place: max(found, place(1u32, 0xffff_ffffu32)), reach: above + count }
}

/// The bit from which on all places between `bounds` are alike; 64 if none is.
#[cube]
fn shared_from(bounds: &Bounds) -> u64 {
    let differ = bounds.low ^ bounds.high;
    let (high, low) = (u32::cast_from(differ >> 32u64), u32::cast_from(differ & 0xffff_ffffu64));
    let bits = select(high != 0, 64 - high.leading_zeros(), 32 - low.leading_zeros());
    u64::cast_from(bits)
}

/// The memory that [`write_best`] works in.
#[derive(CubeType)]
pub(crate) struct Tools {
    histogram: Histogram,
    marks: Marks,
    scan: TeamScan,
}

#[cube]
impl Tools {
    /// Arbitrary counts and marks: [`write_best`] clears them.
    pub(crate) fn new(#[comptime] machine: Machine) -> Self {
        Tools {
            histogram: Histogram::new(machine),
            marks: Marks::new(machine),
            scan: TeamScan::new(machine),
        }
    }
}

/// The columns to take beside the best of some: the first `wanted` of those of `row` that have the rank `rank`.
#[derive(CubeType)]
pub(crate) struct Equals<'a, N: Size> {
    pub(crate) row: Row<'a, N>,
    pub(crate) rank: u32,
    pub(crate) wanted: u32,
}

#[cube]
impl<'a, N: Size> Equals<'a, N> {
    /// `row` has one vector of each unit a step, so that units have columns in their order.
    pub(crate) fn new(row: Row<'a, N>, rank: u32, wanted: u32) -> Equals<'a, N> {
        Equals::<'a, N> { row, rank, wanted }
    }
}

/// Writes the `wanted` best of `columns`, and `equals`, ascending, to `out` from `at` on; returns how many there are.
#[cube]
pub(crate) fn write_best<C: Columns, N: Size>(
    columns: &C,
    equals: &Equals<'_, N>,
    start: u32,
    end: u32,
    wanted: u32,
    out: &mut [i32],
    at: usize,
    tools: &mut Tools,
) -> u32 {
    let mut last = place(1u32, 0xffff_ffffu32);
    if wanted > 0 {
        let found = last_place::<C>(columns, start, end, wanted, 0u32, 0u64, &mut tools.histogram);
        last = found.place;
    }
    let mut written = 0u32.runtime();
    let mut left = equals.wanted;
    // As many columns at a time as there are marks.
    let blocks = (end - start).div_ceil(MARKS as u32);
    for block in 0..blocks {
        let first = start + block * MARKS as u32;
        let limit = min(end - first, MARKS as u32);
        tools.marks.clear(limit);
        let walk = columns.walk(first, first + limit);
        for step in walk.first..walk.end {
            for place in columns.load(step) {
                // Columns before the block wrap to beyond it.
                let number = column_of(place) - first;
                if place >= last && number < limit {
                    tools.marks.insert(number);
                }
            }
        }
        if left > 0 {
            left -= mark_equals(equals, left, first, limit, tools);
        }
        written += tools.marks.write(limit, out, at + written as usize, first);
    }
    written
}

/// Marks the first `wanted` columns of the rank of `equals` among `first .. first + limit`; returns how many there were.
/// It reads no further than it must.
#[cube]
fn mark_equals<N: Size>(
    equals: &Equals<'_, N>,
    wanted: u32,
    first: u32,
    limit: u32,
    tools: &mut Tools,
) -> u32 {
    let walk = equals.row.walk(first, first + limit);
    let mut step = walk.first;
    let mut taken = 0u32.runtime();
    while step < walk.end && taken < wanted {
        let mut bits = equals.row.equal(step, equals.rank, first, limit);
        let counted = tools.scan.count(bits.count_ones());
        let mut nth = taken + counted.before;
        while bits != 0 && nth < wanted {
            tools.marks.insert(equals.row.column(step, bits.trailing_zeros()) - first);
            nth += 1;
            bits &= bits - 1u32;
        }
        taken += counted.total;
        step += 1;
    }
    min(taken, wanted)
}
