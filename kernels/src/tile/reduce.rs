//! Reductions, scans, histograms and sets of a whole team.

use super::machine::{Machine, sync_team, team_memory, unit_id};
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

/// Counts in the order of the team's units.
#[derive(CubeType)]
pub struct TeamScan {
    partial: Shared<[u32]>,
    #[cube(comptime)]
    machine: Machine,
}

/// What [`TeamScan::count`] says.
#[derive(CubeType)]
pub struct Counted {
    /// The counts of the units before this one.
    pub before: u32,
    /// The count of the whole team.
    pub total: u32,
}

#[cube]
impl TeamScan {
    /// A scan with its own memory, for a team of no more planes than units of a plane.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let partial = team_memory::<u32>(comptime![planes(machine)], 4usize, machine);
        TeamScan { partial, machine }
    }

    /// The sum of the counts `own` of the units before this one, and of all. Every unit of the team calls
    /// it, and the team syncs before and after.
    pub fn count(&mut self, own: u32) -> Counted {
        let machine = comptime![self.machine];
        let mut before = 0u32.runtime();
        let mut total = own;
        if comptime![machine.team > 1] {
            // A plane scans over the units that arrive together: those that a loop kept must come too.
            sync_team(machine);
            before = plane_exclusive_sum(own);
            let (lane, plane) = (
                unit_id(machine) % comptime![machine.plane],
                unit_id(machine) / comptime![machine.plane],
            );
            let of_plane = plane_sum(own);
            self.partial[plane] = of_plane;
            sync_team(machine);
            // Each plane adds up the counts of all planes, a lane each.
            let planes = comptime![planes(machine)];
            let mut of_lane = 0u32.runtime();
            if lane < planes {
                of_lane = self.partial[lane];
            }
            before += plane_shuffle(plane_exclusive_sum(of_lane), plane as u32);
            total = plane_sum(of_lane);
            sync_team(machine);
        }
        Counted { before, total }
    }
}

/// Counts of 256 bins, kept by the team.
#[derive(CubeType)]
pub struct Histogram {
    bins: Shared<[Atomic<u32>]>,
    /// What the plane that looks for a bin found: its number, and the counts above it and in it.
    found: Shared<[u32]>,
    #[cube(comptime)]
    machine: Machine,
}

/// Bins of a [`Histogram`].
pub const BINS: usize = 256;

/// The bin in which [`Histogram::find`] ended.
#[derive(CubeType)]
pub struct Bin {
    /// Its number.
    pub number: u32,
    /// What the bins above it count.
    pub above: u32,
    /// What it counts itself.
    pub count: u32,
}

/// Where entry `i` of a shared list is kept whose units each read a run of consecutive entries: a gap
/// after every 32 entries spreads what they read at one time over the banks of the memory.
#[cube]
fn spread(i: usize) -> usize {
    i + i / 32
}

#[cube]
impl Histogram {
    /// A histogram of arbitrary counts: [`Histogram::clear`] it first.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let bins = team_memory::<Atomic<u32>>(comptime![BINS + BINS / 32], 4usize, machine);
        let found = team_memory::<u32>(3usize, 4usize, machine);
        Histogram { bins, found, machine }
    }

    /// Sets every count to zero; the team syncs after it.
    pub fn clear(&mut self) {
        let machine = comptime![self.machine];
        for step in 0..comptime![BINS.div_ceil(machine.team)] {
            let bin = step * comptime![machine.team] + unit_id(machine);
            if bin < BINS {
                self.bins[spread(bin)].store(0u32);
            }
        }
        sync_team(machine);
    }

    /// Adds one to `bin`.
    pub fn add(&mut self, bin: u32) {
        let bin = spread(bin as usize);
        if comptime![self.machine.team == 1] {
            // Only this unit counts here: no need to make the addition atomic.
            let count = self.bins[bin].load();
            self.bins[bin].store(count + 1u32);
        } else {
            self.bins[bin].fetch_add(1u32);
        }
    }

    /// The highest bin that counts `wanted`, at least 1, together with the bins above it; bin 0 if all
    /// bins together count fewer. The team syncs before and after it.
    pub fn find(&mut self, wanted: u32) -> Bin {
        let machine = comptime![self.machine];
        let lanes = comptime![machine.plane];
        // One plane looks: each of its units in a run of bins, the first unit in the highest.
        let run = comptime![BINS / lanes];
        sync_team(machine);
        if unit_id(machine) < lanes {
            let lowest = (comptime![lanes - 1] - unit_id(machine)) * run;
            let mut above = 0u32.runtime();
            if comptime![lanes > 1] {
                let mut own = 0u32.runtime();
                #[unroll]
                for i in 0..run {
                    own += self.bins[spread(lowest + i)].load();
                }
                above = plane_exclusive_sum(own);
            }
            let mut bin = lowest + run;
            while bin > lowest && above < wanted {
                bin -= 1;
                let count = self.bins[spread(bin)].load();
                if above + count >= wanted || bin == 0 {
                    self.found[0] = bin as u32;
                    self.found[1] = above;
                    self.found[2] = count;
                }
                above += count;
            }
        }
        sync_team(machine);
        Bin { number: self.found[0], above: self.found[1], count: self.found[2] }
    }
}

