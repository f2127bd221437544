//! Products of probabilities with values that are no numbers.
//!
//! A key that takes no part in a row has probability 0 there, and 0 · inf is NaN: it must be left out, not multiplied.
//! A matrix unit multiplies whatever it is given, and a value may belong to one row of a tile and not to another. So
//! a program whose outputs hold a NaN that its scores do not explain works through its tiles three times more, with
//! values that are all finite; any other program pays for a flag.
//!
//! | pass | values | outputs |
//! |---|---|---|
//! | 0 | as they are | as they come; the last unless there is such a NaN |
//! | 1 | 0 instead of infinities and NaN | the sums of what is finite |
//! | 2 | 1 instead of +inf and NaN, 0 otherwise | +inf where positive |
//! | 3 | 1 instead of -inf and NaN, 0 otherwise | where positive -inf, or NaN if it is +inf already |

use super::convert::round_to;
use super::fragment::{Fragment, col_of, store_row};
use super::machine::{Machine, Piece, asked_anew, sync_team, team_memory, unit_id};
use super::tiles::Tile;
use cubecl::prelude::*;

/// The passes of a program over its tiles.
#[derive(CubeType)]
pub struct Passes {
    /// Whether a unit found a NaN in the first pass.
    found: Shared<[u32]>,
    #[cube(comptime)]
    machine: Machine,
}

/// Passes where the first does not do.
pub const PASSES: u32 = 4;

impl Passes {
    /// Its team memory.
    pub const PIECE: Piece = Piece { bytes: 4, alignment: 4 };
}

#[cube]
impl Passes {
    /// None done. Every unit of the team calls it, and syncs before the first outputs unless all are 0.
    pub fn new(#[comptime] machine: Machine) -> Self {
        let mut found = team_memory::<u32>(1usize, 4usize, machine);
        if unit_id(machine) == 0 {
            found[0] = 0u32;
        }
        Passes { found, machine }
    }

    /// Writes this unit's `own`-th row of outputs as [`store_row`] does, or what `pass` adds to them. `known` says
    /// that its scores were numbers.
    pub fn store_row<O: Numeric, P: Size, W: Size>(
        &mut self,
        pass: u32,
        fragment: &Fragment<W>,
        own: usize,
        scale: f32,
        known: bool,
        out: &mut [Vector<O, P>],
        at: usize,
        cols: usize,
    ) {
        if pass <= 1 {
            let nan = store_row(fragment, own, scale, out, at, cols);
            if pass == 0 && nan && known {
                self.found[0] = 1u32;
            }
        } else if scale != 0.0f32 {
            mark_row(pass, fragment, own, out, at, cols);
        }
    }

    /// The pass after `pass`; [`PASSES`] if there is none. Every unit of the team calls it.
    pub fn after(&self, pass: u32) -> u32 {
        let machine = comptime![self.machine];
        sync_team(machine);
        let next = select(self.found[0] == 0u32, PASSES, pass + 1u32);
        asked_anew(next as usize, machine) as u32
    }
}

/// Replaces the values of a tile by those of `pass`. Every unit of the team calls it.
#[cube]
pub fn replace_values<S: Numeric>(tile: &mut Tile<S>, pass: u32) {
    let machine = comptime![tile.shape.machine];
    let vectors = comptime![tile.shape.len()];
    // The tile may still be an operand of other units' products.
    sync_team(machine);
    for step in 0..comptime![vectors.div_ceil(machine.team)] {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < vectors {
            let mut values = tile.memory[tile.first + i];
            #[unroll]
            for e in 0..8usize {
                let value = f32::cast_from(values.extract(e));
                let finite = !(value.is_nan() || value.is_inf());
                let infinity = select(pass == 2u32, f32::INFINITY, f32::NEG_INFINITY);
                let marked = value.is_nan() || value == infinity;
                let kept = select(finite, value, 0.0f32);
                let value = select(pass == 1u32, kept, select(marked, 1.0f32, 0.0f32));
                values.insert(e, S::cast_from(value));
            }
            tile.memory[tile.first + i] = values;
        }
    }
    sync_team(machine);
}

/// Writes what pass 2 or 3 says of the first `cols` columns of this unit's `own`-th row, which the same unit wrote
/// before.
#[cube]
fn mark_row<O: Numeric, P: Size, W: Size>(
    pass: u32,
    fragment: &Fragment<W>,
    own: usize,
    out: &mut [Vector<O, P>],
    at: usize,
    cols: usize,
) {
    let layout = comptime![fragment.layout];
    let width = P::value();
    #[unroll(layout.unrolled())]
    for cell in 0..comptime![layout.run()] {
        let col = col_of(cell, layout);
        #[unroll]
        for i in 0..W::value() {
            if col + i < cols && fragment.get(own, cell).extract(i) > 0.0f32 {
                let (vector, element) = ((at + col + i) / width, (at + col + i) % width);
                let mut values = out[vector];
                #[unroll]
                for e in 0..width {
                    let before = f32::cast_from(values.extract(e));
                    let both = select(before == f32::INFINITY, f32::NAN, f32::NEG_INFINITY);
                    let after = select(pass == 2u32, f32::INFINITY, both);
                    let after = select(e == element, after, before);
                    values.insert(e, round_to::<O>(after, comptime![layout.machine]));
                }
                out[vector] = values;
            }
        }
    }
}
