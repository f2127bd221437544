//! Fragments: tiles of f32 results, shared out among the units of a team.

use super::convert::round_to;
use super::machine::{CellOrder, LANES, Machine, WARPGROUP, WARPGROUP_ROWS, unit_id};
use cubecl::prelude::*;

/// How the cells of a `rows x cols` tile of results are shared out among the units of a team.
///
/// Each unit holds, of `own_rows()` rows, `run()` *cells* each; a cell is `W` adjacent columns
/// (`W` = [`Machine::cell_width`]). The units that hold cells of the same row are adjacent lanes of
/// one plane, `lanes()` of them, so a row is reduced with a few shuffles. Kernels walk their cells as
/// `for own in 0..layout.own_rows() { for cell in 0..layout.run() { .. } }` on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile; a multiple of [`LANES`] times `lanes()` on a plain machine, of 8 otherwise.
    pub cols: usize,
    /// The machine whose units share the tile.
    pub machine: Machine,
}

impl Layout {
    /// The share of a `rows x cols` tile.
    ///
    /// On a plain machine `rows` is a power of two, and a team has no more than a plane of units for each
    /// row. Warpgroups take 64 rows each; if there are more of them, they share the columns evenly.
    pub fn new(machine: Machine, rows: usize, cols: usize) -> Self {
        let layout = Self { rows, cols, machine };
        // A launcher that breaks this has a bug, which the runtime reports as a refused kernel.
        let fits = match machine.can().group {
            None => rows.is_power_of_two() && machine.team <= rows * machine.plane,
            Some(group) => {
                rows * layout.across() == group.rows * machine.groups()
                    && cols.is_multiple_of(LANES * layout.across())
            }
        };
        assert!(fits, "{rows} x {cols} cells do not suit {machine:?}");
        layout
    }

    /// Adjacent lanes of a plane that hold cells of the same row.
    pub fn lanes(&self) -> usize {
        match self.machine.can().group {
            Some(group) => group.lanes,
            // It depends on the rows alone, so that fragments of the same rows are shared out alike
            // and one can be rescaled by what was reduced from another.
            None => (self.machine.team / self.rows).clamp(1, self.machine.plane),
        }
    }

    /// Groups side by side, each with its part of the columns of the same rows; 1 on a plain machine.
    pub fn across(&self) -> usize {
        let rows = self.machine.can().group.map_or(0, |group| group.rows);
        (self.machine.groups() * rows / self.rows).max(1)
    }

    /// Groups below each other, each with its own rows.
    pub fn down(&self) -> usize {
        self.machine.groups() / self.across()
    }

    /// Columns of each group.
    pub fn group_cols(&self) -> usize {
        self.cols / self.across()
    }

    /// The stride between the rows of one unit on a plain machine.
    fn row_stride(&self) -> usize {
        self.machine.team / self.lanes()
    }

    /// Rows each unit holds cells of.
    pub fn own_rows(&self) -> usize {
        match self.machine.can().group {
            Some(group) => group.own_rows,
            None => self.rows.div_ceil(self.row_stride()),
        }
    }

    /// Cells each unit holds of each of its rows.
    pub fn run(&self) -> usize {
        self.group_cols() / (self.lanes() * self.machine.cell_width())
    }

    /// Whether a group's registers have room for its part of the columns.
    pub fn has_room(&self) -> bool {
        self.machine.can().group.is_none_or(|group| self.group_cols() <= group.most_cols)
    }

    /// Whether the cells of a fragment can be an operand of a product where they are.
    pub fn in_registers(&self) -> bool {
        self.machine.can().operands_in_registers && self.across() == 1
    }

    /// Whether loops over own rows and cells are unrolled.
    pub fn unrolled(&self) -> bool {
        self.machine.unrolled()
    }
}

/// The row of the tile that this unit's `own`-th row is; beyond `layout.rows` where the team has more units
/// than the tile needs.
#[cube]
pub fn row_of(own: usize, #[comptime] layout: Layout) -> usize {
    let unit = unit_id(layout.machine);
    match comptime![layout.machine.can().cells] {
        CellOrder::Rows => own * comptime![layout.row_stride()] + unit / comptime![layout.lanes()],
        CellOrder::Quads => {
            let group = unit / WARPGROUP % comptime![layout.down()];
            group * WARPGROUP_ROWS + unit % WARPGROUP / 32 * 16 + unit % 32 / 4 + own * 8
        }
    }
}