/// Hands out the places of a list to the team's units, in no particular order.
#[derive(CubeType)]
pub struct Cursor {
    next: Shared<[Atomic<u32>]>,
    #[cube(comptime)]
    machine: Machine,
}

#[cube]
impl Cursor {
    /// A cursor at place 0; the team syncs.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let next = team_memory::<Atomic<u32>>(1usize, 4usize, machine);
        if unit_id(machine) == 0 {
            next[0].store(0u32);
        }
        sync_team(machine);
        Cursor { next, machine }
    }

    /// The first of `count` places of this unit's own, side by side. All units of a plane call it together.
    pub fn take(&mut self, count: u32) -> u32 {
        let machine = comptime![self.machine];
        if comptime![machine.team == 1] {
            let at = self.next[0].load();
            self.next[0].store(at + count);
            at
        } else {
            // One of the plane asks for all: fewer of them wait for each other.
            let before = plane_exclusive_sum(count);
            let total = plane_broadcast(before + count, comptime![machine.plane as u32 - 1]);
            let mut first = 0u32.runtime();
            if unit_id(machine) % comptime![machine.plane] == 0 {
                first = self.next[0].fetch_add(total);
            }
            plane_broadcast(first, 0u32) + before
        }
    }

    /// How many places were taken, after a sync.
    pub fn taken(&self) -> u32 {
        self.next[0].load()
    }
}

/// A set of up to [`MARKS`] small numbers, in whose order no order of insertion shows.
#[derive(CubeType)]
pub struct Marks {
    words: Shared<[Atomic<u32>]>,
    scan: TeamScan,
    #[cube(comptime)]
    machine: Machine,
}

/// Numbers that a [`Marks`] tells apart.
pub const MARKS: usize = 1 << 17;

#[cube]
impl Marks {
    /// An arbitrary set: [`Marks::clear`] it first.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let words = comptime![MARKS / 32];
        let words = team_memory::<Atomic<u32>>(comptime![words + words / 32], 4usize, machine);
        Marks { words, scan: TeamScan::new(machine), machine }
    }

    /// Empties the set of numbers below `limit`; the team syncs before and after it.
    pub fn clear(&mut self, limit: u32) {
        let machine = comptime![self.machine];
        let words = limit.div_ceil(32u32) as usize;
        sync_team(machine);
        for step in 0..words.div_ceil(comptime![machine.team]) {
            let word = step * comptime![machine.team] + unit_id(machine);
            if word < words {
                self.words[spread(word)].store(0u32);
            }
        }
        sync_team(machine);
    }

    /// Puts `number` in the set.
    pub fn insert(&mut self, number: u32) {
        let word = spread((number / 32) as usize);
        let bit = 1u32 << (number % 32);
        if comptime![self.machine.team == 1] {
            let bits = self.words[word].load();
            self.words[word].store(bits | bit);
        } else {
            self.words[word].fetch_or(bit);
        }
    }

    /// Writes `first` plus each number of the set below `limit`, ascending, to `out` from `at` on, and
    /// returns how many these are. The team syncs before it.
    pub fn write(&mut self, limit: u32, out: &mut [i32], at: usize, first: u32) -> u32 {
        let machine = comptime![self.machine];
        let words = limit.div_ceil(32u32) as usize;
        let run = words.div_ceil(comptime![machine.team]);
        let begin = min(unit_id(machine) * run, words);
        let end = min(begin + run, words);
        sync_team(machine);
        let mut own = 0u32.runtime();
        for word in begin..end {
            own += self.words[spread(word)].load().count_ones();
        }
        let counted = self.scan.count(own);
        let mut at = at + counted.before as usize;
        for word in begin..end {
            let mut bits = self.words[spread(word)].load();
            while bits != 0 {
                let number = word as u32 * 32u32 + bits.trailing_zeros();
                out[at] = (first + number) as i32;
                at += 1;
                bits &= bits - 1u32;
            }
        }
        counted.total
    }
}
