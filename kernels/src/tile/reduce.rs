//! Reductions, scans and histograms over a whole team.

use super::{Machine, sync_team, team_memory, unit_id};
use cubecl::prelude::*;

/// Planes in a team.
fn planes(machine: Machine) -> usize {
    machine.team.div_ceil(machine.plane)
}

/// The sum of `value` over the team, in a fixed order, known to every unit.
#[cube]
pub fn sum_team(value: f32, #[comptime] machine: Machine) -> f32 {
    let mut sum = value;
    if comptime![machine.team > 1] {
        #[unroll]
        for step in 0..comptime![machine.plane.ilog2()] {
            sum += plane_shuffle_xor(sum, comptime![1u32 << step]);
        }
        let mut partial = team_memory::<f32>(comptime![planes(machine)], 4usize, machine);
        partial[unit_id(machine) / comptime![machine.plane]] = sum;
        sync_team(machine);
        sum = partial[0];
        for plane in 1..comptime![planes(machine)] {
            sum += partial[plane];
        }
        sync_team(machine);
    }
    sum
}

/// The maximum of `value` over the team, known to every unit.
#[cube]
pub fn max_team(value: f32, #[comptime] machine: Machine) -> f32 {
    let mut top = value;
    if comptime![machine.team > 1] {
        #[unroll]
        for step in 0..comptime![machine.plane.ilog2()] {
            top = max(top, plane_shuffle_xor(top, comptime![1u32 << step]));
        }
        let mut partial = team_memory::<f32>(comptime![planes(machine)], 4usize, machine);
        partial[unit_id(machine) / comptime![machine.plane]] = top;
        sync_team(machine);
        top = partial[0];
        for plane in 1..comptime![planes(machine)] {
            top = max(top, partial[plane]);
        }
        sync_team(machine);
    }
    top
}

/// Counts flags in the order of the team's units.
#[derive(CubeType)]
pub struct TeamScan {
    partial: Shared<[u32]>,
    #[cube(comptime)]
    machine: Machine,
}

/// What [`TeamScan::count`] says.
#[derive(CubeType)]
pub struct Counted {
    /// Flags of the units before this one.
    pub before: u32,
    /// Flags of the whole team.
    pub total: u32,
}

#[cube]
impl TeamScan {
    /// A scan with its own memory.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let partial = team_memory::<u32>(comptime![planes(machine)], 4usize, machine);
        TeamScan { partial, machine }
    }

    /// How many units before this one, and how many in all, have `flag` 1 (0 otherwise). Every unit
    /// of the team calls it.
    pub fn count(&mut self, flag: u32) -> Counted {
        let machine = comptime![self.machine];
        let mut before = 0u32.runtime();
        let mut total = flag;
        if comptime![machine.team > 1] {
            before = plane_exclusive_sum(flag);
            let plane = unit_id(machine) / comptime![machine.plane];
            let of_plane = plane_sum(flag);
            self.partial[plane] = of_plane;
            sync_team(machine);
            total = 0u32;
            for p in 0..comptime![planes(machine)] {
                let count = self.partial[p];
                before += select(p < plane, count, 0u32);
                total += count;
            }
            sync_team(machine);
        }
        Counted { before, total }
    }
}

/// Counts of 256 bins, kept by the team.
#[derive(CubeType)]
pub struct Histogram {
    bins: Shared<[Atomic<u32>]>,
    #[cube(comptime)]
    machine: Machine,
}

/// Bins of a [`Histogram`].
pub const BINS: usize = 256;

#[cube]
impl Histogram {
    /// A histogram of arbitrary counts: [`Histogram::clear`] it first.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let bins = team_memory::<Atomic<u32>>(BINS, 4usize, machine);
        Histogram { bins, machine }
    }

    /// Sets every count to zero. The team syncs before and after.
    pub fn clear(&mut self) {
        let machine = comptime![self.machine];
        sync_team(machine);
        for step in 0..comptime![BINS.div_ceil(machine.team)] {
            let bin = step * comptime![machine.team] + unit_id(machine);
            if bin < BINS {
                self.bins[bin].store(0u32);
            }
        }
        sync_team(machine);
    }

    /// Adds one to `bin`.
    pub fn add(&mut self, bin: u32) {
        let bin = bin as usize;
        if comptime![self.machine.team == 1] {
            // Only this unit counts here: no need to make the addition atomic.
            let count = self.bins[bin].load();
            self.bins[bin].store(count + 1u32);
        } else {
            self.bins[bin].fetch_add(1u32);
        }
    }

    /// The count of `bin`, after a sync.
    pub fn count(&self, bin: u32) -> u32 {
        self.bins[bin as usize].load()
    }
}
