//! The product that the linears share: rows of `x`, wherever they are, with rows of a weight, over all of k.
//!
//! ```text
//! sum += x[b] · w[b]                                       numbers; b: the columns of a tile
//! sum += (x[b] · w[b]) · (x_scale[b] · w_scale[b])         fp8 codes; b: 128 columns, whose scales they share
//! ```
//!
//! **A row does not depend on its company.** The columns of a tile are the same however many rows there are, tiles
//! follow each other along k, and no sum is split. What is left to the lowering does not depend on the rows either:
//! plain arithmetic adds, for each element, eight running sums over a tile in one order ([`multiply_nt`]); a warpgroup
//! MMA adds one instruction's columns (32 bytes) after the other into the element's register, and which instruction
//! it is, of how many columns or whose rows they are, changes nothing about one element. Rows of padding are zeros.

use crate::quant::BLOCK;
use crate::tile::*;
use cubecl::prelude::*;

/// A tile of results, and what of k is multiplied together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiling {
    /// Rows of x.
    pub rows: usize,
    /// Rows of w: columns of the result. Those of one unit have their scales in common.
    pub cols: usize,
    /// Columns of both.
    pub k: usize,
    /// Tiles of each in memory.
    pub stages: usize,
    /// Whether they are fp8 codes with scales.
    pub scaled: bool,
}

impl Tiling {
    /// The tiles that suit `machine` where products have about `rows` rows and `cols` columns. Their k depends on
    /// neither.
    pub fn new(machine: Machine, rows: usize, cols: usize, scaled: bool) -> Self {
        if machine.is_wgmma() {
            // A panel of 128 bytes: of codes a block.
            let k = if scaled { BLOCK } else { 64 };
            // Of few rows two teams run on a core, and their warpgroups share the columns.
            let (rows, cols, stages) = match (rows, cols, scaled) {
                (0..=64, _, _) => (64, 128, 4),
                // Sums of a block and of all blocks take a register each.
                (_, _, true) => (128, 128, 6),
                (_, 0..=128, false) => (128, 128, 4),
                _ => (128, 256, 4),
            };
            return Self { rows, cols, k, stages, scaled };
        }
        // Few rows (decode) get a low tile; a GPU's team needs eight rows to go round.
        let rows = match rows {
            0..=4 if machine.team == 1 => 4,
            0..=8 => 8,
            _ => 32,
        };
        let lanes = Share::new(machine, rows, LANES).lanes();
        Self { rows, cols: (LANES * lanes).max(64), k: BLOCK, stages: 1, scaled }
    }

    /// How the tiles are loaded.
    fn schedule(&self, machine: Machine) -> Schedule {
        if self.scaled {
            Schedule::new(machine, self.stages)
        } else {
            Schedule::of_running_products(machine, self.stages)
        }
    }
}

/// Row tiles that take turns before the next tile of columns: programs that run side by side read the same rows of x
/// and of w.
const BAND: usize = 8;

/// The tile of rows and the tile of columns of `program`, of `tiles_m · tiles_n`.
#[cube]
pub(crate) fn in_bands(program: usize, tiles_m: usize, tiles_n: usize) -> (usize, usize) {
    let (band, within) = divided(program, BAND * tiles_n);
    let first = band * BAND;
    let (tile_n, tile_m) = divided(within, min(tiles_m - first, BAND));
    (first + tile_m, tile_n)
}

/// Rows from their column `col` on.
#[derive(CubeType)]
struct FromColumn<'a, R: Rows + CubeType> {
    rows: &'a R,
    col: usize,
}

#[cube]
fn from_column<'a, R: Rows + CubeType>(rows: &'a R, col: usize) -> FromColumn<'a, R> {
    FromColumn::<'a, R> { rows, col }
}

#[cube]
impl<'a, R: Rows + CubeType> Rows for FromColumn<'a, R> {
    fn row(&self, i: usize) -> (usize, bool) {
        let (start, exists) = self.rows.row(i);
        (start + self.col, exists)
    }
}

