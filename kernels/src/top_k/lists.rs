//! The lists that sifting leaves of a row.

use super::columns::*;
use super::policy::{Policy, rank};
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
    /// Columns in the longest list, and in all.
    longest: u32,
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

/// Columns that a unit of `machine` loads together.
fn columns_of_step(machine: Machine) -> usize {
    in_flight(machine, 2, 2)
}

#[cube]
impl<'a> Sifted<'a> {
    /// Those of `row`, of which the columns of `range` count: `pieces` lists of up to `capacity` columns each.
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
        let mut total = 0u32.runtime();
        let mut longest = 0u32.runtime();
        for step in 0..pieces.div_ceil(comptime![machine.team as u32]) {
            let piece = step * comptime![machine.team as u32] + unit_id(machine) as u32;
            if piece < pieces {
                let count = counts[first_count + piece as usize];
                total += count;
                longest = max(longest, count);
            }
        }
        let total = TeamScan::new(machine).count(total).total;
        // Exact up to 2^24, and more than a list holds is only compared with its capacity.
        let longest = u32::cast_from(max_team(f32::cast_from(longest), machine));
        let mut floor = 0u32.runtime();
        if pieces > 0 {
            floor = counts[first_count + pieces as usize];
        }
        let (start, end) = (range.start, range.end);
        Sifted::<'a> {
            lists,
            counts,
            list,
            first_count,
            pieces,
            capacity,
            longest,
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
        self.pieces > 0 && self.longest <= self.capacity
    }

    /// Units that share a list, as the logarithm of their number: all lists are read at once, if there are as many
    /// units.
    fn log_units(&self) -> u32 {
        let log_team = comptime![self.machine.team.ilog2()];
        let log_pieces = 32 - (max(self.pieces, 1u32) - 1).leading_zeros();
        log_team - min(log_team, log_pieces)
    }

    /// Steps in which the longest list is read.
    fn steps_of_list(&self) -> u32 {
        let columns = comptime![columns_of_step(self.machine) as u32];
        max(self.longest.div_ceil(columns << self.log_units()), 1u32)
    }
}

#[cube]
impl<'a> Columns for Sifted<'a> {
    fn walk(&self, _from: u32, _to: u32) -> Walk {
        let lists = comptime![self.machine.team as u32] >> self.log_units();
        let end = self.pieces.div_ceil(lists) * self.steps_of_list();
        Walk { first: 0u32.runtime(), end }
    }

    fn load(&self, step: u32) -> Sequence<u64> {
        let (machine, policy) = comptime![(self.machine, self.policy)];
        let columns = comptime![columns_of_step(machine) as u32];
        let (log_units, steps) = (self.log_units(), self.steps_of_list());
        let unit = unit_id(machine) as u32;
        let lists = comptime![machine.team as u32] >> log_units;
        let piece = step / steps * lists + (unit >> log_units);
        let mut count = 0u32.runtime();
        if piece < self.pieces {
            count = self.counts[self.first_count + piece as usize];
        }
        let list = (self.list + piece as usize) * self.capacity as usize;
        let lane = unit & ((1u32 << log_units) - 1);
        let mut entries = Sequence::<u64>::new();
        #[unroll]
        for i in 0..columns {
            let nth = ((step % steps * columns + i) << log_units) + lane;
            let mut entry = listed(f32::NEG_INFINITY, 0u32);
            if nth < count {
                entry = self.lists[list + nth as usize];
            }
            entries.push(entry);
        }
        let mut places = Sequence::<u64>::new();
        #[unroll]
        for i in 0..columns {
            let entry = *entries.index(comptime![i as usize]);
            let column = u32::cast_from(entry & 0xffff_ffffu64);
            let logit = f32::reinterpret(u32::cast_from(entry >> 32u64));
            places.push(place(rank(logit, column, self.start, self.end, policy), column));
        }
        places
    }

    fn bounds(&self) -> Bounds {
        Bounds::any()
    }
}
