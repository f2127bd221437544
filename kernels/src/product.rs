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

use crate::device::Device;
use crate::dtype::DType;
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
        if let Some(group) = machine.can().group {
            // A panel: of codes a block.
            let k = if scaled { BLOCK } else { 64 };
            let most = group.rows * FeedRoles::of(machine, scaled).products.groups();
            // Of few rows several teams run on a core.
            let (rows, cols, stages) = match (rows, cols, scaled) {
                (_, _, true) if rows <= group.rows => (group.rows, 64, 4),
                _ if rows <= group.rows => (group.rows, 128, 4),
                // Sums of a block and of all blocks take a register each.
                (_, _, true) => (most, 128, 6),
                (_, 0..=128, false) => (most, 128, 4),
                _ => (most, group.most_cols, 4),
            };
            return Self { rows, cols, k, stages, scaled };
        }
        // Few rows (decode) get a low tile; along fewer than 16 a GPU's team would stand in the columns of two blocks.
        let rows = match rows {
            0..=4 if machine.team == 1 => 4,
            0..=8 if machine.team == 1 => 8,
            0..=16 => 16,
            _ => 32,
        };
        let lanes = Layout::new(machine, rows, LANES).lanes();
        Self { rows, cols: (LANES * lanes).max(64), k: BLOCK, stages: 1, scaled }
    }
}

/// How products with about `rows` rows run on `device`, of `dtype`: two warpgroups multiply numbers, which they load too;
/// codes are loaded by a warpgroup of its own for two others, or of few rows for one.
pub(crate) fn machine(device: &Device, dtype: DType, rows: usize) -> Machine {
    let groups = if dtype == DType::E4m3 && rows > WARPGROUP_ROWS { 3 } else { 2 };
    device.matrix_machine(dtype.elem(), groups).unwrap_or_else(|| device.machine(256))
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

/// Which rows of x the rows of a tile are.
#[cube]
pub(crate) trait TileRows<S: Numeric> {
    /// The number in x of row `i`, and whether there is such a row. Any `i` may be asked for.
    fn number(&self, i: usize) -> (usize, bool);

    /// Fills a part of `tile` from the rows' column `col` on.
    fn load_from(&self, tile: &mut Tile<S>, col: usize, #[comptime] part: Part);
}

/// The tiles of one program along k.
#[derive(CubeType)]
pub(crate) struct Operands<'a, E: Numeric, N: Size, S: Numeric, R: TileRows<S> + CubeType> {
    x_rows: R,
    w_rows: Strided<'a, E, N>,
    x_ring: Ring<S>,
    w_ring: Ring<S>,
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric, R: TileRows<S> + CubeType> Operands<'a, E, N, S, R> {
    /// The rows `x_rows` of x and `w_rows` of a weight.
    pub fn new(
        x_rows: R,
        w_rows: Strided<'a, E, N>,
        #[comptime] tiling: Tiling,
        #[comptime] roles: FeedRoles,
    ) -> Feed<Operands<'a, E, N, S, R>> {
        let x_shape = comptime![TileShape::new(roles.loads, tiling.rows, tiling.k)];
        let w_shape = comptime![TileShape::new(roles.loads, tiling.cols, tiling.k)];
        let x_ring = Ring::<S>::new(x_shape, tiling.stages);
        let w_ring = Ring::<S>::new(w_shape, tiling.stages);
        let tiles = Operands::<'a, E, N, S, R> { x_rows, w_rows, x_ring, w_ring };
        let width = N::value();
        let (stores, running) = comptime![(width == 1, !tiling.scaled)];
        Feed::<Operands<'a, E, N, S, R>>::new(tiles, tiling.stages, running, stores, roles)
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric, R: TileRows<S> + CubeType> Source
    for Operands<'a, E, N, S, R>
{
    fn load(&self, n: usize, #[comptime] part: Part) {
        let k0 = min(n * comptime![self.x_ring.shape.cols], self.w_rows.cols);
        let (mut x_tile, mut w_tile) = (self.x_ring.tile(n), self.w_ring.tile(n));
        self.x_rows.load_from(&mut x_tile, k0, part);
        self.w_rows.from_column(k0).load_part(&mut w_tile, 0usize, part);
    }
}

/// The scales of a unit's rows and columns.
#[derive(CubeType)]
pub(crate) struct BlockScales<'a> {
    x: &'a [f32],
    w: &'a [f32],
    /// Where those of each own row begin in `x`.
    rows: Array<usize>,
    /// Where those of the unit's columns begin in `w`.
    cols: usize,
    #[cube(comptime)]
    layout: Layout,
}

#[cube]
impl<'a> BlockScales<'a> {
    /// Scales of `rows`, `blocks` each, and of the columns from `col` on, of a weight whose first scale is element
    /// `before`; of codes.
    pub fn new<S: Numeric, R: TileRows<S> + CubeType>(
        x: &'a [f32],
        w: &'a [f32],
        rows: &R,
        before: usize,
        col: usize,
        blocks: usize,
        #[comptime] tiling: Tiling,
        #[comptime] layout: Layout,
    ) -> Self {
        let mut starts = Array::<usize>::new(comptime![layout.own_rows()]);
        if comptime![tiling.scaled] {
            #[unroll(layout.unrolled())]
            for own in 0..comptime![layout.own_rows()] {
                let (row, exists) = rows.number(row_of(own, layout));
                // The scale of a row that is not written may be any.
                starts[own] = select(exists, row, 0usize) * blocks;
            }
        }
        let cols = before + (col + col_of(0usize, layout)) / BLOCK * blocks;
        BlockScales::<'a> { x, w, rows: starts, cols, layout }
    }

    /// What the products of block `b` are to be multiplied by, of each own row.
    fn of_block(&self, b: usize) -> Array<f32> {
        let layout = comptime![self.layout];
        let of_cols = self.w[self.cols + b];
        let mut factors = Array::<f32>::new(comptime![layout.own_rows()]);
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            factors[own] = self.x[self.rows[own] + b] * of_cols;
        }
        factors
    }
}

