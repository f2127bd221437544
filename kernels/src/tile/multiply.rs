//! Products of tiles.

use super::{Fragment, LANES, Lanes, MatrixUnit, Share, Tile, col_of, row_of, sum_cell};
use cubecl::prelude::*;
use cubecl::wgmma::{Accumulator, MatrixDescriptor, WgmmaTileLayout};

/// Columns (`nt`) or cells (`nn`) that a plain product computes together. Eight running sums, four
/// vectors of one operand and two of the other fit the sixteen registers of AVX2.
const COLS: usize = 2;

/// Rows that a plain product computes together, so that each loaded vector serves several of them.
fn rows_together(share: Share) -> usize {
    [4, 2, 1].into_iter().find(|rows| share.slots().is_multiple_of(*rows)).unwrap_or(1)
}

/// `c += a · bᵀ`: `c[i, j] += Σ_k a[i, k] · b[j, k]` in f32.
///
/// `a`: tile `[share.rows, k]`; `b`: tile `[share.cols, k]`. The tiles must be complete
/// ([`sync_team`](super::sync_team)).
#[cube]
pub fn multiply_nt<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &Tile<S>,
    #[comptime] share: Share,
) {
    if comptime![share.machine.matrix == MatrixUnit::Wgmma] {
        let b_layout = comptime![b.shape.k_major()];
        let b_tile = MatrixDescriptor::new(&b.memory, b_layout);
        multiply_wgmma::<S, W>(c, a, &b_tile, share);
    } else {
        multiply_nt_plain::<S, W>(c, a, b, share);
    }
}

/// `c += a · b`: `c[i, j] += Σ_k a[i, k] · b[k, j]` in f32.
///
/// `a`: tile `[share.rows, k]`; `b`: tile `[k, at least share.cols]`, of which the first `share.cols`
/// columns are used.
#[cube]
pub fn multiply_nn<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &Tile<S>,
    #[comptime] share: Share,
) {
    if comptime![share.machine.matrix == MatrixUnit::Wgmma] {
        let b_layout = comptime![b.shape.mn_major()];
        let b_tile = MatrixDescriptor::new(&b.memory, b_layout);
        multiply_wgmma::<S, W>(c, a, &b_tile, share);
    } else {
        multiply_nn_plain::<S, W>(c, a, b, share);
    }
}

/// Each unit computes the dot products of its own cells, as vectors of partial sums over k.
#[cube]
fn multiply_nt_plain<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &Tile<S>,
    #[comptime] share: Share,
) {
    let k_vectors = comptime![a.shape.vectors()];
    let rows = comptime![rows_together(share)];
    #[unroll(share.unrolled())]
    for block in 0..comptime![share.slots() / rows] {
        #[unroll(share.unrolled())]
        for cell in 0..comptime![share.run()] {
            let col = col_of(cell, share);
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
                        let x = a.vector(row_of(block * rows + i, share), k);
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
fn multiply_nn_plain<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &Tile<S>,
    #[comptime] share: Share,
) {
    let k_vectors = comptime![a.shape.vectors()];
    let cells = comptime![if share.run().is_multiple_of(COLS) { COLS } else { 1 }];
    let rows = comptime![rows_together(share)];
    #[unroll(share.unrolled())]
    for block in 0..comptime![share.slots() / rows] {
        #[unroll(share.unrolled())]
        for group in 0..comptime![share.run() / cells] {
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
                        let x = a.vector(row_of(block * rows + i, share), k).extract(e);
                        #[unroll]
                        for j in 0..cells {
                            let v = col_of(group * cells + j, share) / LANES;
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

/// One warpgroup multiplies a 64-row `a` by all of `b` and waits for the result.
#[cube]
fn multiply_wgmma<S: Numeric, W: Size>(
    c: &mut Fragment<W>,
    a: &Tile<S>,
    b: &MatrixDescriptor<S>,
    #[comptime] share: Share,
) {
    let size = S::size();
    let k_step = comptime![WgmmaTileLayout::k_step(size)];
    let a_layout = comptime![a.shape.k_major()];
    let a_tile = MatrixDescriptor::new(&a.memory, a_layout);
    let mut sums = Accumulator::<f32>::new(comptime![share.cols]).start();
    #[unroll]
    for step in 0..comptime![a_layout.k / k_step] {
        sums.execute(&a_tile.at(0usize, step * k_step), &b.at(0usize, step * k_step));
    }
    let sums = sums.wait();
    #[unroll]
    for slot in 0..comptime![share.slots()] {
        #[unroll]
        for cell in 0..comptime![share.run()] {
            let register = comptime![(cell / 2) * 4 + slot * 2 + cell % 2];
            c.set(slot, cell, c.get(slot, cell) + Vector::new(sums.get(register)));
        }
    }
}
