//! Ranked columns that a team keeps in its memory, to look through them several times.

use super::columns::*;
use crate::tile::*;
use cubecl::prelude::*;

/// Up to `room` columns in team memory, in no particular order.
#[derive(CubeType)]
pub(crate) struct Kept {
    places: Shared<[u64]>,
    cursor: Cursor,
    /// The lowest and the highest rank among them.
    extremes: Shared<[Atomic<u32>]>,
    count: u32,
    bounds: Bounds,
    #[cube(comptime)]
    room: usize,
    #[cube(comptime)]
    machine: Machine,
}

/// Columns that a unit of `machine` looks at in one step.
fn columns_of_step(machine: Machine) -> usize {
    in_flight(machine, 4, LISTED)
}

#[cube]
impl Kept {
    /// None yet; the team syncs.
    pub(crate) fn new(#[comptime] room: usize, #[comptime] machine: Machine) -> Self {
        let places = team_memory::<u64>(room, 8usize, machine);
        let extremes = team_memory::<Atomic<u32>>(2usize, 4usize, machine);
        if unit_id(machine) == 0 {
            extremes[0].store(0xffff_ffffu32);
            extremes[1].store(0u32);
        }
        let cursor = Cursor::new(machine);
        let bounds = Bounds::any();
        Kept { places, cursor, extremes, count: 0u32.runtime(), bounds, room, machine }
    }

    /// Keeps those of `columns`, of `start .. end`, that are any; more than there is room for are left out. Every unit
    /// of the team calls it once, and the team syncs.
    pub(crate) fn take<C: Columns>(&mut self, columns: &C, start: u32, end: u32) {
        let machine = comptime![self.machine];
        let mut low = 0xffff_ffffu32.runtime();
        let mut high = 0u32.runtime();
        let walk = columns.walk(start, end);
        for step in walk.first..walk.end {
            let places = columns.load(step);
            let mut count = 0u32.runtime();
            #[unroll]
            for i in 0..places.len() {
                count += select(rank_of(*places.index(i)) != 0, 1u32, 0u32);
            }
            let mut at = self.cursor.take(count);
            #[unroll]
            for i in 0..places.len() {
                let place = *places.index(i);
                let rank = rank_of(place);
                if rank != 0 && at < comptime![self.room as u32] {
                    self.places[at as usize] = place;
                    low = min(low, rank);
                    high = max(high, rank);
                    at += 1;
                }
            }
        }
        if comptime![machine.team == 1] {
            self.extremes[0].store(low);
            self.extremes[1].store(high);
        } else {
            let (low, high) = (plane_min(low), plane_max(high));
            if unit_id(machine) % comptime![machine.plane] == 0 {
                self.extremes[0].fetch_min(low);
                self.extremes[1].fetch_max(high);
            }
        }
        sync_team(machine);
        self.count = min(self.cursor.taken(), comptime![self.room as u32]);
        self.bounds.low = place(self.extremes[0].load(), end - 1);
        self.bounds.high = place(self.extremes[1].load(), start);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

#[cube]
impl Columns for Kept {
    fn walk(&self, _from: u32, _to: u32) -> Walk {
        let of_step = comptime![(columns_of_step(self.machine) * self.machine.team) as u32];
        Walk { first: 0u32.runtime(), end: self.count.div_ceil(of_step) }
    }

    fn load(&self, step: u32) -> Sequence<u64> {
        let machine = comptime![self.machine];
        let columns = comptime![columns_of_step(machine) as u32];
        let mut places = Sequence::<u64>::new();
        #[unroll]
        for i in 0..columns {
            let nth =
                (step * columns + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
            let mut place = 0u64.runtime();
            if nth < self.count {
                place = self.places[nth as usize];
            }
            places.push(place);
        }
        places
    }

    fn bounds(&self) -> Bounds {
        Bounds { low: self.bounds.low, high: self.bounds.high }
    }
}
