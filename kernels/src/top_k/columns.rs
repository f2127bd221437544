//! The columns of a row in ranked form, and where they are read from.

use super::policy::{Policy, rank};
use crate::tile::*;
use cubecl::prelude::*;

/// A column as a number that orders like the ranking: its [`rank`], and of equal ranks the lower column
/// first. A column of rank 0 is none.
#[cube]
pub(crate) fn place(rank: u32, column: u32) -> u64 {
    u64::cast_from(rank) << 32u64 | u64::cast_from(!column)
}

/// The rank in a place.
#[cube]
pub(crate) fn rank_of(place: u64) -> u32 {
    u32::cast_from(place >> 32u64)
}

/// The column in a place.
#[cube]
pub(crate) fn column_of(place: u64) -> u32 {
    !u32::cast_from(place & 0xffff_ffffu64)
}

/// The range of a row, clamped to its `length`.
#[derive(CubeType)]
pub(crate) struct Range {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// The range `starts[row] .. ends[row]`, clamped.
#[cube]
pub(crate) fn range_of(starts: &[i32], ends: &[i32], row: usize, length: u32) -> Range {
    let start = clamp(starts[row], 0i32, length as i32) as u32;
    let end = max(clamp(ends[row], 0i32, length as i32) as u32, start);
    Range { start, end }
}

/// The steps `first .. end` of a team's walk over columns.
#[derive(CubeType)]
pub(crate) struct Walk {
    pub(crate) first: u32,
    pub(crate) end: u32,
}

/// Ranked columns that a team walks over, each unit with a few in flight.
#[cube]
pub(crate) trait Columns: CubeType {
    /// The steps in which the columns `from .. to` come up, and perhaps others.
    fn walk(&self, from: u32, to: u32) -> Walk;
    /// The places of this unit's columns of a step, of rank 0 where there is none.
    fn load(&self, step: u32) -> Sequence<u64>;
}

/// Columns that a unit of a GPU has in flight: two loads of four. A team of 512 then reads the sample of a
/// long row in one step, of which 16 in flight would leave half empty; with 4 sifting spills.
const IN_FLIGHT: usize = 8;

/// Columns that a unit of `machine` has in flight, which come in vectors of `width`.
fn in_flight(machine: Machine, width: usize) -> usize {
    // A core of a CPU overlaps its loads by itself.
    if machine.team == 1 { width } else { IN_FLIGHT }
}

/// The columns `start .. end` of a row of logits, or some of them: of their vectors, cut into runs of
/// `grain`, every `stride`-th run from run `phase` on.
#[derive(CubeType)]
pub(crate) struct Row<'a, N: Size> {
    logits: &'a [Vector<f32, N>],
    start: u32,
    end: u32,
    /// The vector in which `start` is, its element 0 being `lead` columns before it. Vectors are those
    /// of the whole buffer: a row may begin, and a range may begin and end, inside one.
    first: usize,
    lead: u32,
    vectors: u32,
    phase: u32,
    stride: u32,
    #[cube(comptime)]
    grain: u32,
    #[cube(comptime)]
    policy: Policy,
    #[cube(comptime)]
    machine: Machine,
}

#[cube]
impl<'a, N: Size> Row<'a, N> {
    /// The columns `start .. end` of the row whose column 0 is element `base` of `logits`.
    pub(crate) fn new(
        logits: &'a [Vector<f32, N>],
        base: usize,
        start: u32,
        end: u32,
        phase: u32,
        stride: u32,
        #[comptime] grain: u32,
        #[comptime] policy: Policy,
        #[comptime] machine: Machine,
    ) -> Row<'a, N> {
        let width = N::value();
        let at = base + start as usize;
        let lead = (at % width) as u32;
        let vectors = (lead + (end - start)).div_ceil(comptime![width as u32]);
        let first = at / width;
        Row::<'a, N> {
            logits,
            start,
            end,
            first,
            lead,
            vectors,
            phase,
            stride,
            grain,
            policy,
            machine,
        }
    }
}

#[cube]
impl<'a, N: Size> Columns for Row<'a, N> {
    fn walk(&self, from: u32, to: u32) -> Walk {
        let width = N::value();
        let grain = comptime![self.grain];
        let machine = comptime![self.machine];
        let of_step = comptime![(in_flight(machine, width) / width * machine.team) as u32];
        let per_run = self.stride * comptime![width as u32 * grain];
        let first = (from - self.start + self.lead) / per_run * grain / of_step;
        let runs = (to - self.start + self.lead).div_ceil(per_run);
        Walk { first, end: select(from < to, (runs * grain).div_ceil(of_step), first) }
    }

