//! Hadamard rotation of index heads.
//!
//! ```text
//! y = H · x · n^-1/2,   H[i, j] = (-1)^popcount(i & j)     (Sylvester order)
//! ```
//!
//! Applied to queries and keys alike it leaves their products unchanged and spreads outliers before the
//! rounding to fp8 (DeepSeek-V3.2-Exp demo, `rotate_activation`).
//!
//! The sums of a row that comes near the end of f32's range would leave it, although `y` does not: such a row
//! is rotated divided by n, which is exact.
//!
//! Cost: `n log2 n` additions a row; bound by memory.
//!
//! Budget (sm_90a): at most 16 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 8 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The magnitude up to which the sum of a row's 1024 numbers, at most, is in f32's range.
const LARGE: f32 = (1u128 << 117) as f32;

/// One program rotates one row: log2(n) stages of butterflies on pairs `half` apart.
#[cube(launch_unchecked, address_type = "dynamic")]
fn hadamard_kernel<E: Numeric>(
    x: &View<E>,       // [rows, n]
    out: &mut View<E>, // [rows, n]
    #[comptime] n: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let row = program_id(machine);
    if row >= x.shape(0) {
        terminate!();
    }
    let (from, to) = (row * x.stride(0), row * out.stride(0));
    let team = comptime![machine.team];
    let unit = unit_id(machine);
    let mut values = team_memory::<f32>(n, 16usize, machine);
    // Whether any is large: looked up where it is needed, rather than kept.
    let mut large = team_memory::<u32>(1usize, 4usize, machine);
    if unit == 0 {
        large[0] = 0u32;
    }
    sync_team(machine);
    for step in 0..comptime![n.div_ceil(team)] {
        let i = step * team + unit;
        if i < n {
            let value = f32::cast_from(x.data[from + i]);
            values[i] = value;
            if value.abs() > LARGE {
                large[0] = 1u32;
            }
        }
    }
    sync_team(machine);
    if large[0] != 0u32 {
        for step in 0..comptime![n.div_ceil(team)] {
            let i = step * team + unit;
            if i < n {
                values[i] *= comptime![1.0 / n as f32];
            }
        }
        sync_team(machine);
    }
    #[unroll]
    for stage in 0..comptime![n.ilog2()] {
        let half = comptime![1usize << stage];
        for step in 0..comptime![(n / 2).div_ceil(team)] {
            let pair = step * team + unit;
            if pair < comptime![n / 2] {
                let i = pair / half * comptime![2 * half] + pair % half;
                let a = values[i];
                let b = values[i + half];
                values[i] = a + b;
                values[i + half] = a - b;
            }
        }
        sync_team(machine);
    }
    let scale = comptime![1.0 / (n as f32).sqrt()];
    let scale = select(large[0] != 0u32, comptime![scale * n as f32], scale);
    for step in 0..comptime![n.div_ceil(team)] {
        let i = step * team + unit;
        if i < n {
            out.data[to + i] = round_to::<E>(values[i] * scale, machine);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(64)
}

/// Rotates every row.
///
/// `x`: `[rows, n]` f32, bf16 or f16, last stride 1, n a power of two up to 1024. Returns `[rows, n]` of
/// the same type.
pub fn hadamard(x: &Tensor) -> Result<Tensor> {
    let device = x.device();
    x.expect_rank("x", &["rows", "n"])?;
    x.expect_dtype("x", &DType::FLOATS)?;
    x.expect_rows("x")?;
    let (rows, n) = (x.shape()[0], x.shape()[1]);
    if !n.is_power_of_two() || n > 1024 {
        return Err(KernelError::Shape {
            tensor: "x",
            got: x.shape().to_vec(),
            expected: "rows of a power of two up to 1024".to_string(),
        });
    }
    let out = device.output("out", &[rows, n], x.dtype())?;
    if rows > 0 {
        let machine = machine(device);
        // SAFETY: the kernel reads and writes n elements of each of `rows` rows.
        unsafe {
            hadamard_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows)?,
                machine.cube_dim(),
                device.addresses([x, &out]),
                x.view(1),
                out.view(1),
                n,
                machine,
                x.dtype().elem(),
            );
        }
    }
    Ok(out)
}