/// The first column of this unit's `cell`.
#[cube]
pub fn col_of(cell: usize, #[comptime] layout: Layout) -> usize {
    match comptime![layout.machine.can().cells] {
        CellOrder::Rows => (cell * comptime![layout.lanes()] + lane_of(layout)) * LANES,
        CellOrder::Quads => {
            let lane = unit_id(layout.machine) % 4;
            group_of(layout) * comptime![layout.group_cols()] + (cell / 2) * 8 + lane * 2 + cell % 2
        }
    }
}

/// Which of the groups that share its rows this unit belongs to; 0 on a plain machine.
#[cube]
pub fn group_of(#[comptime] layout: Layout) -> usize {
    if comptime![layout.across() == 1] {
        0usize.runtime()
    } else {
        unit_id(layout.machine) / comptime![layout.machine.team / layout.across()]
    }
}

/// The position of this unit among those that hold cells of the same row; 0 is the one that writes
/// what is known once per row.
#[cube]
pub fn lane_of(#[comptime] layout: Layout) -> usize {
    let lanes = comptime![layout.lanes()];
    group_of(layout) * lanes + unit_id(layout.machine) % lanes
}

/// The sum of `value` over the lanes that hold cells of the same row, in a fixed order.
#[cube]
pub fn sum_lanes(value: f32, #[comptime] layout: Layout) -> f32 {
    let mut sum = value;
    let steps = comptime![layout.lanes().ilog2()];
    #[unroll]
    for step in 0..steps {
        sum += plane_shuffle_xor(sum, comptime![1u32 << step]);
    }
    sum
}

/// Sums several values over the lanes that hold cells of the same row, and leaves each lane with one of them:
/// the lane `l` gets the sum of `values[first + l]`. `count` is how many values there are; with fewer than lanes, a
/// power of two, they repeat. The order of a sum is fixed: it does not depend on `count`.
#[cube]
pub fn scatter_sums(
    values: &Array<f32>,
    first: usize,
    #[comptime] count: usize,
    #[comptime] layout: Layout,
) -> f32 {
    let lanes = comptime![layout.lanes()];
    let n = comptime![if count < lanes { count } else { lanes }];
    let mut kept = Array::<f32>::new(n);
    #[unroll]
    for i in 0..n {
        kept[i] = values[first + i];
    }
    // The farthest lanes first. Those that keep the same values exchange all of them,
    #[unroll]
    for step in 0..comptime![(lanes / n).ilog2() as usize] {
        #[unroll]
        for i in 0..n {
            kept[i] += plane_shuffle_xor(kept[i], comptime![(lanes >> (step + 1)) as u32]);
        }
    }
    // and then each exchange halves what a lane still adds up: it gives one half away and gets its own half's.
    #[unroll]
    for step in 0..comptime![n.ilog2() as usize] {
        let half = comptime![n >> (step + 1)];
        let upper = lane_of(layout) / half % 2 == 1;
        #[unroll]
        for i in 0..half {
            let given = select(upper, kept[i], kept[i + half]);
            let own = select(upper, kept[i + half], kept[i]);
            kept[i] = own + plane_shuffle_xor(given, comptime![half as u32]);
        }
    }
    kept[0]
}

/// The maximum of `value` over the lanes that hold cells of the same row; NaN if one is.
#[cube]
pub fn max_lanes(value: f32, #[comptime] layout: Layout) -> f32 {
    let mut top = value;
    let steps = comptime![layout.lanes().ilog2()];
    #[unroll]
    for step in 0..steps {
        top = max_nan(top, plane_shuffle_xor(top, comptime![1u32 << step]));
    }
    top
}

/// The sum of the columns of one cell, first to last.
#[cube]
pub fn sum_cell<W: Size>(cell: Vector<f32, W>) -> f32 {
    let mut sum = cell.extract(0usize);
    #[unroll]
    for i in 1..W::value() {
        sum += cell.extract(i);
    }
    sum
}

/// The maximum of the columns of one cell; NaN if one is.
#[cube]
pub fn max_cell<W: Size>(cell: Vector<f32, W>) -> f32 {
    let mut top = cell.extract(0usize);
    #[unroll]
    for i in 1..W::value() {
        top = max_nan(top, cell.extract(i));
    }
    top
}

