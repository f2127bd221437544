//! Rows of keys that are fp8 records of the paged cache: codes, one f32 scale a block, the rope part in bf16.

use crate::quant::BLOCK;
use crate::tile::*;
use cubecl::prelude::*;
use cubecl_common::e4m3;
use half::{bf16, f16};

/// [`Rows::load_piece`] of an fp8 record: codes times their block's scale, rounded to `E`, then the rope part.
#[cube]
pub(super) fn load_record<E: Numeric, B: Size, S: Numeric>(
    tile: &mut Tile<S>,
    r: usize,
    col: usize,
    records: &[Vector<u8, B>],
    at: usize,
    #[comptime] kv_lora_rank: usize,
    #[comptime] d_qk: usize,
    exists: bool,
) {
    let machine = comptime![tile.shape.machine];
    let (width, size) = (B::value(), S::size());
    #[unroll]
    for v in 0..comptime![load_width(machine, size) / LANES] {
        let col = col + v * LANES;
        // A row that is none is read as the first there is, and left out below.
        let value = if comptime![width == LANES] {
            read_record_vectors(records, at, col, kv_lora_rank, d_qk, machine)
        } else {
            read_record_bytes(records, at, col, kv_lora_rank, d_qk)
        };
        let value = select(exists, value, Vector::new(0.0f32));
        tile.put(r, col / LANES, Vector::cast_from(rounded_through::<E>(value, machine)));
    }
}

/// Words of eight bytes that a unit reads of a record's latent of `columns` columns: those of its lane in each panel, and
/// the scales, two a word.
pub(super) fn latent_words(columns: usize) -> usize {
    columns / PANEL + columns / BLOCK / 2
}

/// Columns of a panel.
const PANEL: usize = 64;

/// Reads what `lane` of eight has of the latent of the record that begins at byte `at`: of each 64 codes its eight, then
/// all scales.
#[cube]
pub(super) fn read_latent<B: Size>(
    words: &mut Array<u64>,
    records: &[Vector<u8, B>],
    at: usize,
    lane: usize,
    #[comptime] columns: usize,
) {
    let panels = comptime![columns / PANEL];
    let first = at / LANES;
    #[unroll]
    for panel in 0..panels {
        words[panel] = read_early_64(records, first + lane + panel * LANES);
    }
    #[unroll]
    for pair in 0..comptime![columns / BLOCK / 2] {
        words[panels + pair] = read_early_64(records, first + comptime![columns / LANES] + pair);
    }
}

/// Writes what [`read_latent`] has read to the vectors `to`, `to + apart`, .. of a tile: codes times their block's scale,
/// rounded to `E`; zeros if there is no such row.
#[cube]
pub(super) fn store_latent<E: Numeric, S: Numeric>(
    tile: &mut [Vector<S, Const<8>>],
    to: usize,
    #[comptime] apart: usize,
    words: &Array<u64>,
    exists: bool,
    #[comptime] panels: usize,
) {
    #[unroll]
    for panel in 0..panels {
        // The scale of a row that is none could be anything: 0 · inf is NaN.
        let pair = words[comptime![panels + panel * PANEL / BLOCK / 2]];
        let bits = pair >> comptime![(panel * PANEL / BLOCK % 2 * 32) as u64];
        let scale = f32::reinterpret(select(exists, u32::cast_from(bits), 0u32));
        let codes = words[panel];
        let mut values = Vector::<S, Const<8>>::cast_from(Vector::<f32, Const<8>>::new(0.0f32));
        #[unroll]
        for half in 0..2usize {
            let word = u32::cast_from(codes >> comptime![half as u64 * 32]);
            let word = select(exists, word, 0u32);
            #[unroll]
            for pair in 0..2usize {
                let two = widen_codes(word >> comptime![pair as u32 * 16]);
                let two = Vector::<f16, Const<2>>::reinterpret(two);
                #[unroll]
                for e in 0..2usize {
                    let value = f32::cast_from(two.extract(e)) * scale;
                    let value = E::cast_from(value);
                    values.insert(comptime![half * 4 + pair * 2 + e], S::cast_from(value));
                }
            }
        }
        tile[to + panel * apart] = values;
    }
}

/// Columns `col .. col + 8` of the record that begins at byte `at`; zeros beyond `d_qk`.
#[cube]
fn read_record_bytes<B: Size>(
    records: &[Vector<u8, B>],
    at: usize,
    col: usize,
    #[comptime] kv_lora_rank: usize,
    #[comptime] d_qk: usize,
) -> Vector<f32, Lanes> {
    let rope_at = comptime![rope_at(kv_lora_rank)];
    let mut out = Vector::<f32, Lanes>::new(0.0f32);
    #[unroll]
    for e in 0..LANES {
        let col = col + e;
        if col < kv_lora_rank {
            let code = e4m3::reinterpret(records[at + col].extract(0usize));
            let scale = read_f32(records, at + kv_lora_rank + col / BLOCK * 4);
            out.insert(e, f32::cast_from(code) * scale);
        } else if col < d_qk {
            let from = at + rope_at + 2 * (col - kv_lora_rank);
            let high = u32::cast_from(records[from + 1].extract(0usize));
            let low = u32::cast_from(records[from].extract(0usize));
            // A bf16 is the upper half of an f32.
            out.insert(e, f32::reinterpret((high << 24) | (low << 16)));
        }
    }
    out
}

/// [`read_record_bytes`] where every part of a record begins at a multiple of eight bytes and of eight
/// columns ([`super::KeyRows::record_width`]): all of the columns are of one part, and of one block.
#[cube]
fn read_record_vectors<B: Size>(
    records: &[Vector<u8, B>],
    at: usize,
    col: usize,
    #[comptime] kv_lora_rank: usize,
    #[comptime] d_qk: usize,
    #[comptime] machine: Machine,
) -> Vector<f32, Lanes> {
    let rope_at = comptime![rope_at(kv_lora_rank)];
    let mut out = Vector::<f32, Lanes>::new(0.0f32);
    if col < kv_lora_rank {
        let codes = Vector::<e4m3, Lanes>::reinterpret(records[(at + col) / LANES]);
        let scale = read_f32(records, at + kv_lora_rank + col / BLOCK * 4);
        out = codes_to_f32(codes, machine) * Vector::new(scale);
    } else if col < d_qk {
        let from = (at + rope_at + 2 * (col - kv_lora_rank)) / LANES;
        #[unroll]
        for half in 0..2usize {
            let values = Vector::<bf16, Const<4>>::reinterpret(records[from + half]);
            #[unroll]
            for e in 0..4usize {
                out.insert(half * 4 + e, f32::cast_from(values.extract(e)));
            }
        }
    }
    out
}

/// The byte of a record at which its rope part begins.
pub(super) fn rope_at(kv_lora_rank: usize) -> usize {
    kv_lora_rank + 4 * kv_lora_rank.div_ceil(BLOCK)
}
