//! Loops over tiles that are loaded while others are worked on.
//!
//! ```text
//! tiles.start(count);                          the first tiles are on their way
//! for n in 0..count {
//!     tiles.await_tile(n);                     tile n is complete; tile n - 1 has been used by all units
//!     tiles.start_nt(n, .., &tiles.source.ring.tile(n), ..);     the matrix unit works on it, and meanwhile
//!                                              a later tile is loaded over a used one
//!     finish_product(..);
//!     ..
//! }
//! ```
//!
//! Where nothing can be loaded ahead (the CPU, a GPU without asynchronous copies) `await_tile` loads, and
//! the rest loads nothing.

use super::fragment::Fragment;
use super::machine::{Machine, Part, sync_team};
use super::multiply::{Product, start_nt};
use super::nvptx::{commit_copies, wait_copies};
use super::tiles::Tile;
use super::warpgroup::commit_mma;
use cubecl::prelude::*;
use cubecl::wgmma::Major;

/// Parts in which a tile is loaded between the steps of a product.
const LOADS: usize = 2;

/// How the tiles of a loop are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Places in a ring of tiles.
    pub stages: usize,
    /// Tiles that are on their way while one is worked on; with 0, each is loaded when it is needed.
    pub ahead: usize,
    /// The machine whose team loads them.
    pub machine: Machine,
}

impl Schedule {
    /// A ring of `stages` tiles, of which one is worked on.
    pub fn new(machine: Machine, stages: usize) -> Self {
        Self { stages, ahead: stages - 1, machine }
    }

    /// A ring of `stages` tiles in which the product of one is still running when the next one's is started.
    pub fn of_running_products(machine: Machine, stages: usize) -> Self {
        Self { stages, ahead: stages.saturating_sub(2), machine }
    }
}

/// What a loop over tiles works on: one or more rings, and what they are filled from.
#[cube]
pub trait Source {
    /// Starts to load a part of the `n`-th tile of each ring into its place ([`load_part`](super::load_part));
    /// beyond the last, which are never used, nothing is read.
    fn load(&self, n: usize, #[comptime] part: Part);
}

/// The tiles of `source`, loaded by a [`Schedule`].
#[derive(CubeType)]
pub struct Pipeline<L: Source + CubeType> {
    /// The rings, and what fills them.
    pub source: L,
    #[cube(comptime)]
    schedule: Schedule,
}

#[cube]
impl<L: Source + CubeType> Pipeline<L> {
    /// Nothing is loaded yet.
    pub fn new(source: L, #[comptime] schedule: Schedule) -> Self {
        Pipeline::<L> { source, schedule }
    }

    /// Starts to load the first of `count` tiles, as many as there is room for. What was loaded before, and
    /// not waited for, arrives with the first of them.
    pub fn start(&self, count: usize) {
        #[unroll]
        for n in 0..comptime![self.schedule.ahead] {
            if n < count {
                self.source.load(n, comptime![Part::WHOLE]);
            }
            end_load(comptime![self.schedule.machine]);
        }
    }

    /// Waits until the `n`-th tile has arrived and until every unit is here: it may now be read by all, and
    /// the one before it may be overwritten. Every unit of the team calls it.
    pub fn await_tile(&self, n: usize) {
        let schedule = comptime![self.schedule];
        if comptime![schedule.ahead == 0] {
            sync_team(comptime![schedule.machine]);
            self.source.load(n, comptime![Part::WHOLE]);
            finish_loads(comptime![schedule.machine]);
        } else {
            if comptime![schedule.machine.can().async_copy.is_some()] {
                wait_copies(comptime![schedule.ahead - 1]);
            }
            sync_team(comptime![schedule.machine]);
        }
    }

    /// Starts to load the tile after those on their way, while the `n`-th is worked on.
    pub fn load_next(&self, n: usize) {
        if comptime![self.schedule.ahead > 0] {
            self.source.load(n + comptime![self.schedule.ahead], comptime![Part::WHOLE]);
            end_load(comptime![self.schedule.machine]);
        }
    }

    /// [`start_nt`](super::start_nt) with the `n`-th tile, and [`Pipeline::load_next`] between its steps: a unit
    /// that starts products waits while the matrix unit has enough of them, so loads that came after the last
    /// would begin when it is all but done.
    pub fn start_nt<S: Numeric, W: Size>(
        &self,
        n: usize,
        c: &mut Fragment<W>,
        a: &Tile<S>,
        b: &Tile<S>,
    ) {
        let layout = comptime![c.layout];
        let ahead = comptime![self.schedule.ahead];
        if comptime![ahead > 0 && layout.machine.can().async_products] {
            let product = Product::new(&*c, a, b, comptime![Major::K]);
            product.begin(c);
            #[unroll]
            for i in 0..comptime![LOADS + 1] {
                product.issue::<S, W>(c, comptime![Part { index: i, of: LOADS + 1 }]);
                if comptime![i < LOADS] {
                    self.source.load(n + ahead, comptime![Part { index: i, of: LOADS }]);
                }
            }
            commit_mma();
            end_load(comptime![layout.machine]);
        } else {
            start_nt(c, a, b);
            self.load_next(n);
        }
    }
}

/// Waits until everything that was loaded is there, for every unit of the team.
#[cube]
pub fn finish_loads(#[comptime] machine: Machine) {
    if comptime![machine.can().async_copy.is_some()] {
        commit_copies();
        wait_copies(0usize);
    }
    sync_team(machine);
}

/// Ends one turn's loads: those on their way are counted by turns, so that every turn has its end, whether
/// or not there was anything to load.
#[cube]
fn end_load(#[comptime] machine: Machine) {
    if comptime![machine.can().async_copy.is_some()] {
        commit_copies();
    }
}
