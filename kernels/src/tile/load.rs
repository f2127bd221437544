//! Filling tiles from the buffers of a kernel: one walk over a tile, whatever its rows are made of.

use super::machine::{LANES, Lanes, Machine, Part, unit_id};
use super::nvptx::copy_async;
use super::tiles::Tile;
use cubecl::prelude::*;

/// The rows that a tile is filled from: where they begin, and how a piece of one is read.
#[cube]
pub trait Rows<S: Numeric> {
    /// The element at which row `i` begins, and whether there is such a row: if not, nothing is read there.
    /// Any `i` may be asked for; without branches, so that a product that is running goes on meanwhile.
    fn row(&self, i: usize) -> (usize, bool);

    /// Fills the columns `col ..` of row `r` of `tile`, as many as [`load_width`] says, from the row that begins at
    /// `at`; with zeros if it does not `exist`, and beyond its end.
    fn load_piece(&self, tile: &mut Tile<S>, r: usize, col: usize, at: usize, exists: bool);
}

/// The rows of a tile that one unit loads: what [`Rows::row`] says of each.
#[derive(CubeType)]
pub struct FoundRows {
    /// The element at which it begins.
    pub at: Array<usize>,
    /// Whether there is such a row.
    pub exist: Array<bool>,
    /// What has been read of a part of the rows, where units store what they load.
    pub read: Array<u64>,
}

/// Fills `tile`: its row `r` is row `first + r` of `rows`; what does not exist, and the padding, is zeros, so that
/// nothing of an unused row, not even a NaN, reaches a product. Of a `part` of the tile's rows.
///
/// Each unit takes its pieces of [`load_width`] columns, neighbours side by side. Where the machine copies
/// asynchronously the tile is complete after [`await_tile`](super::Pipeline::await_tile).
#[cube]
pub fn load_part<S: Numeric, R: Rows<S>>(
    tile: &mut Tile<S>,
    rows: &R,
    first: usize,
    #[comptime] part: Part,
) {
    let shape = comptime![tile.shape];
    let machine = comptime![shape.machine];
    let size = S::size();
    let width = comptime![load_width(machine, size)];
    let pieces = comptime![shape.cols / width];
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
            for c in 0..comptime![pieces.div_ceil(across)] {
                let col = (c * across + unit % across) * width;
                if comptime![pieces % across == 0] || col < comptime![shape.cols] {
                    rows.load_piece(tile, r, col, at[step], exists[step]);
                }
            }
        }
    }
}

/// `count` rows of `cols` elements of a buffer, `stride` elements apart, from element `start` on.
///
/// `N` is the width of the buffer's vectors: 1, or what [`load_width`] says, in which case `cols` and the rows'
/// beginnings are multiples of it.
#[derive(CubeType)]
pub struct Strided<'a, E: Numeric, N: Size> {
    /// The buffer.
    pub data: &'a [Vector<E, N>],
    /// The first element of row 0.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// How many rows there are.
    pub count: usize,
    /// Elements of each.
    pub cols: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size> Strided<'a, E, N> {
    /// `count` rows of `data`.
    pub fn new(
        data: &'a [Vector<E, N>],
        start: usize,
        stride: usize,
        count: usize,
        cols: usize,
    ) -> Self {
        Strided::<'a, E, N> { data, start, stride, count, cols }
    }

    /// The same rows from their column `col` on.
    pub fn from_column(&self, col: usize) -> Strided<'a, E, N> {
        let (start, cols) = (self.start + col, self.cols - col);
        Strided::<'a, E, N>::new(self.data, start, self.stride, self.count, cols)
    }

    /// Those of the rows that are below `count`.
    pub fn up_to(&self, count: usize) -> Strided<'a, E, N> {
        Strided::<'a, E, N>::new(self.data, self.start, self.stride, count, self.cols)
    }

    /// Fills `tile` from row 0 on.
    pub fn load<S: Numeric>(&self, tile: &mut Tile<S>) {
        self.load_part(tile, 0usize, comptime![Part::WHOLE]);
    }

    /// Fills a part of `tile` from row `first` on.
    pub fn load_part<S: Numeric>(&self, tile: &mut Tile<S>, first: usize, #[comptime] part: Part) {
        load_part::<S, Strided<'_, E, N>>(tile, self, first, part);
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Rows<S> for Strided<'a, E, N> {
    fn row(&self, i: usize) -> (usize, bool) {
        (self.start + i * self.stride, i < self.count)
    }

    fn load_piece(&self, tile: &mut Tile<S>, r: usize, col: usize, at: usize, exists: bool) {
        load_elements(tile, r, col, self.data, at, self.cols, exists);
    }
}

/// [`Rows::load_piece`] of a row of `cols` elements of `data`.
#[cube]
pub fn load_elements<E: Numeric, N: Size, S: Numeric>(
    tile: &mut Tile<S>,
    r: usize,
    col: usize,
    data: &[Vector<E, N>],
    at: usize,
    cols: usize,
    exists: bool,
) {
    let machine = comptime![tile.shape.machine];
    let width = N::value();
    let size = S::size();
    let piece = comptime![load_width(machine, size)];
    let at = at + col;
    let valid = select(exists, left_of(cols, col), 0usize);
    if comptime![machine.can().async_copy.is_some() && width == piece] {
        let to = tile.index(r, col / LANES);
        copy_async(&mut tile.memory, to, data, at / width, valid > 0);
    } else {
        #[unroll]
        for v in 0..comptime![piece / LANES] {
            let value = read_vector(data, at + v * LANES, left_of(valid, v * LANES));
            tile.put(r, col / LANES + v, value);
        }
    }
}

/// Elements of `size` bytes that are loaded together, and a multiple of which a buffer's rows must begin at
/// to be bound in vectors: as many as are copied asynchronously together, [`LANES`] otherwise.
pub fn load_width(machine: Machine, size: usize) -> usize {
    machine.can().async_copy.map_or(LANES, |bytes| bytes / size)
}

/// Units side by side along a row: eight copies of 16 bytes are a line of the cache.
fn units_along(machine: Machine) -> usize {
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
