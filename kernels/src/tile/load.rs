//! Filling tiles from the buffers of a kernel.

use super::{
    LANES, Lanes, Machine, Tile, commit_copies, copy_async, sync_team, unit_id, wait_copies,
};
use cubecl::prelude::*;

/// Where the rows of a tile begin in the buffer they are loaded from.
#[cube]
pub trait Rows {
    /// The element at which row `i` begins, and whether there is such a row: if not, nothing is read there.
    fn row(&self, i: usize) -> (usize, bool);
}

/// `count` rows, `stride` elements apart, from element `start` on.
#[derive(CubeType)]
pub struct Strided {
    /// The first element of row 0.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// How many rows there are.
    pub count: usize,
}

#[cube]
impl Rows for Strided {
    fn row(&self, i: usize) -> (usize, bool) {
        (self.start + i * self.stride, i < self.count)
    }
}

/// Fills `tile` from `source`: its row `r` is row `first + r` of `rows`, `cols` elements; what does not
/// exist, and the padding, is zeros, so that nothing of an unused row, not even a NaN, reaches a product.
///
/// `N` is the width of the buffer's vectors: 1, or what [`load_width`] says, in which case `cols` and the
/// rows' beginnings are multiples of it. On a machine with a matrix unit whole vectors are copied
/// asynchronously: the tile is complete after [`await_load`].
#[cube]
pub fn load_rows<E: Numeric, N: Size, S: Numeric, R: Rows>(
    tile: &mut Tile<S>,
    source: &[Vector<E, N>],
    rows: &R,
    first: usize,
    cols: usize,
) {
    let shape = comptime![tile.shape];
    let machine = comptime![shape.machine];
    let size = S::size();
    let chunk = comptime![load_width(machine, size)];
    let chunks = comptime![shape.cols / chunk];
    let across = comptime![units_along(machine)];
    let down = comptime![machine.team / across];
    let unit = unit_id(machine);
    for step in 0..comptime![shape.rows.div_ceil(down)] {
        let r = step * down + unit / across;
        if comptime![shape.rows % down == 0] || r < comptime![shape.rows] {
            let (at, exists) = rows.row(first + r);
            #[unroll(machine.is_wgmma())]
            for c in 0..comptime![chunks.div_ceil(across)] {
                let col = (c * across + unit % across) * chunk;
                if comptime![chunks % across == 0] || col < comptime![shape.cols] {
                    let valid = select(exists, left_of(cols, col), 0usize);
                    load_chunk::<E, N, S>(tile, r, col, source, at + col, valid);
                }
            }
        }
    }
}

/// Loads [`load_width`] columns of `row` of `tile` from `col` on, `valid` of which exist in `source`.
#[cube]
fn load_chunk<E: Numeric, N: Size, S: Numeric>(
    tile: &mut Tile<S>,
    row: usize,
    col: usize,
    source: &[Vector<E, N>],
    at: usize,
    valid: usize,
) {
    let machine = comptime![tile.shape.machine];
    let width = N::value();
    let size = S::size();
    let chunk = comptime![load_width(machine, size)];
    if comptime![machine.is_wgmma() && width == chunk] {
        let to = tile.index(row, col / LANES);
        copy_async::<E, N, S>(&mut tile.memory, to, source, at / width, valid > 0);
    } else {
        #[unroll]
        for v in 0..comptime![chunk / LANES] {
            let left = left_of(valid, v * LANES);
            let value = read_vector::<E, N, S>(source, at + v * LANES, left);
            tile.put(row, col / LANES + v, value);
        }
    }
}

/// Elements of `size` bytes that are loaded together, and a multiple of which a buffer's rows must begin at
/// to be bound in vectors: 16 bytes where copies are asynchronous, [`LANES`] elements otherwise.
pub fn load_width(machine: Machine, size: usize) -> usize {
    if machine.is_wgmma() { 16 / size } else { LANES }
}

/// Units side by side along a row: eight copies of 16 bytes are a line of the cache.
pub(crate) fn units_along(machine: Machine) -> usize {
    machine.team.min(8)
}

/// Waits until the oldest load in flight has arrived, of as many as a ring of `stages` holds, and until
/// every unit has: from here on that tile may be read, and the one read before it may be overwritten.
#[cube]
pub fn await_load(#[comptime] stages: usize, #[comptime] machine: Machine) {
    if comptime![machine.is_wgmma() && stages > 1] {
        wait_copies(comptime![stages - 2]);
    }
    sync_team(machine);
}

/// Ends the loads of one turn of a ring of `stages`. Every unit calls it in each turn, whether or not there
/// was anything to load, since loads in flight are counted by it. With a single stage it waits for them.
#[cube]
pub fn end_load(#[comptime] stages: usize, #[comptime] machine: Machine) {
    if comptime![machine.is_wgmma()] {
        commit_copies();
        if comptime![stages == 1] {
            wait_copies(0usize);
        }
    }
    if comptime![stages == 1] {
        sync_team(machine);
    }
}

/// How many tiles a ring of `stages` is loaded ahead: none of one stage, which is loaded when it is needed.
pub fn loads_ahead(stages: usize) -> usize {
    stages - 1
}

/// Eight elements of `source` from element `at` on, of which the first `valid` exist; zeros instead
/// of the rest. With `N` = 8, `at` is a multiple of 8 and all or none of the eight exist.
#[cube]
pub fn read_vector<E: Numeric, N: Size, S: Numeric>(
    source: &[Vector<E, N>],
    at: usize,
    valid: usize,
) -> Vector<S, Lanes> {
    let mut out = Vector::<S, Lanes>::cast_from(Vector::<f32, Lanes>::new(0.0f32));
    let width = N::value();
    if comptime![width == LANES] {
        if valid > 0 {
            out = Vector::cast_from(source[at / LANES]);
        }
    } else {
        #[unroll]
        for i in 0..LANES {
            if i < valid {
                out.insert(i, S::cast_from(source[at + i].extract(0usize)));
            }
        }
    }
    out
}

/// How many columns there are from `col` on, of `cols` in all.
#[cube]
fn left_of(cols: usize, col: usize) -> usize {
    select(col < cols, cols - col, 0usize)
}

/// The little-endian f32 at byte `at`; with vectors of 4 or 8 bytes, `at` is a multiple of 4.
#[cube]
pub fn read_f32<B: Size>(bytes: &[Vector<u8, B>], at: usize) -> f32 {
    let width = B::value();
    if comptime![width == 4] {
        f32::reinterpret(bytes[at / 4])
    } else if comptime![width == 8] {
        let two = Vector::<f32, Const<2>>::reinterpret(bytes[at / 8]);
        select(at & 4 == 0, two.extract(0usize), two.extract(1usize))
    } else {
        let mut bits = 0u32.runtime();
        #[unroll]
        for i in 0..4usize {
            bits |= u32::cast_from(bytes[at + i].extract(0usize)) << comptime![8 * i as u32];
        }
        f32::reinterpret(bits)
    }
}

/// Writes a little-endian f32 at byte `at`.
#[cube]
pub fn write_f32(bytes: &mut [u8], at: usize, value: f32) {
    let bits = u32::reinterpret(value);
    #[unroll]
    for i in 0..4usize {
        bytes[at + i] = u8::cast_from((bits >> comptime![8 * i as u32]) & 0xffu32);
    }
}
