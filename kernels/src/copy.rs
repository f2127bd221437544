//! Copy: the device's memory bandwidth, against which memory-bound kernels are held.
//!
//! ```text
//! out[i] = x[i]
//! ```
//!
//! Cost: no FLOP; 4 bytes read and 4 written an element.

use crate::Result;
use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use cubecl::prelude::*;

/// Vectors each unit of a GPU copies, and each core of a CPU in one program.
const RUN: usize = 16;

#[cube(launch_unchecked)]
fn copy_kernel(
    x: &[Vector<f32, Lanes>],
    out: &mut [Vector<f32, Lanes>],
    vectors: u32,
    #[comptime] machine: Machine,
) {
    let first = program_id(machine) * comptime![RUN * machine.team] + unit_id(machine);
    #[unroll(machine.unrolled())]
    for step in 0..RUN {
        let i = first + step * comptime![machine.team];
        if i < vectors as usize {
            out[i] = x[i];
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// Copies `x` to `out`: both contiguous f32 of one shape, a multiple of eight elements.
pub fn copy(device: &Device, x: &Tensor, out: &Tensor) -> Result<()> {
    x.expect_rank("x", &["rows", "cols"])?;
    out.expect_shape("out", &[("rows", x.shape()[0]), ("cols", x.shape()[1])])?;
    for (name, tensor) in [("x", x), ("out", out)] {
        tensor.expect_dtype(name, &[DType::F32])?;
        tensor.expect_contiguous(name)?;
        tensor.expect_vectors(name)?;
    }
    let vectors = x.len() / LANES;
    let machine = machine(device);
    // SAFETY: both buffers hold `vectors` vectors, and the kernel stops at that number.
    unsafe {
        copy_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(vectors.div_ceil(RUN * machine.team)),
            machine.cube_dim(),
            x.arg(LANES),
            out.arg(LANES),
            vectors as u32,
            machine,
        );
    }
    Ok(())
}