/// The tiles of one program along k, of which rows of `x` and `w` have `k` elements.
#[derive(CubeType)]
pub(crate) struct Operands<'a, E: Numeric, N: Size, S: Numeric, R: Rows + CubeType> {
    x: &'a [Vector<E, N>],
    w: &'a [Vector<E, N>],
    x_rows: R,
    w_rows: Strided,
    k: usize,
    x_ring: Ring<S>,
    w_ring: Ring<S>,
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric, R: Rows + CubeType> Operands<'a, E, N, S, R> {
    /// The rows `x_rows` of `x` and `w_rows` of `w`.
    pub fn new(
        x: &'a [Vector<E, N>],
        w: &'a [Vector<E, N>],
        x_rows: R,
        w_rows: Strided,
        k: usize,
        #[comptime] tiling: Tiling,
        #[comptime] machine: Machine,
    ) -> Pipeline<Operands<'a, E, N, S, R>> {
        let x_shape = comptime![TileShape::new(machine, tiling.rows, tiling.k)];
        let w_shape = comptime![TileShape::new(machine, tiling.cols, tiling.k)];
        let x_ring = Ring::<S>::new(x_shape, tiling.stages);
        let w_ring = Ring::<S>::new(w_shape, tiling.stages);
        let tiles = Operands::<'a, E, N, S, R> { x, w, x_rows, w_rows, k, x_ring, w_ring };
        Pipeline::<Operands<'a, E, N, S, R>>::new(tiles, comptime![tiling.schedule(machine)])
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric, R: Rows + CubeType> Source for Operands<'a, E, N, S, R> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        let k0 = min(n * comptime![self.x_ring.shape.cols], self.k);
        let x_rows = from_column(&self.x_rows, k0);
        let w_rows = self.w_rows.from_column(k0);
        let cols = self.k - k0;
        let (mut x_tile, mut w_tile) = (self.x_ring.tile(n), self.w_ring.tile(n));
        load_part::<E, N, S, FromColumn<'_, R>>(&mut x_tile, self.x, &x_rows, 0usize, cols, part);
        load_part::<E, N, S, Strided>(&mut w_tile, self.w, &w_rows, 0usize, cols, part);
    }
}

/// The scales of a unit's rows and columns.
#[derive(CubeType)]
pub(crate) struct BlockScales<'a> {
    x: &'a [f32],
    w: &'a [f32],
    /// Where those of each slot's row begin in `x`.
    rows: Array<usize>,
    /// Where those of the unit's columns begin in `w`.
    cols: usize,
    #[cube(comptime)]
    share: Share,
}

#[cube]
impl<'a> BlockScales<'a> {
    /// Scales of `rows`, whose elements are blocks, and of the columns from `col` on, of a weight whose first scale is
    /// element `before`; of codes.
    pub fn new<R: Rows>(
        x: &'a [f32],
        w: &'a [f32],
        rows: &R,
        before: usize,
        col: usize,
        blocks: usize,
        #[comptime] tiling: Tiling,
        #[comptime] share: Share,
    ) -> Self {
        let mut starts = Array::<usize>::new(comptime![share.slots()]);
        if comptime![tiling.scaled] {
            #[unroll(share.unrolled())]
            for slot in 0..comptime![share.slots()] {
                let (start, exists) = rows.row(row_of(slot, share));
                // The scale of a row that is not written may be any.
                starts[slot] = select(exists, start, 0usize);
            }
        }
        let cols = before + (col + col_of(0usize, share)) / BLOCK * blocks;
        BlockScales::<'a> { x, w, rows: starts, cols, share }
    }

    /// What the products of block `b` are to be multiplied by, of each slot.
    fn of_block(&self, b: usize) -> Array<f32> {
        let share = comptime![self.share];
        let of_cols = self.w[self.cols + b];
        let mut factors = Array::<f32>::new(comptime![share.slots()]);
        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            factors[slot] = self.x[self.rows[slot] + b] * of_cols;
        }
        factors
    }
}

/// The sums over `steps` tiles along k.
#[cube]
pub(crate) fn product<E: Numeric, N: Size, S: Numeric, R: Rows + CubeType, W: Size>(
    operands: &Pipeline<Operands<'_, E, N, S, R>>,
    scales: &BlockScales<'_>,
    steps: usize,
    #[comptime] tiling: Tiling,
    #[comptime] share: Share,
) -> Fragment<W> {
    let mut sums = Fragment::<W>::zeroed(share);
    operands.start(steps);
    for step in 0..steps {
        operands.await_tile(step);
        operands.load_next(step);
        let x_tile = operands.source.x_ring.tile(step);
        let w_tile = operands.source.w_ring.tile(step);
        if comptime![tiling.scaled] {
            let mut block = Fragment::<W>::zeroed(share);
            start_nt(&mut block, &x_tile, &w_tile);
            // Looked up while the product runs.
            let factors = scales.of_block(step);
            finish_product(&mut block, 0usize);
            add_scaled(&mut sums, &block, &factors);
        } else {
            start_nt(&mut sums, &x_tile, &w_tile);
            // This product runs while the next is started; the one before is done.
            finish_product(&mut sums, 1usize);
        }
    }
    if comptime![!tiling.scaled] {
        finish_product(&mut sums, 0usize);
    }
    sums
}

/// `sums += block · factors`, a factor for each of this unit's rows; each sum is rounded once.
#[cube]
fn add_scaled<W: Size>(sums: &mut Fragment<W>, block: &Fragment<W>, factors: &Array<f32>) {
    let share = comptime![sums.share];
    #[unroll(share.unrolled())]
    for slot in 0..comptime![share.slots()] {
        let factor = Vector::<f32, W>::new(factors[slot]);
        #[unroll(share.unrolled())]
        for cell in 0..comptime![share.run()] {
            let sum = fma(block.get(slot, cell), factor, sums.get(slot, cell));
            sums.set(slot, cell, sum);
        }
    }
}
