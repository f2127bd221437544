//! Tiles: matrices in the memory of a team, operands of products.

use super::fragment::{Fragment, Layout, col_of, row_of};
use super::machine::{LANES, Lanes, Machine, Part, Piece, team_memory};
use super::warpgroup::descriptor;
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
        Self { rows, cols: cols.next_multiple_of(machine.can().tile_cols), machine }
    }

    /// The shape of the tile through which a fragment shared out as `layout` becomes an operand; next to
    /// nothing where it can be one in registers.
    pub fn via(layout: Layout) -> Self {
        let rows = if layout.in_registers() { 8 } else { layout.rows };
        Self::new(layout.machine, rows, layout.cols)
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

    /// The shape of the first `cols` columns alone. Panels are kept one after the other, rows are not.
    pub fn leading(&self, cols: usize) -> Self {
        let cols = if self.machine.can().panel.is_some() { cols } else { self.cols };
        Self { cols: cols.next_multiple_of(self.machine.can().tile_cols), ..*self }
    }

    /// The layout in which a warpgroup MMA reads the tile, its rows contiguous along K.
    pub fn k_major(&self) -> WgmmaTileLayout {
        WgmmaTileLayout { major: Major::K, swizzle: Swizzle::B128, rows: self.rows, k: self.cols }
    }

    /// The tile as an operand whose rows are contiguous along `major`. Along MN the same bytes are read
    /// transposed, a panel of one being a panel of the other: so one tile serves `q · kᵀ` and `p · v`.
    pub fn operand(&self, major: Major) -> WgmmaTileLayout {
        match major {
            Major::K => self.k_major(),
            Major::MN => WgmmaTileLayout { major, rows: self.cols, k: self.rows, ..self.k_major() },
        }
    }

    /// The team memory of `tiles` such tiles of elements of `size` bytes.
    pub fn piece(&self, tiles: usize, size: usize) -> Piece {
        Piece { bytes: tiles * self.rows * self.cols * size, alignment: self.alignment() }
    }

    fn alignment(&self) -> usize {
        if self.machine.can().panel.is_some() { self.k_major().alignment() } else { 64 }
    }
}

/// A matrix in the memory of a team. `S` is the element as kept: f32 on a plain machine, so that a
/// value is converted once when it is loaded and not at every product; the matrix unit's operand type
/// otherwise.
#[derive(CubeType)]
pub struct Tile<S: Numeric> {
    /// The vectors of the tile, in the order of its layout, from `first` on.
    pub memory: Shared<[Vector<S, Const<8>>]>,
    /// The tile's first vector.
    pub first: usize,
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
        Tile::<S> { memory, first: 0usize, shape }
    }

    /// Columns `8 v .. 8 v + 8` of `row`, as f32.
    pub fn vector(&self, row: usize, v: usize) -> Vector<f32, Lanes> {
        Vector::cast_from(self.memory[self.index(row, v)])
    }

    /// Replaces columns `8 v .. 8 v + 8` of `row`.
    pub fn put(&mut self, row: usize, v: usize, value: Vector<S, Lanes>) {
        let at = self.index(row, v);
        self.memory[at] = value;
    }

    /// Where columns `8 v .. 8 v + 8` of `row` are in `memory`.
    pub fn index(&self, row: usize, v: usize) -> usize {
        let shape = comptime![self.shape];
        self.first + vector_index::<S>(row, v, shape)
    }

    /// The first columns of the tile, at least `cols` and a whole number of panels; all of it where there are none.
    pub fn leading(&self, #[comptime] cols: usize) -> Tile<S> {
        let shape = comptime![self.shape.leading(cols)];
        Tile::<S> { memory: self.memory.clone(), first: self.first, shape }
    }

    /// The last panel of the tile, as a tile of its own.
    pub fn last_panel(&self) -> Tile<S> {
        let size = S::size();
        let (shape, before) = comptime! {
            let cols = self.shape.machine.can().panel.map_or(self.shape.cols, |bytes| bytes / size);
            let shape = TileShape { cols, ..self.shape };
            (shape, self.shape.len() - shape.len())
        };
        Tile::<S> { memory: self.memory.clone(), first: self.first + before, shape }
    }

    /// What a warpgroup MMA finds the operand `layout` of this tile by, from its `row` on, the same number in
    /// every unit of a plane.
    pub fn describe(&self, #[comptime] layout: WgmmaTileLayout, row: usize) -> u64 {
        let size = S::size();
        let bytes = self.first * comptime![LANES * size] + layout.byte_offset(row, 0usize, size);
        // Addresses are counted in units of 16 bytes.
        uniform(descriptor(&self.memory, layout) + (bytes / 16) as u64)
    }
}

