//! Attention's loop over tiles as two stages, scores and outputs: in a row, or side by side by the units of a cube.
//!
//! ```text
//! scores:   await the tile · scores = q · kᵀ · factors of the rows so far · probabilities, part by part
//! outputs:  rescale by the factors · out += p · v, part by part · the tile's place is filled with a later tile
//! ```
//!
//! A machine of one role has all of its units do the one, then the other, for each tile. Of three warpgroups one scores
//! and two output, each half of the columns, so that the softmax of one tile runs beside the products of others. What
//! they hand over is that of [`Turns`](super::Turns).

use super::load::FoundRows;
use super::machine::{Machine, Part, Role, WARPGROUP};
use super::nvptx::fresh;
use super::tiles::Tile;
use cubecl::prelude::*;

/// Tiles in memory where roles are apart.
pub const PLACES: usize = 2;
/// Who takes which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Roles {
    /// The units that compute scores.
    pub scores: Machine,
    /// The units that load tiles and compute outputs.
    pub outputs: Machine,
    /// All of them.
    pub all: Machine,
}

impl Roles {
    /// Three warpgroups take a role each; any other machine has one role.
    pub fn of(machine: Machine) -> Self {
        if machine.groups() != 3 {
            return Self { scores: machine, outputs: machine, all: machine };
        }
        let role = |first: usize, groups: usize, barrier: usize| Machine {
            team: groups * WARPGROUP,
            role: Some(Role { first: first * WARPGROUP, barrier }),
            ..machine
        };
        Self { outputs: role(0, 2, 1), scores: role(2, 1, 2), all: machine }
    }

    /// Whether different units score and output.
    pub fn are_apart(&self) -> bool {
        self.scores != self.outputs
    }
}

/// Whether this unit is of the team of `role`, the same in every unit of a plane.
#[cube]
pub fn takes(#[comptime] role: Machine) -> bool {
    match comptime![role.role] {
        Some(taken) => {
            // Asked anew, which is cheaper than to keep the answer while the accumulators fill the registers.
            let group = plane_broadcast(fresh(UNIT_POS) / WARPGROUP as u32, 0u32);
            let first = comptime![(taken.first / WARPGROUP) as u32];
            let end = comptime![first + (role.team / WARPGROUP) as u32];
            group >= first && group < end
        }
        None => true.runtime(),
    }
}

/// A stage of the loop, which works on what `T` hands over.
#[cube]
pub trait Stage<T: CubeType> {
    /// Works on the `n`-th tile.
    fn turn(&mut self, n: usize, turns: &mut T);
}

/// Runs both stages over `count` tiles, each unit those of its role.
#[cube]
pub fn run<T: CubeType, A: Stage<T>, B: Stage<T>>(
    scores: &mut A,
    outputs: &mut B,
    turns: &mut T,
    count: usize,
    #[comptime] roles: Roles,
) {
    if comptime![roles.are_apart()] {
        if takes(roles.scores) {
            for n in 0..count {
                scores.turn(n, turns);
            }
        } else {
            for n in 0..count {
                outputs.turn(n, turns);
            }
        }
    } else {
        for n in 0..count {
            scores.turn(n, turns);
            outputs.turn(n, turns);
        }
    }
}

/// Which of a tile's vectors are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// Of a part of the rows all panels but the last.
    Rows(Part),
    /// The last panel, of all rows.
    LastPanel,
}

/// A source whose places are filled by the units of one role, block by block.
#[cube]
pub trait Refill<S: Numeric> {
    /// The place of the `n`-th tile.
    fn tile(&self, n: usize) -> Tile<S>;

    /// How many rows of a tile a unit loads.
    fn own_rows(&self) -> comptime_type!(usize);

    /// Asks which rows of the `n`-th tile this unit loads, to be looked at in a later turn.
    fn ask(&self, n: usize, entries: &mut Array<i32>);

    /// The rows of the `n`-th tile that were asked for, none beyond the last tile.
    fn find(&self, n: usize, entries: &Array<i32>) -> FoundRows;

    /// Reads a part of the rows that were looked up, where units store what they load.
    fn read(&self, rows: &mut FoundRows, #[comptime] part: Part);

    /// Starts to load a block of the `n`-th tile, of rows that were looked up, and a part of them that was read.
    fn load_found(&self, n: usize, rows: &FoundRows, #[comptime] block: Block);

    /// Whether units store what they load, so that it must be made visible to products.
    fn stores(&self) -> comptime_type!(bool);
}
