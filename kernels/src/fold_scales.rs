//! Folding the fp8 scales of the index queries into the head weights, so that the indexer need not know them.
//!
//! ```text
//! out[t, h] = weights[t, h] · q_scale[t, h] · factor        (factor = H^-1/2 · D^-1/2)
//! ```
//!
//! The product of two of them may leave f32's range where that of all three does not: they are multiplied in an
//! order in which it cannot.
//!
//! DeepSeek-V3.2-Exp's inference code, `Indexer.forward`; DeepGEMM's contract for `weights`.
//!
//! Cost: bound by memory, three f32 a weight.
//!
//! Budget (sm_90a): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use cubecl::prelude::*;

/// Multiplies the head weights by the fp8 scales of their queries and a constant:
/// `w[t, h] · q_scale[t, h] · factor`, `factor = H^-1/2 · D^-1/2`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn fold_scales_kernel(
    weights: &View<f32>, // [s, H]
    q_scale: &[f32],     // [s, H]
    out: &mut [f32],     // [s, H]
    factor: f32,
    #[comptime] machine: Machine,
) {
    let i = program_id(machine) * comptime![machine.team] + unit_id(machine);
    if i < weights.shape(0) * weights.shape(1) {
        let (weight, scale) = (weights.data[i], q_scale[i]);
        let larger = select(weight.abs() > scale.abs(), weight, scale);
        let smaller = select(weight.abs() > scale.abs(), scale, weight);
        // A factor that shrinks first meets the larger, one that grows the smaller.
        let shrinks = factor.abs() <= 1.0f32;
        out[i] = select(shrinks, larger, smaller) * factor * select(shrinks, smaller, larger);
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// Folds the queries' scales into the head weights: `out[t, h] = weights[t, h] · q_scale[t, h] · factor`.
///
/// `weights`, `q_scale`: `[s, H]` f32, contiguous. Returns `[s, H]` f32.
pub fn fold_scales(weights: &Tensor, q_scale: &Tensor, factor: f32) -> Result<Tensor> {
    let device = weights.device();
    weights.expect_rank("weights", &["s", "H"])?;
    let (s, h) = (weights.shape()[0], weights.shape()[1]);
    q_scale.expect_shape("q_scale", &[("s", s), ("H", h)])?;
    for (name, tensor) in [("weights", weights), ("q_scale", q_scale)] {
        tensor.expect_dtype(name, &[DType::F32])?;
        tensor.expect_contiguous(name)?;
    }
    let out = device.output("out", &[s, h], DType::F32)?;
    let machine = machine(device);
    // SAFETY: the three buffers hold s · h elements each, and the kernel stops at that number.
    unsafe {
        fold_scales_kernel::launch_unchecked(
            device.client(),
            machine.cube_count((s * h).div_ceil(machine.team))?,
            machine.cube_dim(),
            device.addresses([weights, q_scale, &out]),
            weights.view(1),
            q_scale.arg(1),
            out.arg(1),
            factor,
            machine,
        );
    }
    Ok(out)
}
