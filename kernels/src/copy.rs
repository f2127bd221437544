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
use crate::slots::{expect_slots, launches, slot_of};
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(64)
}

/// One program copies `together` heads of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn place_kernel<E: Numeric>(
    x: &View<E>,       // [n, h, d]
    slots: &[i32],     // [n]
    out: &mut View<E>, // [rows, h, d]
    together: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let (n, heads, dim) = (x.shape(0), x.shape(1), x.shape(2));
    let parts = parts_of(heads, together);
    let program = program_id(machine);
    if program >= n * parts {
        terminate!();
    }
    let (row, part) = divided(program, parts);
    let (slot, placed) = slot_of(slots, row, n, out.shape(0), machine);
    if placed {
        let first = part * together;
        for head in first..min(first + together, heads) {
            let from = row * x.stride(0) + head * x.stride(1);
            let to = slot * out.stride(0) + head * out.stride(1);
            for step in 0..dim.div_ceil(comptime![machine.team]) {
                let i = step * comptime![machine.team] + unit_id(machine);
                if i < dim {
                    out.data[to + i] = x.data[from + i];
                }
            }
        }
    }
}

/// Puts rows in their places: `out[slots[t], h] = x[t, h]`.
///
/// - `x`: `[n, h, d]` of any float type, last stride 1; with one head, it goes to every head of `out`;
/// - `slots`: `[n]` i32; a slot out of range is not written, and of several rows with one slot the last is;
/// - `out`: `[rows, h, d]` of the type of x, last stride 1.
pub fn place_rows(x: &Tensor, slots: &Tensor, out: &Tensor) -> Result<()> {
    let device = x.device();
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
    expect_slots(slots, n, out, rows)?;
    if n * heads * dim == 0 {
        return Ok(());
    }
    let machine = device.machine(64);
    let x = if x.shape()[1] == 1 { x.broadcast(1, heads)? } else { x.clone() };
    for rows in launches(n) {
        // Each program looks for a later row with its slot, so there are no more of them than keep the
        // device busy.
        let together = heads.div_ceil((8 * device.cores()).div_ceil(rows.len()));
        let programs = rows.len() * heads.div_ceil(together);
        let (x, slots) = (x.rows(rows.clone())?, slots.rows(rows)?);
        // SAFETY: n, h and d are those of x, slots are compared with the rows of out.
        unsafe {
            place_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(programs)?,
                machine.cube_dim(),
                device.addresses([&x, out]),
                x.view(1),
                slots.arg(1),
                out.view(1),
                together,
                machine,
                x.dtype().elem(),
            );
        }
    }
    Ok(())
}
