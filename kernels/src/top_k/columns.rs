//! The columns of a row in ranked form, and where they are read from.
//!
//! Columns are ordered by their [`rank`], and those of one rank by their number, the lower first. A column of rank 0 is
//! none.

use super::policy::{Policy, exceeds, rank};
use crate::tile::*;
use cubecl::prelude::*;

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

/// The lowest and the highest number that some have.
#[derive(CubeType)]
pub(crate) struct Bounds {
    pub(crate) low: u32,
    pub(crate) high: u32,
}

#[cube]
impl Bounds {
    /// Those of any numbers.
    pub(crate) fn any() -> Self {
        Bounds { low: 0u32.runtime(), high: 0xffff_ffffu32.runtime() }
    }
}

/// Some columns and their ranks.
#[derive(CubeType)]
pub(crate) struct Ranked {
    pub(crate) ranks: Sequence<u32>,
    pub(crate) columns: Sequence<u32>,
}

/// Ranked columns that a team walks over, each unit with a few in flight.
#[cube]
pub(crate) trait Columns: CubeType {
    /// The steps in which the columns `from .. to` come up, and perhaps others. Units may have different ones.
    fn walk(&self, from: u32, to: u32) -> Walk;
    /// This unit's columns of a step, of rank 0 where there is none.
    fn load(&self, step: u32) -> Ranked;
    /// The ranks of [`Columns::load`].
    fn ranks(&self, step: u32) -> Sequence<u32>;
    /// Between what ranks they are, but for those of rank 0.
    fn bounds(&self) -> Bounds;
}

/// Columns of a row that a unit of a GPU has in flight: two loads of four. A team of 512 then reads the sample of a
/// long row in one step.
pub(crate) const IN_FLIGHT: usize = 8;

/// Columns that a unit of `machine` has in flight, which come in vectors of `width`, where a unit of a GPU has
/// `wanted`, or one vector.
pub(crate) fn in_flight(machine: Machine, width: usize, wanted: usize) -> usize {
    // A core of a CPU overlaps its loads by itself.
    if machine.team == 1 { width } else { wanted.max(width) }
}

/// Which of a row's vectors are walked over: cut into runs of `grain`, every `stride`-th run from run `phase` on.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Runs {
    pub(crate) phase: u32,
    pub(crate) stride: u32,
    #[cube(comptime)]
    pub(crate) grain: u32,
}

#[cube]
impl Runs {
    /// All of them.
    pub(crate) fn all() -> Self {
        Runs { phase: 0u32.runtime(), stride: 1u32.runtime(), grain: 1u32 }
    }
}

/// The columns `start .. end` of a row of logits, or some of them.
#[derive(CubeType)]
pub(crate) struct Row<'a, N: Size> {
    logits: &'a [Vector<f32, N>],
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The vector in which `start` is, its element 0 being `lead` columns before it. Vectors are those
    /// of the whole buffer: a row may begin, and a range may begin and end, inside one.
    first: usize,
    lead: u32,
    vectors: u32,
    runs: Runs,
    /// Columns that a unit of a GPU has in flight.
    #[cube(comptime)]
    together: usize,
    #[cube(comptime)]
    policy: Policy,
    #[cube(comptime)]
    machine: Machine,
}

/// A unit's columns of a step: vectors of logits, and how many columns the first of each is after the row's start.
/// It is wrapped where it is before the start.
#[derive(CubeType)]
struct Loaded<N: Size> {
    vectors: Sequence<Vector<f32, N>>,
    offsets: Sequence<u32>,
}