/// This unit's cells of a tile of f32 results.
#[derive(CubeType)]
pub struct Fragment<W: Size> {
    /// The cells, in the order in which a warpgroup MMA accumulates, plain rows otherwise.
    pub cells: Array<Vector<f32, W>>,
    /// The share.
    #[cube(comptime)]
    pub layout: Layout,
}

#[cube]
impl<W: Size> Fragment<W> {
    /// A fragment of zeros.
    pub fn zeroed(#[comptime] layout: Layout) -> Self {
        let cells = Array::new(comptime![layout.own_rows() * layout.run()]);
        let mut fragment = Fragment::<W> { cells, layout };
        fragment.clear();
        fragment
    }

    /// Sets every cell to zero.
    pub fn clear(&mut self) {
        let layout = comptime![self.layout];
        #[unroll(layout.unrolled())]
        for i in 0..comptime![layout.own_rows() * layout.run()] {
            self.cells[i] = Vector::new(0.0f32);
        }
    }

    /// The `cell`-th cell of this unit's `own`-th row.
    pub fn get(&self, own: usize, cell: usize) -> Vector<f32, W> {
        let layout = comptime![self.layout];
        self.cells[cell_index(own, cell, layout)]
    }

    /// Replaces the `cell`-th cell of this unit's `own`-th row.
    pub fn set(&mut self, own: usize, cell: usize, value: Vector<f32, W>) {
        let layout = comptime![self.layout];
        self.cells[cell_index(own, cell, layout)] = value;
    }

    /// Multiplies every cell of this unit's `own`-th row by `factor`.
    pub fn scale_row(&mut self, own: usize, factor: f32) {
        let layout = comptime![self.layout];
        #[unroll(layout.unrolled())]
        for cell in 0..comptime![layout.run()] {
            let value = self.get(own, cell);
            self.set(own, cell, value * Vector::new(factor));
        }
    }
}

/// Writes the first `cols` columns of this unit's `own`-th row of `fragment`, times `scale` and rounded to
/// `O`, to `out` from element `at` on; zeros, whatever the row holds, if `scale` is 0. `P` is 1, or what
/// [`store_width`] says. Returns whether a NaN is among them.
#[cube]
pub fn store_row<O: Numeric, P: Size, W: Size>(
    fragment: &Fragment<W>,
    own: usize,
    scale: f32,
    out: &mut [Vector<O, P>],
    at: usize,
    cols: usize,
) -> bool {
    let mut nan = false.runtime();
    let layout = comptime![fragment.layout];
    let machine = comptime![layout.machine];
    let width = P::value();
    // The columns that are written together are in one cell, or in as many cells beside each other.
    let (cells, vectors) = comptime![match machine.cell_width() {
        1 => (width, 1),
        cell => (1, cell / width),
    }];
    #[unroll(layout.unrolled())]
    for group in 0..comptime![layout.run() / cells] {
        let col = col_of(group * cells, layout);
        #[unroll]
        for v in 0..vectors {
            let col = col + v * width;
            if col < cols {
                let mut values = Vector::<O, P>::cast_from(Vector::<f32, P>::new(0.0f32));
                #[unroll]
                for i in 0..width {
                    let cell = group * cells + comptime![if cells > 1 { i } else { 0 }];
                    let column = comptime![if cells > 1 { 0 } else { v * width + i }];
                    let value = fragment.get(own, cell).extract(column) * scale;
                    let value = select(scale == 0.0f32, 0.0f32, value);
                    nan = nan || value.is_nan();
                    values.insert(i, round_to::<O>(value, machine));
                }
                out[(at + col) / width] = values;
            }
        }
    }
    nan
}

/// How many elements of an output [`store_row`] writes together if every row begins at a multiple of so many and
/// has a multiple of so many columns.
pub fn store_width(machine: Machine) -> usize {
    machine.can().store_width
}

/// Where the `cell`-th cell of the `own`-th row is among the unit's cells: the order in which a warpgroup MMA
/// returns its accumulator, and plain rows otherwise.
#[cube]
fn cell_index(own: usize, cell: usize, #[comptime] layout: Layout) -> usize {
    match comptime![layout.machine.can().cells] {
        CellOrder::Rows => own * comptime![layout.run()] + cell,
        CellOrder::Quads => (cell / 2) * 4 + own * 2 + cell % 2,
    }
}
