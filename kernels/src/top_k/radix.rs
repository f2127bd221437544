//! Radix select over ranked columns: which are the best, and these in order.

use super::columns::*;
use crate::tile::*;
use cubecl::prelude::*;

/// Where a search ends: a number of so many bits that as many columns reach as are wanted, or somewhat more.
#[derive(CubeType)]
pub(crate) struct Found {
    pub(crate) number: u32,
    /// How many columns are above those that begin with the bits that were looked at, and how many begin with them.
    pub(crate) above: u32,
    pub(crate) count: u32,
}

/// Bits by which columns are told apart in one look at them all.
const DIGIT: u32 = 8;

/// What columns are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// Their ranks.
    Rank,
    /// Their numbers, the lowest first, of those of one rank.
    Column,
}

/// The `key` of the last of the `wanted` best columns, `wanted` being at least 1, or a lower one that no more than
/// `slack` further columns reach; of fewer columns than `wanted`, one that all reach. Keys are between `bounds`; where
/// they are columns, those of the rank `rank` are looked at.
#[cube]
pub(crate) fn search<C: Columns>(
    columns: &C,
    walk: &Walk,
    bounds: &Bounds,
    wanted: u32,
    slack: u32,
    rank: u32,
    #[comptime] key: Key,
    histogram: &mut Histogram,
) -> Found {
    // The bits that are known: those that all keys begin with, and then those found. There is at least one to look at,
    // to count who reaches the key. Of the columns that begin with the known bits `left` are still wanted.
    let mut shift = max(32 - (bounds.low ^ bounds.high).leading_zeros(), 1u32);
    let mut known = select(shift == 32, 0u32, u32::MAX << (shift % 32));
    let mut found =
        Found { number: bounds.low & known, above: 0u32.runtime(), count: 0u32.runtime() };
    let mut left = wanted;
    while shift > 0 {
        let digit = min(shift, DIGIT);
        shift -= digit;
        let mask = (1u32 << digit) - 1u32;
        histogram.clear();
        for step in walk.first..walk.end {
            match comptime![key] {
                Key::Rank => {
                    for own in columns.ranks(step) {
                        if own != 0 && (own & known) == found.number {
                            histogram.add((own >> shift) & mask);
                        }
                    }
                }
                Key::Column => {
                    let loaded = columns.load(step);
                    #[unroll]
                    for i in 0..loaded.ranks.len() {
                        let own = !*loaded.columns.index(i);
                        if *loaded.ranks.index(i) == rank && (own & known) == found.number {
                            histogram.add((own >> shift) & mask);
                        }
                    }
                }
            }
        }
        let bin = histogram.find(left);
        found.number |= bin.number << shift;
        known |= mask << shift;
        found.above += bin.above;
        found.count = bin.count;
        if bin.above + bin.count <= left + slack {
            // Hardly more than wanted: nothing more to tell apart.
            shift = 0u32;
        }
        left -= min(bin.above, left);
    }
    found
}

/// The last column that is taken: every one of a higher rank is, and of those of its rank those that are not above it.
#[derive(CubeType)]
pub(crate) struct Last {
    rank: u32,
    column: u32,
}

/// The last of the `wanted` best of `columns`, all of `start .. end`; if `wanted` is 0, one that all come before.
#[cube]
fn last_of<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    histogram: &mut Histogram,
) -> Last {
    let mut last = Last { rank: 1u32.runtime(), column: u32::MAX.runtime() };
    if wanted > 0 {
        let (walk, bounds) = (columns.walk(start, end), columns.bounds());
        let found = search::<C>(columns, &walk, &bounds, wanted, 0u32, 0u32, Key::Rank, histogram);
        last.rank = max(found.number, 1u32);
        if found.above + found.count > wanted {
            // Some of those of the last rank, the first ones.
            let bounds = Bounds { low: !(end - 1), high: !start };
            let left = wanted - found.above;
            let found =
                search::<C>(columns, &walk, &bounds, left, 0u32, last.rank, Key::Column, histogram);
            last.column = !found.number;
        }
    }
    last
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
    let last = last_of::<C>(columns, start, end, wanted, &mut tools.histogram);
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
            let loaded = columns.load(step);
            #[unroll]
            for i in 0..loaded.ranks.len() {
                let (rank, column) = (*loaded.ranks.index(i), *loaded.columns.index(i));
                let taken = rank > last.rank || rank == last.rank && column <= last.column;
                // Columns before the block wrap to beyond it.
                if taken && column - first < limit {
                    tools.marks.insert(column - first);
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
