//! Products of tiles.

use super::fragment::{Fragment, Layout, col_of, group_of, row_of, sum_cell};
use super::machine::{
    LANES, Lanes, MatrixUnit, Part, WARPGROUP, WARPGROUP_ROWS, sync_team, unit_id,
};
use super::tiles::{Tile, store_fragment};
use super::warpgroup::{
    commit_mma, fence_cells, fence_fragment, fence_mma, issue_mma, issue_mma_registers, wait_mma,
};
use cubecl::prelude::*;
use cubecl::wgmma::{Major, WgmmaTileLayout};

/// Columns (`nt`) or cells (`nn`) that a plain product computes together. Eight running sums, four
/// vectors of one operand and two of the other fit the sixteen registers of AVX2.
const COLS: usize = 2;

/// Rows that a plain product computes together, so that each loaded vector serves several of them.
fn rows_together(layout: Layout) -> usize {
    [4, 2, 1].into_iter().find(|rows| layout.own_rows().is_multiple_of(*rows)).unwrap_or(1)
}

/// `c += a · bᵀ`: `c[i, j] += Σ_k a[i, k] · b[j, k]` in f32.
///
/// `a`: tile `[layout.rows, k]`; `b`: tile `[layout.cols, k]`. The tiles must be complete
/// ([`sync_team`](super::sync_team)).
#[cube]
pub fn multiply_nt<S: Numeric, W: Size>(c: &mut Fragment<W>, a: &Tile<S>, b: &Tile<S>) {
    start_nt(c, a, b);
    finish_product(c, 0usize);
}

/// Starts [`multiply_nt`]: until [`finish_product`], `c` is not to be touched, nor the tiles overwritten.
#[cube]
pub fn start_nt<S: Numeric, W: Size>(c: &mut Fragment<W>, a: &Tile<S>, b: &Tile<S>) {
    match comptime![c.layout.machine.matrix] {
        MatrixUnit::Plain => multiply_nt_plain(c, a, b),
        MatrixUnit::Wgmma => multiply_wgmma(c, a, b, Major::K),
    }
}

/// Waits until at most the last `pending` products that were started are still running; with none, `c` may
/// be used again.
#[cube]
pub fn finish_product<W: Size>(c: &mut Fragment<W>, #[comptime] pending: usize) {
    if comptime![c.layout.machine.can().async_products] {
        wait_mma(pending);
        if comptime![pending == 0] {
            fence_cells(&mut c.cells);
        }
    }
}

/// `c += a · b`: `c[i, j] += Σ_k a[i, k] · b[k, j]` in f32.
///
/// `a`: tile `[layout.rows, k]`; `b`: tile `[k, at least layout.cols]`, of which the first `layout.cols`
/// columns are used.
#[cube]
pub fn multiply_nn<S: Numeric, W: Size>(c: &mut Fragment<W>, a: &Tile<S>, b: &Tile<S>) {
    match comptime![c.layout.machine.matrix] {
        MatrixUnit::Plain => multiply_nn_plain(c, a, b),
        MatrixUnit::Wgmma => multiply_wgmma(c, a, b, Major::MN),
    }
    finish_product(c, 0usize);
}

/// [`multiply_nn`] with `a` still in a fragment, shared out as `a_layout`: `c += a · b`, `a` rounded to `S`.
///
/// A warpgroup that holds whole rows multiplies them out of its registers; otherwise `a` goes through
/// `via`, a tile that no unit reads any more.
#[cube]
pub fn multiply_fragment_nn<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Fragment<W>,
    via: &mut Tile<S>,
    b: &Tile<S>,
) {
    if comptime![a.layout.in_registers()] {
        multiply_wgmma_registers(c, a, b);
    } else {
        store_fragment(via, a);
        sync_team(comptime![c.layout.machine]);
        multiply_nn(c, &*via, b);
    }
}

/// Each unit computes the dot products of its own cells, as vectors of partial sums over k.
#[cube]
fn multiply_nt_plain<S: Numeric, W: Size>(c: &mut Fragment<W>, a: &Tile<S>, b: &Tile<S>) {
    let layout = comptime![c.layout];
    let k_vectors = comptime![a.shape.vectors()];
    let rows = comptime![rows_together(layout)];
    #[unroll(layout.unrolled())]
    for block in 0..comptime![layout.own_rows() / rows] {
        #[unroll(layout.unrolled())]
        for cell in 0..comptime![layout.run()] {
            let col = col_of(cell, layout);
            #[unroll]
            for pair in 0..comptime![LANES / COLS] {
                let mut sums = Array::<Vector<f32, Lanes>>::new(comptime![rows * COLS]);
                #[unroll]
                for i in 0..comptime![rows * COLS] {
                    sums[i] = Vector::new(0.0f32);
                }
                for k in 0..k_vectors {
                    #[unroll]
                    for i in 0..rows {
                        let x = a.vector(row_of(block * rows + i, layout), k);
                        #[unroll]
                        for j in 0..COLS {
                            let y = b.vector(col + comptime![pair * COLS + j], k);
                            sums[i * COLS + j] = fma(x, y, sums[i * COLS + j]);
                        }
                    }
                }
                #[unroll]
                for i in 0..rows {
                    let mut value = c.get(block * rows + i, cell);
                    #[unroll]
                    for j in 0..COLS {
                        let at = comptime![pair * COLS + j];
                        value.insert(at, value.extract(at) + sum_cell(sums[i * COLS + j]));
                    }
                    c.set(block * rows + i, cell, value);
                }
            }
        }
    }
}

