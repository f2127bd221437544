//! Tiles: matrices in the memory of a team, operands of products.

use super::{
    Fragment, LANES, Lanes, Machine, MatrixUnit, Share, col_of, padded, row_of, team_memory,
    unit_id,
};
use cubecl::prelude::*;
use cubecl::wgmma::{Major, Swizzle, WgmmaTileLayout};

/// The comptime shape of a [`Tile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// Rows.
    pub rows: usize,
    /// Columns, padded with zeros to whole vectors.
    pub cols: usize,
    /// The machine whose team holds the tile.
    pub machine: Machine,
}

impl TileShape {
    /// The shape of a `rows x cols` tile, columns rounded up to what the matrix unit multiplies.
    pub fn new(machine: Machine, rows: usize, cols: usize) -> Self {
        let cols = match machine.matrix {
            MatrixUnit::Plain => padded(cols),
            // A 128-byte panel of 2-byte elements; of 1-byte elements, the widest index head.
            MatrixUnit::Wgmma => cols.next_multiple_of(64),
        };
        Self { rows, cols, machine }
    }

    /// Vectors in a row.
    pub fn vectors(&self) -> usize {
        self.cols / LANES
    }

    /// Vectors in the tile.
    pub fn len(&self) -> usize {
        self.rows * self.vectors()
    }

    /// Whether the tile has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layout in which a warpgroup MMA reads the tile, its rows contiguous along K.
    pub fn k_major(&self) -> WgmmaTileLayout {
        WgmmaTileLayout { major: Major::K, swizzle: Swizzle::B128, rows: self.rows, k: self.cols }
    }

    /// The same bytes read transposed: rows along K, columns along M or N. A panel of one is a panel
    /// of the other, so one tile serves `q · kᵀ` and `p · v`.
    pub fn mn_major(&self) -> WgmmaTileLayout {
        WgmmaTileLayout { major: Major::MN, swizzle: Swizzle::B128, rows: self.cols, k: self.rows }
    }

    fn alignment(&self) -> usize {
        match self.machine.matrix {
            MatrixUnit::Plain => 64,
            MatrixUnit::Wgmma => self.k_major().alignment(),
        }
    }
}

/// A matrix in the memory of a team. `S` is the element as kept: f32 on a plain machine, so that a
/// value is converted once when it is loaded and not at every product; the matrix unit's operand type
/// otherwise.
#[derive(CubeType)]
pub struct Tile<S: Numeric> {
    /// The vectors of the tile, in the order of its layout.
    pub memory: Shared<[Vector<S, Const<8>>]>,
    /// The shape.
    #[cube(comptime)]
    pub shape: TileShape,
}

#[cube]
impl<S: Numeric> Tile<S> {
    /// An uninitialised tile.
    pub fn new(#[comptime] shape: TileShape) -> Self {
        let memory = team_memory::<Vector<S, Lanes>>(
            comptime![shape.len()],
            comptime![shape.alignment()],
            comptime![shape.machine],
        );
        Tile::<S> { memory, shape }
    }

    /// Columns `8 v .. 8 v + 8` of `row`, as f32.
    pub fn vector(&self, row: usize, v: usize) -> Vector<f32, Lanes> {
        let shape = comptime![self.shape];
        Vector::cast_from(self.memory[vector_index::<S>(row, v, shape)])
    }

    /// Replaces columns `8 v .. 8 v + 8` of `row`.
    pub fn put(&mut self, row: usize, v: usize, value: Vector<S, Lanes>) {
        let shape = comptime![self.shape];
        self.memory[vector_index::<S>(row, v, shape)] = value;
    }
}

