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
use super::fragment::{Fragment, col_of, row_of, store_row};
use super::machine::{
    CellOrder, LANES, Machine, Piece, WARPGROUP, WARPGROUP_ROWS, asked_anew, sync_team,
    team_memory, unit_id,
};
use super::nvptx::{COPY_BYTES, fresh};
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
            self.note(pass, nan && known);
        } else if scale != 0.0f32 {
            mark_row(pass, fragment, own, out, at, cols);
        }
    }

    /// [`Passes::store_row`] of the first `count` rows of `fragment`, `cols` elements each, one after the other from
    /// element `at` of `out` on. `scales` has one for each row from `first_scale` on, NaN where its scores were no
    /// numbers.
    ///
    /// In vectors of [`LANES`] where [`stages_rows`]: then through `stage`, memory that no unit of the team reads any
    /// more.
    pub fn store_rows<O: Numeric, S: Numeric, P: Size, W: Size>(
        &mut self,
        pass: u32,
        fragment: &Fragment<W>,
        scales: &[f32],
        first_scale: usize,
        stage: &mut Tile<S>,
        out: &mut [Vector<O, P>],
        at: usize,
        count: usize,
        cols: usize,
    ) {
        let layout = comptime![fragment.layout];
        let width = P::value();
        if comptime![width == LANES] && pass <= 1 {
            let nan = store_staged(fragment, scales, first_scale, stage, out, at, count, cols);
            self.note(pass, nan);
        } else {
            #[unroll(layout.unrolled())]
            for own in 0..comptime![layout.own_rows()] {
                let row = row_of(own, layout);
                if row < count {
                    let (scale, at) = (scales[first_scale + row], at + row * cols);
                    if comptime![width == LANES] {
                        // Units hold pairs of columns: no two of them may write one vector here.
                        let out = out.with_vector_size_mut::<Const<2>>();
                        if scale != 0.0f32 {
                            mark_row(pass, fragment, own, out, at, cols);
                        }
                    } else {
                        let known = !scale.is_nan();
                        self.store_row(pass, fragment, own, scale, known, out, at, cols);
                    }
                }
            }
        }
    }

    /// Takes note of a NaN that no score explains.
    fn note(&mut self, pass: u32, nan: bool) {
        if pass == 0 && nan {
            self.found[0] = 1u32;
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

/// Whether rows of elements of `size` bytes are written through team memory, in vectors of [`LANES`]: where units hold
/// fewer columns beside each other than make a vector, of elements as long as those of tiles.
pub fn stages_rows(machine: Machine, size: usize) -> bool {
    machine.can().cells == CellOrder::Quads && size * LANES == COPY_BYTES
}

/// Columns that a plane writes together.
const STAGED: usize = 32;

/// [`store_row`] of the first `count` rows of a fragment, from element `at` on. Returns whether a NaN is among them that
/// is not of its row's scale.
///
/// Each plane writes its sixteen rows, [`STAGED`] columns at a time, to memory of its own, and reads them back in whole
/// vectors. Those of two rows are swizzled alike, so that neither way has two lanes of a turn in one bank.
#[cube]
fn store_staged<O: Numeric, S: Numeric, P: Size, W: Size>(
    fragment: &Fragment<W>,
    scales: &[f32],
    first_scale: usize,
    stage: &mut Tile<S>,
    out: &mut [Vector<O, P>],
    at: usize,
    count: usize,
    cols: usize,
) -> bool {
    let mut nan = false.runtime();
    let layout = comptime![fragment.layout];
    // Asked anew: where all of this goes would else be computed before the loop over tiles, and kept through it.
    let unit = fresh(unit_id(layout.machine) as u32) as usize;
    let (lane, mine) = (unit % 32, stage.first + unit / 32 * comptime![16 * STAGED / LANES]);
    let first_row =
        unit / WARPGROUP % comptime![layout.down()] * WARPGROUP_ROWS + unit % WARPGROUP / 32 * 16;
    let first_col =
        unit / comptime![layout.machine.team / layout.across()] * comptime![layout.group_cols()];
    #[unroll]
    for block in 0..comptime![layout.group_cols() / STAGED] {
        #[unroll]
        for own in 0..2usize {
            let row = lane / 4 + own * 8;
            // Read anew for each block, so that none is scaled before it is its turn: there are no registers for that.
            let scale = scales[first_scale + first_row + row];
            #[unroll]
            for piece in 0..comptime![STAGED / LANES] {
                let mut pair =
                    Vector::<S, Const<2>>::cast_from(Vector::<f32, Const<2>>::new(0.0f32));
                #[unroll]
                for e in 0..2usize {
                    let cell = comptime![(block * STAGED / LANES + piece) * 2 + e];
                    let value = fragment.get(own, cell).extract(0usize) * scale;
                    let value = select(scale == 0.0f32, 0.0f32, value);
                    nan = nan || (value.is_nan() && !scale.is_nan());
                    pair.insert(e, S::cast_from(value));
                }
                let to = mine + row * comptime![STAGED / LANES] + (piece ^ (row / 2 % 4));
                stage.memory.with_vector_size_mut::<Const<2>>()[to * 4 + lane % 4] = pair;
            }
        }
        sync_plane();
        #[unroll]
        for half in 0..2usize {
            let (row, piece) = (lane / 4 + half * 8, lane % 4);
            let from = mine + row * comptime![STAGED / LANES] + (piece ^ (row / 2 % 4));
            let values = Vector::<O, P>::cast_from(stage.memory[from]);
            let col = first_col + comptime![block * STAGED] + piece * LANES;
            if first_row + row < count && col < cols {
                out[(at + (first_row + row) * cols + col) / LANES] = values;
            }
        }
        sync_plane();
    }
    nan
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
