//! Filling the place of a tile of keys block by block, by the units of one role.

use super::record::{latent_words, read_latent, rope_at, store_latent};
use super::{KeySet, KeyTiles, KeyTilesExpand, RowFormat};
use crate::quant::BLOCK;
use crate::tile::*;
use cubecl::prelude::*;
use half::bf16;

/// Units side by side along a row: eight copies of 16 bytes are a panel's row, and a line of the cache.
const ACROSS: usize = 8;

/// Rows that all units take in one step.
fn down(shape: TileShape) -> usize {
    shape.machine.team / ACROSS
}

/// Rows of a tile that a unit loads; of a team without a role none.
fn own_rows(shape: TileShape) -> usize {
    if shape.machine.role.is_some() { shape.rows / down(shape) } else { 1 }
}

/// Whether the rows of tiles must be asked for.
fn is_listed(key_set: KeySet, shape: TileShape) -> bool {
    key_set == KeySet::Listed && shape.machine.role.is_some()
}

/// Columns of the latent whose codes are read ahead of their place: those of a record that can be read in vectors, of
/// which each scale is that of whole panels, and that leave the last panel of a tile to the rest.
fn read_ahead(format: RowFormat, bytes: usize, shape: TileShape) -> Option<usize> {
    let RowFormat::Record { kv_lora_rank } = format else { return None };
    let fits = bytes == LANES
        && kv_lora_rank.is_multiple_of(2 * BLOCK)
        && kv_lora_rank + shape.machine.can().tile_cols == shape.cols;
    fits.then_some(kv_lora_rank)
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> KeyTiles<'a, E, N, B, S> {
    /// The key of the `n`-th tile that this unit loads in a step.
    fn own_key(&self, n: usize, #[comptime] step: usize) -> usize {
        let shape = comptime![self.ring.shape];
        let r = comptime![step * down(shape)] + unit_id(shape.machine) / ACROSS;
        self.first + n * comptime![shape.rows] + r
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Refill<S> for KeyTiles<'a, E, N, B, S> {
    fn tile(&self, n: usize) -> Tile<S> {
        self.ring.tile(n)
    }

    fn own_rows(&self) -> comptime_type!(usize) {
        comptime![own_rows(self.ring.shape)]
    }

    fn ask(&self, n: usize, entries: &mut Array<i32>) {
        if comptime![is_listed(self.lists.key_set, self.ring.shape)] {
            #[unroll]
            for step in 0..comptime![own_rows(self.ring.shape)] {
                let j = self.own_key(n, step);
                let at = self.list + select(j < self.end, j, 0usize);
                entries[step] = read_early_32(&self.lists.indices.data, at) as i32;
            }
        }
    }

    fn find(&self, n: usize, entries: &Array<i32>) -> FoundRows {
        let shape = comptime![self.ring.shape];
        let bytes = B::value();
        let (steps, words) = comptime! {
            let words = read_ahead(self.cache.format, bytes, shape).map_or(1, latent_words);
            (own_rows(shape), words)
        };
        let mut at = Array::<usize>::new(steps);
        let mut exist = Array::<bool>::new(steps);
        if comptime![shape.machine.role.is_some()] {
            #[unroll]
            for step in 0..steps {
                let j = self.own_key(n, step);
                let mut entry = j as i32;
                if comptime![is_listed(self.lists.key_set, shape)] {
                    entry = entries[step];
                }
                let (start, exists) = self.place_of(self.checked(j, entry));
                at[step] = start;
                exist[step] = exists;
            }
        }
        FoundRows { at, exist, read: Array::new(words) }
    }

    fn stores(&self) -> comptime_type!(bool) {
        let (size, width) = (S::size(), N::value());
        comptime! {
            let piece = load_width(self.ring.shape.machine, size);
            self.cache.format != RowFormat::Elements || width != piece
        }
    }

    fn read(&self, rows: &mut FoundRows, #[comptime] part: Part) {
        let shape = comptime![self.ring.shape];
        let bytes = B::value();
        if let Some(latent) = comptime![read_ahead(self.cache.format, bytes, shape)] {
            let step = comptime![one_step(part, shape)];
            let at = rows.at[step];
            let lane = unit_id(shape.machine) % ACROSS;
            read_latent(&mut rows.read, &self.cache.records, at, lane, latent);
        }
    }

    fn load_found(&self, n: usize, rows: &FoundRows, #[comptime] block: Block) {
        let shape = comptime![self.ring.shape];
        let (bytes, width) = (B::value(), N::value());
        let elem = elem_type_of::<E>();
        let unit = unit_id(shape.machine);
        let (last, ahead) = comptime! {
            let last = shape.cols / shape.machine.can().tile_cols - 1;
            (last, read_ahead(self.cache.format, bytes, shape))
        };
        let (first, steps, panels) = comptime! {
            let steps = shape.rows / down(shape);
            match block {
                Block::Rows(part) => (part.first(steps), part.count(steps), 0..last),
                Block::LastPanel => (0, steps, last..last + 1),
            }
        };
        let stored = self.stores();
        let mut tile = self.ring.tile(n);
        // Rows a multiple of eight apart are swizzled alike, and panels follow each other: all that a unit loads goes
        // to one place and a constant.
        let to = tile.index(unit / ACROSS, unit % ACROSS);
        #[unroll]
        for i in 0..steps {
            let step = comptime![first + i];
            let (at, exists) = (rows.at[step], rows.exist[step]);
            let row_to = comptime![step * down(shape) * ACROSS];
            if comptime![matches!(block, Block::LastPanel)] && unit % ACROSS == 0 {
                self.note(n, unit / ACROSS + comptime![step * down(shape)], exists);
            }
            if comptime![ahead.is_some() && panels.start == 0] {
                store_latent::<E, S>(
                    &mut tile.memory,
                    to + row_to,
                    comptime![shape.rows * ACROSS],
                    &rows.read,
                    exists,
                    comptime![last],
                );
            } else if comptime![ahead.is_some() && elem == bf16::elem_type_native()] {
                // The rest of the row is in the tile's type.
                let from = at / LANES + comptime![rope_at(ahead.unwrap_or(0)) / LANES];
                let to = to + row_to + comptime![last * shape.rows * ACROSS];
                let from = from + unit % ACROSS * 2;
                copy_async_halves(&mut tile.memory, to, &self.cache.records, from, exists);
            } else {
                #[unroll]
                for panel in comptime![panels.start]..comptime![panels.end] {
                    let col = (panel * ACROSS + unit % ACROSS) * LANES;
                    if comptime![stored] {
                        let r = unit / ACROSS + comptime![step * down(shape)];
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
                            comptime![panel * shape.rows * ACROSS + row_to],
                            comptime![panel * ACROSS],
                        );
                    }
                }
            }
        }
    }
}

/// The step that a part of the rows is, of as many as there are parts.
fn one_step(part: Part, shape: TileShape) -> usize {
    let steps = shape.rows / down(shape);
    assert!(part.of == steps, "{part:?} of {steps} steps");
    part.index
}
