//! Filling tiles from the buffers of a kernel.

use super::{LANES, Lanes, Machine, Part, Tile, copy_async, unit_id};
use cubecl::prelude::*;

/// Where the rows of a tile begin in the buffer they are loaded from.
#[cube]
pub trait Rows {
    /// The element at which row `i` begins, and whether there is such a row: if not, nothing is read there.
    /// Any `i` may be asked for; without branches, so that a product that is running goes on meanwhile.
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
impl Strided {
    /// The same rows from their column `col` on.
    pub fn from_column(&self, col: usize) -> Strided {
        Strided { start: self.start + col, stride: self.stride, count: self.count }
    }
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
/// asynchronously: the tile is complete after [`await_tile`](super::Pipeline::await_tile).
#[cube]
pub fn load_rows<E: Numeric, N: Size, S: Numeric, R: Rows>(
    tile: &mut Tile<S>,
    source: &[Vector<E, N>],
    rows: &R,
    first: usize,
    cols: usize,
) {
    load_part::<E, N, S, R>(tile, source, rows, first, cols, comptime![Part::WHOLE]);
}

/// [`load_rows`] of a part of the tile's rows.
#[cube]
pub fn load_part<E: Numeric, N: Size, S: Numeric, R: Rows>(
    tile: &mut Tile<S>,
    source: &[Vector<E, N>],
    rows: &R,
    first: usize,
    cols: usize,
    #[comptime] part: Part,
) {
    let shape = comptime![tile.shape];
    let machine = comptime![shape.machine];
    let size = S::size();
    let chunk = comptime![load_width(machine, size)];
    let chunks = comptime![shape.cols / chunk];
    let across = comptime![units_along(machine)];
    let down = comptime![machine.team / across];
    let unit = unit_id(machine);
    let (skipped, steps) = comptime! {
        let steps = shape.rows.div_ceil(down);
        (part.first(steps), part.count(steps))
    };
    // Where the rows are is looked up for all of them before the first is copied, so that the reads of an
    // index list do not wait for each other.
    let mut at = Array::<usize>::new(comptime![steps.max(1)]);
    let mut exists = Array::<bool>::new(comptime![steps.max(1)]);
    #[unroll(machine.unrolled())]
    for step in 0..steps {
        let (start, there) = rows.row(first + (skipped + step) * down + unit / across);
        at[step] = start;
        exists[step] = there;
    }
    #[unroll(machine.unrolled())]
    for step in 0..steps {
        let r = (skipped + step) * down + unit / across;
        if comptime![shape.rows % down == 0] || r < comptime![shape.rows] {
            #[unroll(machine.can().async_copy.is_some())]
            for c in 0..comptime![chunks.div_ceil(across)] {
                let col = (c * across + unit % across) * chunk;
                if comptime![chunks % across == 0] || col < comptime![shape.cols] {
                    let valid = select(exists[step], left_of(cols, col), 0usize);
                    load_chunk::<E, N, S>(tile, r, col, source, at[step] + col, valid);
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
    if comptime![machine.can().async_copy.is_some() && width == chunk] {
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
    machine.can().async_copy.map_or(LANES, |bytes| bytes / size)
}

/// Units side by side along a row: eight copies of 16 bytes are a line of the cache.
pub(crate) fn units_along(machine: Machine) -> usize {
    machine.team.min(8)
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