/// Each unit adds to its own cells, whole rows of `b` at a time.
#[cube]
fn multiply_nn_plain<S: Numeric, W: Size>(c: &mut Fragment<W>, a: &Tile<S>, b: &Tile<S>) {
    let layout = comptime![c.layout];
    let k_vectors = comptime![a.shape.vectors()];
    let cells = comptime![if layout.run().is_multiple_of(COLS) { COLS } else { 1 }];
    let rows = comptime![rows_together(layout)];
    #[unroll(layout.unrolled())]
    for block in 0..comptime![layout.own_rows() / rows] {
        #[unroll(layout.unrolled())]
        for group in 0..comptime![layout.run() / cells] {
            let mut sums = Array::<Vector<f32, W>>::new(comptime![rows * cells]);
            #[unroll]
            for i in 0..rows {
                #[unroll]
                for j in 0..cells {
                    sums[i * cells + j] = c.get(block * rows + i, group * cells + j);
                }
            }
            for k in 0..k_vectors {
                #[unroll]
                for e in 0..LANES {
                    #[unroll]
                    for i in 0..rows {
                        let x = a.vector(row_of(block * rows + i, layout), k).extract(e);
                        #[unroll]
                        for j in 0..cells {
                            let v = col_of(group * cells + j, layout) / LANES;
                            let y = Vector::<f32, W>::cast_from(b.vector(k * LANES + e, v));
                            sums[i * cells + j] = fma(Vector::new(x), y, sums[i * cells + j]);
                        }
                    }
                }
            }
            #[unroll]
            for i in 0..rows {
                #[unroll]
                for j in 0..cells {
                    c.set(block * rows + i, group * cells + j, sums[i * cells + j]);
                }
            }
        }
    }
}

/// Starts the product in which each warpgroup multiplies its 64 rows of `a` by its columns of `b`, read in
/// place, into its own registers.
#[cube]
fn multiply_wgmma<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &Tile<S>,
    #[comptime] b_major: Major,
) {
    let product = Product::new(&*c, a, b, b_major);
    product.begin(c);
    product.issue::<S, W>(c, comptime![Part::WHOLE]);
    commit_mma();
}

/// A product of a warpgroup as its steps along k, for other work to stand between them:
/// [`begin`](Product::begin), [`issue`](Product::issue) of each part, [`commit_mma`].
#[derive(CubeType)]
pub(super) struct Product {
    a: u64,
    b: u64,
    #[cube(comptime)]
    a_layout: WgmmaTileLayout,
    #[cube(comptime)]
    b_layout: WgmmaTileLayout,
    #[cube(comptime)]
    n: usize,
}

#[cube]
impl Product {
    /// The steps of `c += a · b`, `b` read along `b_major`.
    pub fn new<S: Numeric, W: Size>(
        c: &Fragment<W>,
        a: &Tile<S>,
        b: &Tile<S>,
        #[comptime] b_major: Major,
    ) -> Self {
        let layout = comptime![c.layout];
        let n = comptime![layout.group_cols()];
        let a_layout = comptime![a.shape.k_major()];
        let b_layout = comptime![b.shape.operand(b_major)];
        let group = unit_id(layout.machine) / WARPGROUP % comptime![layout.down()];
        Product {
            a: a.describe(a_layout, group * WARPGROUP_ROWS),
            b: b.describe(b_layout, group_of(layout) * n),
            a_layout,
            b_layout,
            n,
        }
    }

    /// Before the first step.
    pub fn begin<W: Size>(&self, c: &mut Fragment<W>) {
        fence_cells(&mut c.cells);
        fence_mma();
    }

    /// Issues a part of the steps.
    pub fn issue<S: Numeric, W: Size>(&self, c: &mut Fragment<W>, #[comptime] part: Part) {
        let size = S::size();
        let (a_layout, b_layout) = comptime![(self.a_layout, self.b_layout)];
        let (k_step, first, count) = comptime! {
            let k_step = WgmmaTileLayout::k_step(size);
            let steps = a_layout.k / k_step;
            (k_step, part.first(steps), part.count(steps))
        };
        #[unroll]
        for i in 0..count {
            let k = comptime![(first + i) * k_step];
            let a = self.a + comptime![a_layout.byte_offset(0, k, size) as u64 / 16];
            let b = self.b + comptime![b_layout.byte_offset(0, k, size) as u64 / 16];
            issue_mma::<S, W>(&mut c.cells, a, b, self.n, Major::K, comptime![b_layout.major]);
        }
    }
}

/// [`multiply_wgmma`] with `a` in registers: the accumulator of one product, rounded, is laid out as the
/// operand of the next.
#[cube]
fn multiply_wgmma_registers<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Fragment<W>,
    b: &Tile<S>,
) {
    let layout = comptime![c.layout];
    let size = S::size();
    let k_step = comptime![WgmmaTileLayout::k_step(size)];
    let n = comptime![layout.group_cols()];
    let b_layout = comptime![b.shape.operand(Major::MN)];
    let b_tile = b.describe(b_layout, group_of(layout) * n);
    // One k step reads eight elements of each unit, in the order in which the accumulator holds them.
    let steps = comptime![a.layout.cols / k_step];
    let mut operands = Sequence::<Array<S>>::new();
    #[unroll]
    for step in 0..steps {
        let mut operand = Array::<S>::new(8usize);
        #[unroll]
        for i in 0..8usize {
            operand[i] = S::cast_from(a.cells[comptime![step * 8 + i]].extract(0usize));
        }
        fence_fragment(&operand);
        operands.push(operand);
    }
    fence_cells(&mut c.cells);
    fence_mma();
    #[unroll]
    for step in 0..steps {
        let b_step = comptime![b_layout.byte_offset(0, step * k_step, size) as u64 / 16];
        issue_mma_registers::<S, W>(
            &mut c.cells,
            operands.index(step),
            b_tile + b_step,
            n,
            Major::MN,
        );
    }
    commit_mma();
    wait_mma(0usize);
    fence_cells(&mut c.cells);
}
