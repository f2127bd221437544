//! Ranked columns that a team keeps in its memory, to look through them several times.

use super::columns::*;
use super::lists::Sifted;
use crate::tile::*;
use cubecl::prelude::*;

/// Up to `room` columns in team memory, in no particular order. One of rank 0 is none.
#[derive(CubeType)]
pub(crate) struct Kept {
    ranks: Shared<[u32]>,
    columns: Shared<[u32]>,
    /// The highest rank among them.
    highest: Shared<[Atomic<u32>]>,
    count: u32,
    bounds: Bounds,
    #[cube(comptime)]
    room: usize,
    #[cube(comptime)]
    machine: Machine,
}

/// Columns that a unit of `machine` looks at in one step.
fn columns_of_step(machine: Machine) -> usize {
    in_flight(machine, 4, IN_FLIGHT)
}

#[cube]
impl Kept {
    /// None yet, and room for `room` ranks and the columns that have them, of which the team only keeps the ranks if
    /// not `with_columns`.
    pub(crate) fn new(
        #[comptime] room: usize,
        #[comptime] with_columns: bool,
        #[comptime] machine: Machine,
    ) -> Self {
        let ranks = team_memory::<u32>(room, 4usize, machine);
        let columns =
            team_memory::<u32>(comptime![if with_columns { room } else { 1 }], 4usize, machine);
        let highest = team_memory::<Atomic<u32>>(1usize, 4usize, machine);
        let (count, bounds) = (0u32.runtime(), Bounds::any());
        Kept { ranks, columns, highest, count, bounds, room, machine }
    }

    /// Keeps the ranks, and the columns, of all of `row`, as many as there is room for. The team syncs after it.
    pub(crate) fn take_row<N: Size>(&mut self, row: &Row<'_, N>, #[comptime] with_columns: bool) {
        let machine = comptime![self.machine];
        let walk = row.walk(row.start, row.end);
        for step in walk.first..walk.end {
            let loaded = row.load(step);
            let columns = loaded.ranks.len();
            #[unroll]
            for i in 0..columns {
                let at = (step as usize * columns + i) * comptime![machine.team] + unit_id(machine);
                if at < comptime![self.room] {
                    self.ranks[at] = *loaded.ranks.index(i);
                    if with_columns {
                        self.columns[at] = *loaded.columns.index(i);
                    }
                }
            }
        }
        let columns = row.columns_of_step();
        let of_step = comptime![(columns * machine.team) as u32];
        self.count = min(walk.end * of_step, comptime![self.room as u32]);
        sync_team(machine);
    }

    /// Keeps all that is in the lists, for which there must be room. The team syncs before and after it.
    pub(crate) fn take_lists(&mut self, lists: &Sifted<'_>) {
        let machine = comptime![self.machine];
        if unit_id(machine) == 0 {
            self.highest[0].store(0u32);
        }
        sync_team(machine);
        let mut highest = 0u32.runtime();
        let walk = lists.walk(0u32, 0u32);
        for step in walk.first..walk.end {
            let loaded = lists.load(step);
            let first = lists.number_of(step);
            #[unroll]
            for i in 0..loaded.ranks.len() {
                let rank = *loaded.ranks.index(i);
                if rank != 0 {
                    let at = (first + lists.stride() * comptime![i as u32]) as usize;
                    self.ranks[at] = rank;
                    self.columns[at] = *loaded.columns.index(i);
                }
                highest = max(highest, rank);
            }
        }
        if comptime![machine.team == 1] {
            self.highest[0].store(highest);
        } else {
            let highest = plane_max(highest);
            if unit_id(machine) % comptime![machine.plane] == 0 {
                self.highest[0].fetch_max(highest);
            }
        }
        sync_team(machine);
        self.count = lists.total;
        self.bounds.low = lists.floor + 1;
        self.bounds.high = self.highest[0].load();
    }
}

#[cube]
impl Columns for Kept {
    fn walk(&self, _from: u32, _to: u32) -> Walk {
        let of_step = comptime![(columns_of_step(self.machine) * self.machine.team) as u32];
        Walk { first: 0u32.runtime(), end: self.count.div_ceil(of_step) }
    }

    fn ranks(&self, step: u32) -> Sequence<u32> {
        let machine = comptime![self.machine];
        let columns = comptime![columns_of_step(machine) as u32];
        let mut ranks = Sequence::<u32>::new();
        #[unroll]
        for i in 0..columns {
            let nth =
                (step * columns + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
            let mut rank = 0u32.runtime();
            if nth < self.count {
                rank = self.ranks[nth as usize];
            }
            ranks.push(rank);
        }
        ranks
    }

    fn load(&self, step: u32) -> Ranked {
        let machine = comptime![self.machine];
        let steps = comptime![columns_of_step(machine) as u32];
        let ranks = self.ranks(step);
        let mut columns = Sequence::<u32>::new();
        #[unroll]
        for i in 0..steps {
            let nth = (step * steps + i) * comptime![machine.team as u32] + unit_id(machine) as u32;
            let mut column = 0u32.runtime();
            if nth < self.count {
                column = self.columns[nth as usize];
            }
            columns.push(column);
        }
        Ranked { ranks, columns }
    }

    fn bounds(&self) -> Bounds {
        Bounds { low: self.bounds.low, high: self.bounds.high }
    }
}
