//! Filling the place of a tile of keys block by block, by the units of one role.

use super::{KeyTiles, KeyTilesExpand, RowFormat};
use crate::tile::*;
use cubecl::prelude::*;

/// Units side by side along a row: eight copies of 16 bytes are a panel's row, and a line of the cache.
const ACROSS: usize = 8;

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Refill<S> for KeyTiles<'a, E, N, B, S> {
    fn tile(&self, n: usize) -> Tile<S> {
        self.ring.tile(n)
    }

    fn look_up(&self, n: usize) -> FoundRows {
        let shape = comptime![self.ring.shape];
        let down = comptime![shape.machine.team / ACROSS];
        let first = self.first + n * comptime![shape.rows] + unit_id(shape.machine) / ACROSS;
        let mut at = Array::<usize>::new(comptime![shape.rows / down]);
        let mut exist = Array::<bool>::new(comptime![shape.rows / down]);
        #[unroll]
        for step in 0..comptime![shape.rows / down] {
            let (start, exists) = self.row(first + step * down);
            at[step] = start;
            exist[step] = exists;
        }
        FoundRows { at, exist }
    }

    fn stores(&self) -> comptime_type!(bool) {
        let (size, width) = (S::size(), N::value());
        comptime! {
            let piece = load_width(self.ring.shape.machine, size);
            self.cache.format != RowFormat::Elements || width != piece
        }
    }

    fn load_found(&self, n: usize, rows: &FoundRows, #[comptime] block: Block) {
        let shape = comptime![self.ring.shape];
        let unit = unit_id(shape.machine);
        let down = comptime![shape.machine.team / ACROSS];
        let last = comptime![shape.cols / shape.machine.can().tile_cols - 1];
        let (first, steps, panels) = comptime! {
            let steps = shape.rows / down;
            match block {
                Block::Rows(part) => (part.first(steps), part.count(steps), 0..last),
                Block::LastPanel => (0, steps, last..last + 1),
            }
        };
        let width = N::value();
        let stored = self.stores();
        let mut tile = self.ring.tile(n);
        // Rows a multiple of eight apart are swizzled alike, and panels follow each other: all copies of a unit go to
        // one place and a constant.
        let to = tile.index(unit / ACROSS, unit % ACROSS);
        #[unroll]
        for i in 0..steps {
            let step = comptime![first + i];
            let (at, exists) = (rows.at[step], rows.exist[step]);
            if comptime![matches!(block, Block::LastPanel)] && unit % ACROSS == 0 {
                let r = unit / ACROSS + step * down;
                self.note(n, r, exists);
            }
            #[unroll]
            for panel in comptime![panels.start]..comptime![panels.end] {
                let col = (panel * ACROSS + unit % ACROSS) * LANES;
                if comptime![stored] {
                    let r = unit / ACROSS + step * down;
                    self.load_piece(&mut tile, r, col, at, exists);
                } else {
                    let whole = comptime![(panel + 1) * ACROSS * LANES <= self.d_qk];
                    let valid = exists && (whole || col < comptime![self.d_qk]);
                    copy_async_wide(
                        &mut tile.memory,
                        to,
                        &self.cache.elements,
                        at / width + unit % ACROSS,
                        valid,
                        comptime![(panel * shape.rows + step * down) * ACROSS],
                        comptime![panel * ACROSS],
                    );
                }
            }
        }
    }
}
