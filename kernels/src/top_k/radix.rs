//! Radix select over ranked columns: which are the best, and these in order.

use super::columns::*;
use crate::tile::*;
use cubecl::prelude::*;

/// The place of the last of the `wanted` best columns, `wanted` being at least 1; or a lower one that no
/// further column reaches, of rank 1 at least.
#[cube]
pub(crate) fn last_place<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    histogram: &mut Histogram,
) -> u64 {
    let walk = columns.walk(start, end);
    // The bits found so far, and of the columns that begin with them how many are still wanted.
    let mut found = 0u64.runtime();
    let mut known = 0u64.runtime();
    let mut left = wanted;
    let mut shift = 64u64.runtime();
    while shift > 0 {
        shift -= 8u64;
        histogram.clear();
        for step in walk.first..walk.end {
            for place in columns.load(step) {
                if rank_of(place) != 0 && (place & known) == found {
                    histogram.add(u32::cast_from((place >> shift) & 0xffu64));
                }
            }
        }
        let bin = histogram.find(left);
        found |= u64::cast_from(bin.number) << shift;
        known |= 0xffu64 << shift;
        if bin.above + bin.count <= left {
            // The whole bin is wanted: nothing more to tell apart.
            shift = 0u64;
        }
        left -= bin.above;
    }
    max(found, place(1u32, 0xffff_ffffu32))
}

/// The memory that [`write_best`] works in.
#[derive(CubeType)]
pub(crate) struct Tools {
    histogram: Histogram,
    marks: Marks,
}

#[cube]
impl Tools {
    /// Arbitrary counts and marks: [`write_best`] clears them.
    pub(crate) fn new(#[comptime] machine: Machine) -> Self {
        Tools { histogram: Histogram::new(machine), marks: Marks::new(machine) }
    }
}

/// Writes the `wanted` best of `columns`, ascending, to `out` from `at` on; returns how many there are.
#[cube]
pub(crate) fn write_best<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    out: &mut [i32],
    at: usize,
    tools: &mut Tools,
) -> u32 {
    let last = last_place::<C>(columns, start, end, wanted, &mut tools.histogram);
    let mut written = 0u32.runtime();
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
        written += tools.marks.write(limit, out, at + written as usize, first);
    }
    written
}
