//! Rows of keys that are fp8 records of the paged cache: codes, one f32 scale a block, the rope part in bf16.

use crate::quant::BLOCK;
use crate::tile::*;
use cubecl::prelude::*;
use cubecl_common::e4m3;
use half::bf16;

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
