//! A copy of rows to their places in a cache.
//!
//! ```text
//! out[slots[t], h] = x[t, h]
//! ```
//!
//! Cost: no FLOP; every element is read and written once.
//!
//! Budget (sm_90a): at most 88 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(64)
}

/// One program copies one head of one row.
#[cube(launch_unchecked)]
fn place_kernel<E: Numeric>(
    x: &[E],
    slots: &[i32],
    out: &mut [E],
    n: u32,
    heads: u32,
    rows: u32,
    dim: u32,
    x_row: u32,
    x_head: u32,
    out_row: u32,
    out_head: u32,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= n as usize * heads as usize {
        terminate!();
    }
    let row = program / heads as usize;
    let head = program % heads as usize;
    let slot = slots[row];
    if slot >= 0 && slot < rows as i32 {
        let from = row * x_row as usize + head * x_head as usize;
        let to = slot as usize * out_row as usize + head * out_head as usize;
        for step in 0..(dim as usize).div_ceil(comptime![machine.team]) {
            let i = step * comptime![machine.team] + unit_id(machine);
            if i < dim as usize {
                out[to + i] = x[from + i];
            }
        }
    }
}

/// Puts rows in their places: `out[slots[t], h] = x[t, h]`.
///
/// - `x`: `[n, h, d]` of any float type, last stride 1; with one head, it goes to every head of `out`;
/// - `slots`: `[n]` i32; a slot out of range is not written;
/// - `out`: `[rows, h, d]` of the type of x, last stride 1.
pub fn place_rows(device: &Device, x: &Tensor, slots: &Tensor, out: &Tensor) -> Result<()> {
    x.expect_rank("x", &["n", "h", "d"])?;
    x.expect_dtype("x", &DType::FLOATS)?;
    x.expect_rows("x")?;
    out.expect_rank("out", &["rows", "h", "d"])?;
    let (n, dim, rows, heads) = (x.shape()[0], x.shape()[2], out.shape()[0], out.shape()[1]);
    out.expect_shape("out", &[("rows", rows), ("h", heads), ("d", dim)])?;
    out.expect_dtype("out", &[x.dtype()])?;
    out.expect_rows("out")?;
    if x.shape()[1] != 1 {
        x.expect_shape("x", &[("n", n), ("h", heads), ("d", dim)])?;
    }
    slots.expect_shape("slots", &[("n", n)])?;
    slots.expect_dtype("slots", &[DType::I32])?;
    slots.expect_contiguous("slots")?;
    if n * heads * dim == 0 {
        return Ok(());
    }
    let machine = machine(device);
    let x_head = if x.shape()[1] == 1 { 0 } else { x.strides()[1] };
    // SAFETY: n, h and d are those of x (or its one head), slots are compared with the rows of out.
    unsafe {
        place_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n * heads),
            machine.cube_dim(),
            x.arg(1),
            slots.arg(1),
            out.arg(1),
            n as u32,
            heads as u32,
            rows as u32,
            dim as u32,
            x.strides()[0] as u32,
            x_head as u32,
            out.strides()[0] as u32,
            out.strides()[1] as u32,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
