//! Which rows of a tile are keys: looked up again by the units that score, or noted by those that load.

use super::{KeyTiles, KeyTilesExpand};
use crate::tile::*;
use cubecl::prelude::*;

/// How many rows of places of `shape` are noted.
pub(super) fn noted(shape: TileShape) -> usize {
    if shape.machine.role.is_some() { PLACES * shape.rows } else { 1 }
}

/// The team memory that notes them.
pub(crate) fn noted_piece(shape: TileShape) -> Piece {
    Piece { bytes: noted(shape) * size_of::<u32>(), alignment: 16 }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> KeyTiles<'a, E, N, B, S> {
    /// Which columns of the scores of the `n`-th tile are keys.
    pub fn mask<W: Size>(&self, n: usize, #[comptime] layout: Layout) -> Mask<W> {
        let mut bits = Array::<Vector<u32, W>>::new(comptime![layout.run()]);
        #[unroll(layout.unrolled())]
        for cell in 0..comptime![layout.run()] {
            let mut value = Vector::<u32, W>::new(0u32);
            #[unroll]
            for i in 0..W::value() {
                value.insert(i, self.bits_of(n, col_of(cell, layout) + i));
            }
            bits[cell] = value;
        }
        Mask::of_columns(bits)
    }

    /// Whether a column of the scores of the `n`-th tile may be no key. The same in every unit of a plane.
    pub fn lacks_keys(&self, n: usize) -> bool {
        let shape = comptime![self.ring.shape];
        if comptime![shape.machine.role.is_some()] {
            let mut all = true.runtime();
            #[unroll]
            for i in 0..comptime![shape.rows / shape.machine.plane] {
                let row = UNIT_POS_PLANE as usize + comptime![i * shape.machine.plane];
                all = all && self.bits_of(n, row) != 0;
            }
            !plane_all(all)
        } else {
            true.runtime()
        }
    }

    /// All bits if the row `r` of the `n`-th tile is a key, none otherwise.
    fn bits_of(&self, n: usize, r: usize) -> u32 {
        let shape = comptime![self.ring.shape];
        if comptime![shape.machine.role.is_some()] {
            self.noted[n % comptime![self.ring.stages] * comptime![shape.rows] + r]
        } else {
            let row = self.row_of_key(self.first + n * comptime![shape.rows] + r);
            select(row >= 0, u32::MAX, 0u32)
        }
    }

    /// Notes whether the row `r` of the `n`-th tile is a key.
    pub fn note(&self, n: usize, r: usize, exists: bool) {
        let at = n % comptime![self.ring.stages] * comptime![self.ring.shape.rows] + r;
        let mut noted = self.noted.clone();
        noted[at] = select(exists, u32::MAX, 0u32);
    }
}