/// `descriptor`, which is the same in every unit of a plane, as the compiler sees then. It is also asked anew
/// wherever it is used: LLVM would otherwise compute the descriptor of every step of a product before the loop
/// and keep them all, 72 registers for the 36 steps of `q · kᵀ`.
#[cube]
fn uniform(descriptor: u64) -> u64 {
    let address = plane_broadcast(u32::cast_from(descriptor & 0xffff_ffffu64), 0u32);
    (descriptor & 0xffff_ffff_0000_0000u64) | u64::cast_from(address)
}

/// Tiles of the same shape that are filled and used in turn, so that the next ones can be on their way
/// while one is worked on.
#[derive(CubeType)]
pub struct Ring<S: Numeric> {
    memory: Shared<[Vector<S, Const<8>>]>,
    /// The shape of each tile.
    #[cube(comptime)]
    pub shape: TileShape,
    /// How many there are.
    #[cube(comptime)]
    pub stages: usize,
}

#[cube]
impl<S: Numeric> Ring<S> {
    /// `stages` uninitialised tiles.
    pub fn new(#[comptime] shape: TileShape, #[comptime] stages: usize) -> Self {
        let memory = team_memory::<Vector<S, Lanes>>(
            comptime![shape.len() * stages],
            comptime![shape.alignment()],
            comptime![shape.machine],
        );
        Ring::<S> { memory, shape, stages }
    }

    /// The tile that the `n`-th load fills.
    pub fn tile(&self, n: usize) -> Tile<S> {
        let shape = comptime![self.shape];
        let first = n % comptime![self.stages] * comptime![shape.len()];
        Tile::<S> { memory: self.memory.clone(), first, shape }
    }
}

/// Where columns `8 v .. 8 v + 8` of `row` are in the memory of a tile.
#[cube]
fn vector_index<S: Numeric>(row: usize, v: usize, #[comptime] shape: TileShape) -> usize {
    if comptime![shape.machine.can().panel.is_some()] {
        let panels = comptime![shape.k_major()];
        let size = S::size();
        panels.offset(row, v * LANES, size) / LANES
    } else {
        row * comptime![shape.vectors()] + v
    }
}

/// Writes a fragment into a tile, rounded to the tile's element.
#[cube]
pub fn store_fragment<S: Numeric, W: Size>(tile: &mut Tile<S>, fragment: &Fragment<W>) {
    store_part(tile, fragment, row_of(0usize, fragment.layout), comptime![Part::WHOLE]);
}

/// [`store_fragment`] of a part of each row's cells; `row` is the unit's first.
#[cube]
pub fn store_part<S: Numeric, W: Size>(
    tile: &mut Tile<S>,
    fragment: &Fragment<W>,
    row: usize,
    #[comptime] part: Part,
) {
    let layout = comptime![fragment.layout];
    if comptime![layout.machine.can().panel.is_some()] {
        // Cells come in pairs of adjacent columns, and a unit's rows are eight apart, which are swizzled alike.
        let panels = comptime![tile.shape.k_major()];
        let size = S::size();
        let (first, count, down) = comptime! {
            let pairs = layout.run() / 2;
            (part.first(pairs), part.count(pairs), panels.offset(8, 0, size))
        };
        #[unroll]
        for pair in 0..count {
            let pair = first + pair;
            let at = panels.offset(row, col_of(pair * 2, layout), size) / 2;
            let at = tile.first * comptime![LANES / 2] + at;
            #[unroll]
            for own in 0..comptime![layout.own_rows()] {
                let mut out =
                    Vector::<S, Const<2>>::cast_from(Vector::<f32, Const<2>>::new(0.0f32));
                #[unroll]
                for i in 0..2usize {
                    out.insert(i, S::cast_from(fragment.get(own, pair * 2 + i).extract(0usize)));
                }
                let at = at + comptime![own * down / 2];
                tile.memory.with_vector_size_mut::<Const<2>>()[at] = out;
            }
        }
    } else {
        let (first, count) = comptime![(part.first(layout.run()), part.count(layout.run()))];
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let row = row_of(own, layout);
            #[unroll(layout.unrolled())]
            for cell in 0..count {
                let cell = first + cell;
                let col = col_of(cell, layout);
                let value = fragment.get(own, cell);
                #[unroll]
                for v in 0..comptime![layout.machine.cell_width() / LANES] {
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
