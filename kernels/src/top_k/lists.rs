//! The lists that sifting leaves of a row.

use super::columns::*;
use super::policy::{Policy, rank};
use super::sift::MOST_PIECES;
use crate::tile::*;
use cubecl::prelude::*;

/// A column and its logit, as a list holds them.
#[cube]
pub(crate) fn listed(logit: f32, column: u32) -> u64 {
    u64::cast_from(u32::reinterpret(logit)) << 32u64 | u64::cast_from(column)
}

/// The columns that sifting left of a row: a list for each piece of it.
#[derive(CubeType)]
pub(crate) struct Sifted<'a> {
    lists: &'a [u64],
    counts: &'a [u32],
    /// The row's first list, and the first of its counts.
    list: usize,
    first_count: usize,
    pieces: u32,
    capacity: u32,
    /// How many columns are in the lists before each.
    before: Shared<[u32]>,
    /// Units that share a list, as the logarithm of their number: all lists are read at once, if there are as many
    /// units.
    log_units: u32,
    /// Steps in which this unit's longest list is read.
    steps: u32,
    /// Columns in all; more than there can be if a list overflowed.
    pub(crate) total: u32,
    /// Every column of a higher rank is listed, and no other.
    pub(crate) floor: u32,
    start: u32,
    end: u32,
    #[cube(comptime)]
    policy: Policy,
    #[cube(comptime)]
    machine: Machine,
}

/// Columns that a unit loads together.
const TOGETHER: usize = 4;

/// What a list that overflowed counts, and more than lists are read for. As many as [`MOST_PIECES`] of them fit 32 bits.
const OVERFLOWN: u32 = 1 << 21;

#[cube]
impl<'a> Sifted<'a> {
    /// Those of `row`, of which the columns of `range` count: `pieces` lists of up to `capacity` columns each. The team
    /// syncs.
    pub(crate) fn new(
        lists: &'a [u64],
        counts: &'a [u32],
        row: usize,
        range: &Range,
        pieces: u32,
        capacity: u32,
        #[comptime] policy: Policy,
        #[comptime] machine: Machine,
    ) -> Sifted<'a> {
        let (list, first_count) = (row * pieces as usize, row * (pieces as usize + 1));
        let mut before = team_memory::<u32>(MOST_PIECES, 4usize, machine);
        let mut scan = TeamScan::new(machine);
        let mut total = 0u32.runtime();
        for step in 0..pieces.div_ceil(comptime![machine.team as u32]) {
            let piece = step * comptime![machine.team as u32] + unit_id(machine) as u32;
            let mut count = 0u32.runtime();
            if piece < pieces {
                count = counts[first_count + piece as usize];
                count = select(count > capacity, OVERFLOWN.runtime(), count);
            }
            let counted = scan.count(count);
            if piece < pieces {
                before[piece as usize] = total + counted.before;
            }
            total += counted.total;
        }
        let mut floor = 0u32.runtime();
        if pieces > 0 {
            floor = counts[first_count + pieces as usize];
        }
        let log_team = comptime![machine.team.ilog2()];
        let log_pieces = 32 - (max(pieces, 1u32) - 1).leading_zeros();
        let log_units = log_team - min(log_team, log_pieces);
        let mut piece = unit_id(machine) as u32 >> log_units;
        let mut longest = 0u32.runtime();
        while piece < pieces {
            longest = max(longest, counts[first_count + piece as usize]);
            piece += comptime![machine.team as u32] >> log_units;
        }
        let steps = max(longest.div_ceil(comptime![TOGETHER as u32] << log_units), 1u32);
        let (start, end) = (range.start, range.end);
        Sifted::<'a> {
            lists,
            counts,
            list,
            first_count,
            pieces,
            capacity,
            before,
            log_units,
            steps,
            total,
            floor,
            start,
            end,
            policy,
            machine,
        }
    }

    /// Whether there are lists and none overflowed.
    pub(crate) fn whole(&self) -> bool {
        self.pieces > 0 && self.total < OVERFLOWN
    }

    /// Lists that are read at once.
    fn at_once(&self) -> u32 {
        comptime![self.machine.team as u32] >> self.log_units
    }

    /// The list that this unit reads in a step, and the number in it of the first column that it loads.
    fn entry(&self, step: u32) -> (u32, u32) {
        let unit = unit_id(comptime![self.machine]) as u32;
        let mut piece = unit >> self.log_units;
        let mut step = step;
        if self.pieces > self.at_once() {
            piece += step / self.steps * self.at_once();
            step %= self.steps;
        }
        let lane = unit & ((1u32 << self.log_units) - 1);
        (piece, ((step * comptime![TOGETHER as u32]) << self.log_units) + lane)
    }

    /// The number, in all lists, of the first column that this unit loads in a step.
    pub(crate) fn number_of(&self, step: u32) -> u32 {
        let (piece, nth) = self.entry(step);
        let mut before = 0u32.runtime();
        if piece < self.pieces {
            before = self.before[piece as usize];
        }
        before + nth
    }

    /// From a column that a unit loads in a step to the next one.
    pub(crate) fn stride(&self) -> u32 {
        1u32 << self.log_units
    }
}

#[cube]
impl<'a> Columns for Sifted<'a> {
    fn walk(&self, _from: u32, _to: u32) -> Walk {
        Walk { first: 0u32.runtime(), end: self.pieces.div_ceil(self.at_once()) * self.steps }
    }

    fn load(&self, step: u32) -> Ranked {
        let policy = comptime![self.policy];
        let (piece, first) = self.entry(step);
        let mut count = 0u32.runtime();
        if piece < self.pieces {
            count = self.counts[self.first_count + piece as usize];
        }
        let list = (self.list + piece as usize) * self.capacity as usize;
        let mut entries = Sequence::<u64>::new();
        #[unroll]
        for i in 0..TOGETHER {
            let nth = first + self.stride() * comptime![i as u32];
            let mut entry = listed(f32::NEG_INFINITY, 0u32);
            if nth < count {
                entry = self.lists[list + nth as usize];
            }
            entries.push(entry);
        }
        let mut ranks = Sequence::<u32>::new();
        let mut columns = Sequence::<u32>::new();
        #[unroll]
        for i in 0..TOGETHER {
            let entry = *entries.index(i);
            let column = u32::cast_from(entry & 0xffff_ffffu64);
            let logit = f32::reinterpret(u32::cast_from(entry >> 32u64));
            ranks.push(rank(logit, column, self.start, self.end, policy));
            columns.push(column);
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