/// The sums over `steps` tiles along k. Every unit of the cube calls it; of those that only load, they are zeros.
#[cube]
pub(crate) fn product<E: Numeric, N: Size, S: Numeric, R: TileRows<S> + CubeType, W: Size>(
    operands: &mut Feed<Operands<'_, E, N, S, R>>,
    scales: &BlockScales<'_>,
    steps: usize,
    #[comptime] tiling: Tiling,
    #[comptime] layout: Layout,
) -> Fragment<W> {
    let mut sums = Fragment::<W>::zeroed(layout);
    operands.start(steps);
    if takes(layout.machine) {
        for step in 0..steps {
            operands.await_tile(step);
            let x_tile = operands.tiles.source.x_ring.tile(step);
            let w_tile = operands.tiles.source.w_ring.tile(step);
            if comptime![tiling.scaled] {
                let mut block = Fragment::<W>::zeroed(layout);
                start_nt(&mut block, &x_tile, &w_tile);
                // Looked up while the product runs.
                let factors = scales.of_block(step);
                finish_product(&mut block, 0usize);
                operands.used(step);
                add_scaled(&mut sums, &block, &factors);
            } else {
                start_nt(&mut sums, &x_tile, &w_tile);
                // This product runs while the next is started; the one before is done.
                finish_product(&mut sums, 1usize);
                if step > 0 {
                    operands.used(step - 1);
                }
            }
        }
        if comptime![!tiling.scaled] {
            finish_product(&mut sums, 0usize);
        }
    }
    sums
}

/// `sums += block · factors`, a factor for each of this unit's rows; each sum is rounded once.
#[cube]
fn add_scaled<W: Size>(sums: &mut Fragment<W>, block: &Fragment<W>, factors: &Array<f32>) {
    let layout = comptime![sums.layout];
    #[unroll(layout.unrolled())]
    for own in 0..comptime![layout.own_rows()] {
        let factor = Vector::<f32, W>::new(factors[own]);
        #[unroll(layout.unrolled())]
        for cell in 0..comptime![layout.run()] {
            let sum = fma(block.get(own, cell), factor, sums.get(own, cell));
            sums.set(own, cell, sum);
        }
    }
}