#[cube]
impl<'a, N: Size> Row<'a, N> {
    /// The columns `start .. end`, in `runs`, of the row whose column 0 is element `base` of `logits`.
    pub(crate) fn new(
        logits: &'a [Vector<f32, N>],
        base: usize,
        range: &Range,
        runs: Runs,
        #[comptime] together: usize,
        #[comptime] policy: Policy,
        #[comptime] machine: Machine,
    ) -> Row<'a, N> {
        let width = N::value();
        let (start, end) = (range.start, range.end);
        let at = base + start as usize;
        let lead = (at % width) as u32;
        let vectors = (lead + (end - start)).div_ceil(comptime![width as u32]);
        let first = at / width;
        Row::<'a, N> { logits, start, end, first, lead, vectors, runs, together, policy, machine }
    }

    /// Columns that a unit has in a step.
    pub(crate) fn columns_of_step(&self) -> comptime_type!(usize) {
        let width = N::value();
        comptime![in_flight(self.machine, width, self.together)]
    }

    /// The `i`-th of this unit's vectors of a step.
    fn vector(&self, step: u32, i: u32) -> u32 {
        let width = N::value();
        let grain = comptime![self.runs.grain];
        let machine = comptime![self.machine];
        let loads = comptime![(in_flight(machine, width, self.together) / width) as u32];
        let nth = (step * loads + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
        (nth / grain * self.runs.stride + self.runs.phase) * grain + nth % grain
    }

    /// Loads this unit's columns of a step.
    fn vectors(&self, step: u32) -> Loaded<N> {
        let width = N::value();
        // All loads first, so that the unit waits for memory once. Beyond the last vector the last is
        // read again, and its columns do not count: a branch would make each load wait for the one before.
        let mut vectors = Sequence::<Vector<f32, N>>::new();
        let mut offsets = Sequence::<u32>::new();
        #[unroll]
        for i in 0..comptime![(in_flight(self.machine, width, self.together) / width) as u32] {
            let vector = self.vector(step, i);
            vectors.push(self.logits[self.first + min(vector, self.vectors - 1) as usize]);
            offsets.push(vector * comptime![width as u32] - self.lead);
        }
        Loaded::<N> { vectors, offsets }
    }

    /// The `i`-th of this unit's columns of a step.
    pub(crate) fn column(&self, step: u32, i: u32) -> u32 {
        let width = N::value();
        let width = comptime![width as u32];
        self.start + self.vector(step, i / width) * width - self.lead + i % width
    }

    /// The logit of a column.
    pub(crate) fn logit(&self, column: u32) -> f32 {
        let at = (column - self.start + self.lead) as usize;
        let logits = self.logits.with_vector_size::<Const<1>>();
        let width = N::value();
        logits[self.first * width + at].extract(0usize)
    }

    /// Which of this unit's columns of a step, the `i`-th as bit `i`, have a rank of more than `floor`, which `number`
    /// stands for.
    pub(crate) fn above(&self, step: u32, floor: u32, number: f32) -> u32 {
        let width = N::value();
        let (machine, policy) = comptime![(self.machine, self.policy)];
        let loaded = self.vectors(step);
        let mut bits = 0u32.runtime();
        #[unroll]
        for i in 0..comptime![in_flight(machine, width, self.together) / width] {
            let offset = *loaded.offsets.index(i);
            let mut own = 0u32.runtime();
            #[unroll]
            for lane in 0..width {
                let logit = loaded.vectors.index(i).extract(lane);
                let column = self.start + offset + comptime![lane as u32];
                let above = exceeds(logit, column, self.start, self.end, floor, number, policy);
                own |= select(above, comptime![1u32 << lane], 0u32);
            }
            bits |= self.inside(own, offset) << comptime![(i * width) as u32];
        }
        bits
    }

    /// `bits` of the columns of one vector, `offset` after the row's start, but for those that are not the row's.
    fn inside(&self, bits: u32, offset: u32) -> u32 {
        let width = N::value();
        let len = self.end - self.start;
        let mut bits = bits;
        // Nearly every vector is one of whole columns of the row.
        let whole = offset < len && offset + comptime![width as u32 - 1] < len;
        if !whole {
            let mut inside = 0u32.runtime();
            #[unroll]
            for lane in 0..width {
                let counts = offset + comptime![lane as u32] < len;
                inside |= select(counts, comptime![1u32 << lane], 0u32);
            }
            bits &= inside;
        }
        bits
    }

    /// Which of this unit's columns of a step, the `i`-th as bit `i`, have the rank `wanted` and a number in
    /// `first .. first + limit`.
    pub(crate) fn equal(&self, step: u32, wanted: u32, first: u32, limit: u32) -> u32 {
        let loaded = self.load(step);
        let mut bits = 0u32.runtime();
        #[unroll]
        for i in 0..loaded.ranks.len() {
            let equal =
                *loaded.ranks.index(i) == wanted && *loaded.columns.index(i) - first < limit;
            bits |= select(equal, comptime![1u32 << i], 0u32);
        }
        bits
    }
}

#[cube]
impl<'a, N: Size> Columns for Row<'a, N> {
    fn walk(&self, from: u32, to: u32) -> Walk {
        let width = N::value();
        let grain = comptime![self.runs.grain];
        let machine = comptime![self.machine];
        let of_step =
            comptime![(in_flight(machine, width, self.together) / width * machine.team) as u32];
        let per_run = self.runs.stride * comptime![width as u32 * grain];
        let first = (from - self.start + self.lead) / per_run * grain / of_step;
        let runs = (to - self.start + self.lead).div_ceil(per_run);
        Walk { first, end: select(from < to, (runs * grain).div_ceil(of_step), first) }
    }

    fn load(&self, step: u32) -> Ranked {
        let width = N::value();
        let (machine, policy) = comptime![(self.machine, self.policy)];
        let loaded = self.vectors(step);
        let mut ranks = Sequence::<u32>::new();
        let mut columns = Sequence::<u32>::new();
        #[unroll]
        for i in 0..comptime![in_flight(machine, width, self.together) / width] {
            #[unroll]
            for lane in 0..width {
                let offset = *loaded.offsets.index(i) + comptime![lane as u32];
                let column = self.start + offset;
                let logit = loaded.vectors.index(i).extract(lane);
                let rank = rank(logit, column, self.start, self.end, policy);
                ranks.push(select(offset < self.end - self.start, rank, 0u32));
                columns.push(column);
            }
        }
        Ranked { ranks, columns }
    }

    fn ranks(&self, step: u32) -> Sequence<u32> {
        self.load(step).ranks
    }

    fn bounds(&self) -> Bounds {
        Bounds::any()
    }
}
