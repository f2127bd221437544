//! The ceiling of the matrix unit: products of tiles that stay where they are.
//!
//! ```text
//! out[i, j] = rounds · Σ_k x[i, k] · w[j, k]
//! ```
//!
//! Nothing is loaded in the loop and nothing but products is computed: what a kernel that multiplies
//! tiles of this type could reach if all else were free. The operands are the caller's, since a matrix
//! unit that multiplies zeros draws less power and so runs faster than one that has work to do.
//!
//! Cost: `2 · programs · rounds · 128 · 256 · k` FLOP.
//!
//! Budget (sm_90a): at most 160 registers a unit, 96 KB of shared memory, no spills; wgmma bf16, wgmma e4m3, wgmma f16.

use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Rows of `x` and of `w`.
const TILE: (usize, usize) = (128, 256);
/// Bytes of a row of either.
const ROW_BYTES: usize = 256;

#[cube(launch_unchecked)]
fn peak_kernel<E: Numeric, N: Size, P: Size, W: Size>(
    x: &[Vector<E, N>],
    w: &[Vector<E, N>],
    out: &mut [Vector<f32, P>],
    rounds: u32,
    #[comptime] k: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let mut x_tile = Tile::<E>::new(comptime![TileShape::new(machine, TILE.0, k)]);
    let mut w_tile = Tile::<E>::new(comptime![TileShape::new(machine, TILE.1, k)]);
    let share = comptime![Share::new(machine, TILE.0, TILE.1)];
    let (x_rows, w_rows) = (
        Strided { start: 0usize, stride: k, count: TILE.0 },
        Strided { start: 0usize, stride: k, count: TILE.1 },
    );
    load_rows::<E, N, E, Strided>(&mut x_tile, x, &x_rows, 0usize, k);
    load_rows::<E, N, E, Strided>(&mut w_tile, w, &w_rows, 0usize, k);
    finish_loads(machine);
    let mut sums = Fragment::<W>::zeroed(share);
    for _ in 0..rounds {
        multiply_nt(&mut sums, &x_tile, &w_tile);
    }
    #[unroll]
    for slot in 0..comptime![share.slots()] {
        let at = row_of(slot, share) * comptime![TILE.1];
        store_row::<f32, P, W>(&sums, slot, 1.0f32, out, at, comptime![TILE.1]);
    }
}

/// Columns of the operands of type `dtype`.
pub fn peak_k(dtype: DType) -> usize {
    ROW_BYTES / dtype.size()
}

/// Multiplies `x` by `w` transposed `rounds` times in each of `programs` programs, all of which write the
/// same sums; returns the FLOP that took, or `None` on a device without a matrix unit for the type.
///
/// `x`: `[128, k]`, `w`: `[256, k]` with k of [`peak_k`], e4m3, bf16 or f16, contiguous; `out`: `[128, 256]`
/// f32.
pub fn multiply_in_place(
    device: &Device,
    x: &Tensor,
    w: &Tensor,
    out: &Tensor,
    programs: usize,
    rounds: usize,
) -> Result<Option<f64>> {
    let k = peak_k(x.dtype());
    x.expect_shape("x", &[("rows", TILE.0), ("k", k)])?;
    w.expect_shape("w", &[("rows", TILE.1), ("k", k)])?;
    out.expect_shape("out", &[("rows", TILE.0), ("cols", TILE.1)])?;
    w.expect_dtype("w", &[x.dtype()])?;
    out.expect_dtype("out", &[DType::F32])?;
    for (name, tensor) in [("x", x), ("w", w), ("out", out)] {
        tensor.expect_contiguous(name)?;
    }
    if !(1..=1 << 20).contains(&programs) || !(1..=1 << 20).contains(&rounds) {
        return Err(KernelError::Value {
            name: "rounds",
            got: format!("{rounds} of {programs} programs"),
            expected: "1 to 2^20 of each".to_string(),
        });
    }
    let Some(machine) = device.matrix_machine(x.dtype().elem(), 2) else { return Ok(None) };
    let width = load_width(machine, x.dtype().size());
    // SAFETY: the operands are one tile each, the output one tile of sums, and nothing else is accessed.
    unsafe {
        peak_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            width,
            1,
            machine.cell_width(),
            x.arg(width),
            w.arg(width),
            out.arg(1),
            rounds as u32,
            k,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(Some(2.0 * (programs * rounds * TILE.0 * TILE.1 * k) as f64))
}