    fn load(&self, step: u32) -> Sequence<u64> {
        let width = N::value();
        let grain = comptime![self.grain];
        let policy = comptime![self.policy];
        let machine = comptime![self.machine];
        let loads = comptime![(in_flight(machine, width) / width) as u32];
        // All loads first, so that the unit waits for memory once. Beyond the last vector the last is
        // read again, and its columns do not count: a branch would make each load wait for the one before.
        let mut vectors = Sequence::<Vector<f32, N>>::new();
        let mut offsets = Sequence::<u32>::new();
        #[unroll]
        for i in 0..loads {
            let nth = (step * loads + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
            let vector = (nth / grain * self.stride + self.phase) * grain + nth % grain;
            vectors.push(self.logits[self.first + min(vector, self.vectors - 1) as usize]);
            offsets.push(vector * comptime![width as u32] - self.lead);
        }
        let mut places = Sequence::<u64>::new();
        #[unroll]
        for i in 0..comptime![loads as usize] {
            #[unroll]
            for lane in 0..width {
                let offset = *offsets.index(i) + comptime![lane as u32];
                let column = self.start + offset;
                let key =
                    rank(vectors.index(i).extract(lane), column, self.start, self.end, policy);
                places.push(place(select(offset < self.end - self.start, key, 0u32), column));
            }
        }
        places
    }
}

/// The columns that sifting left of a row: a list for each piece of it.
#[derive(CubeType)]
pub(crate) struct Sifted<'a> {
    places: &'a [u64],
    counts: &'a [u32],
    /// The row's first list.
    list: usize,
    pieces: u32,
    capacity: u32,
    /// Columns in the longest list, and in all.
    longest: u32,
    total: u32,
    #[cube(comptime)]
    machine: Machine,
}

#[cube]
impl<'a> Sifted<'a> {
    /// The lists `list .. list + pieces`, of up to `capacity` places each.
    pub(crate) fn new(
        places: &'a [u64],
        counts: &'a [u32],
        list: usize,
        pieces: u32,
        capacity: u32,
        #[comptime] machine: Machine,
    ) -> Sifted<'a> {
        let mut total = 0u32.runtime();
        let mut longest = 0u32.runtime();
        for step in 0..pieces.div_ceil(comptime![machine.team as u32]) {
            let piece = step * comptime![machine.team as u32] + unit_id(machine) as u32;
            if piece < pieces {
                let count = counts[list + piece as usize];
                total += count;
                longest = max(longest, count);
            }
        }
        let total = TeamScan::new(machine).count(total).total;
        // Exact up to 2^24, and more than a list holds is only compared with its capacity.
        let longest = u32::cast_from(max_team(f32::cast_from(longest), machine));
        Sifted::<'a> { places, counts, list, pieces, capacity, longest, total, machine }
    }

    /// Whether the lists hold the `wanted` best columns of the row: none overflowed, and they have as
    /// many columns.
    pub(crate) fn hold(&self, wanted: u32) -> bool {
        self.longest <= self.capacity && self.total >= wanted
    }
}

#[cube]
impl<'a> Columns for Sifted<'a> {
    fn walk(&self, _from: u32, _to: u32) -> Walk {
        let machine = comptime![self.machine];
        let of_step = comptime![(in_flight(machine, 4) * machine.team / 4) as u32];
        Walk { first: 0u32.runtime(), end: (self.pieces * self.longest).div_ceil(of_step) }
    }

    fn load(&self, step: u32) -> Sequence<u64> {
        let machine = comptime![self.machine];
        let loads = comptime![(in_flight(machine, 4) / 4) as u32];
        let mut places = Sequence::<u64>::new();
        #[unroll]
        for i in 0..loads {
            let nth = (step * loads + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
            let mut place = 0u64.runtime();
            if nth < self.pieces * self.longest {
                let list = self.list + (nth / self.longest) as usize;
                if nth % self.longest < self.counts[list] {
                    let at = list * self.capacity as usize + (nth % self.longest) as usize;
                    place = self.places[at];
                }
            }
            places.push(place);
        }
        places
    }
}