/// Where columns `8 v .. 8 v + 8` of `row` are in the memory of a tile.
#[cube]
fn vector_index<S: Numeric>(row: usize, v: usize, #[comptime] shape: TileShape) -> usize {
    if comptime![shape.machine.matrix == MatrixUnit::Wgmma] {
        let layout = comptime![shape.k_major()];
        let size = S::size();
        layout.offset(row, v * LANES, size) / LANES
    } else {
        row * comptime![shape.vectors()] + v
    }
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

/// How many of the eight columns from `8 v` on lie before `cols`; the vector's own count may be larger.
#[cube]
pub fn left_of(cols: usize, v: usize) -> usize {
    select(v * LANES < cols, cols - v * LANES, 0usize)
}

/// The little-endian f32 at byte `at`.
#[cube]
pub fn read_f32(bytes: &[u8], at: usize) -> f32 {
    let mut bits = 0u32.runtime();
    #[unroll]
    for i in 0..4usize {
        bits |= u32::cast_from(bytes[at + i]) << comptime![8 * i as u32];
    }
    f32::reinterpret(bits)
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

/// Fills `tile` with rows of `source`: tile row `r` is the `cols` elements from `start + r * stride`
/// on, for `r < rows`; the other rows and the padding are zeros.
#[cube]
pub fn load_rows<E: Numeric, N: Size, S: Numeric>(
    tile: &mut Tile<S>,
    source: &[Vector<E, N>],
    start: usize,
    stride: usize,
    rows: usize,
    cols: usize,
) {
    let shape = comptime![tile.shape];
    let team = comptime![shape.machine.team];
    let unit = unit_id(comptime![shape.machine]);
    for step in 0..comptime![shape.len().div_ceil(team)] {
        let i = step * team + unit;
        if comptime![shape.len() % team == 0] || i < comptime![shape.len()] {
            let row = i / comptime![shape.vectors()];
            let v = i % comptime![shape.vectors()];
            let valid = select(row < rows, left_of(cols, v), 0usize);
            tile.put(
                row,
                v,
                read_vector::<E, N, S>(source, start + row * stride + v * LANES, valid),
            );
        }
    }
}

/// Fills `tile` with the rows of `source` that `slots` names. Rows come in pages: `page_size` rows,
/// `stride` elements apart, in each page, and a page every `page_stride` elements; unpaged rows are one
/// page. A negative slot means no row: zeros, so that nothing of an unused row, not even a NaN, can
/// reach a product.
#[cube]
pub fn gather_rows<E: Numeric, N: Size, S: Numeric>(
    tile: &mut Tile<S>,
    source: &[Vector<E, N>],
    slots: &[i32],
    stride: usize,
    page_size: usize,
    page_stride: usize,
    cols: usize,
) {
    let shape = comptime![tile.shape];
    let team = comptime![shape.machine.team];
    let unit = unit_id(comptime![shape.machine]);
    for step in 0..comptime![shape.len().div_ceil(team)] {
        let i = step * team + unit;
        if comptime![shape.len() % team == 0] || i < comptime![shape.len()] {
            let row = i / comptime![shape.vectors()];
            let v = i % comptime![shape.vectors()];
            let slot = slots[row];
            let valid = select(slot >= 0, left_of(cols, v), 0usize);
            // The offset of a missing row is never used, but it must not be computed from -1 either.
            let slot = select(slot >= 0, slot, 0i32) as usize;
            let at = slot / page_size * page_stride + slot % page_size * stride + v * LANES;
            tile.put(row, v, read_vector::<E, N, S>(source, at, valid));
        }
    }
}

/// Writes a fragment into a tile, rounded to the tile's element.
#[cube]
pub fn store_fragment<S: Numeric, W: Size>(
    tile: &mut Tile<S>,
    fragment: &Fragment<W>,
    #[comptime] share: Share,
) {
    #[unroll(share.unrolled())]
    for slot in 0..comptime![share.slots()] {
        let row = row_of(slot, share);
        #[unroll(share.unrolled())]
        for cell in 0..comptime![share.run()] {
            let col = col_of(cell, share);
            let value = fragment.get(slot, cell);
            if comptime![share.machine.matrix == MatrixUnit::Wgmma] {
                let layout = comptime![tile.shape.k_major()];
                let size = S::size();
                let scalars = tile.memory.with_vector_size_mut::<Const<1>>();
                scalars[layout.offset(row, col, size)] =
                    Vector::new(S::cast_from(value.extract(0usize)));
            } else {
                #[unroll]
                for v in 0..comptime![share.machine.cell_width() / LANES] {
                    let mut out = Vector::<S, Lanes>::cast_from(Vector::<f32, Lanes>::new(0.0f32));
                    #[unroll]
                    for i in 0..LANES {
                        out.insert(i, S::cast_from(value.extract(i)));
                    }
                    tile.put(row, col / LANES + v, out);
                }
            }
        }
    }
}
