//! The residual's addition and the norm behind it, in one step.
//!
//! ```text
//! sum      = x + residual                                   f32
//! y        = round( weight · sum / sqrt(mean(sum²) + eps) )
//! residual = round( sum )                                   x, residual, y [n, d], weight [d]
//! ```
//! `RMSNorm.forward(x, residual)` of the DeepSeek-V3.2-Exp inference demo: the norm sees the sum before it is rounded.
//! (transformers rounds first.) The squares of a row are kept in range as those of `norm.rs` are: any finite sum is
//! normalised.
//!
//! Cost: about 6 FLOP an element; reads two elements from memory, and again from cache, and writes two; bound by memory.
//!
//! Budget (sm_90a): at most 48 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 48 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::norm::{DOWN, LEAST, UP, scale_of};
use crate::tensor::{Tensor, width_of};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// A row of both terms: where it begins in each, and its vectors.
#[derive(CubeType)]
struct Terms<'a, E: Numeric, N: Size> {
    x: &'a [Vector<E, N>],
    residual: &'a [Vector<E, N>],
    of_x: usize,
    of_residual: usize,
    vectors: usize,
    #[cube(comptime)]
    machine: Machine,
}

#[cube]
impl<'a, E: Numeric, N: Size> Terms<'a, E, N> {
    /// Row `row` of both.
    fn new(
        x: &'a View<Vector<E, N>>,
        residual: &'a View<Vector<E, N>>,
        row: usize,
        #[comptime] machine: Machine,
    ) -> Terms<'a, E, N> {
        let of_x = row * x.stride(0) / N::value();
        let of_residual = row * residual.stride(0) / N::value();
        let vectors = x.shape(1) / N::value();
        Terms::<'a, E, N> {
            x: &x.data,
            residual: &residual.data,
            of_x,
            of_residual,
            vectors,
            machine,
        }
    }

    /// The `i`-th vector of the sum, not rounded.
    fn sum(&self, i: usize) -> Vector<f32, N> {
        let residual = Vector::<f32, N>::cast_from(self.residual[self.of_residual + i]);
        Vector::<f32, N>::cast_from(self.x[self.of_x + i]) + residual
    }

    /// The mean square of the sum times `by`.
    fn mean_square(&self, by: f32) -> f32 {
        let machine = comptime![self.machine];
        let mut squares = Vector::<f32, N>::new(0.0f32);
        for step in 0..self.vectors.div_ceil(comptime![machine.team]) {
            let i = step * comptime![machine.team] + unit_id(machine);
            if i < self.vectors {
                let sum = self.sum(i) * Vector::new(by);
                squares += sum * sum;
            }
        }
        let mut total = 0.0f32.runtime();
        #[unroll]
        for lane in 0..N::value() {
            total += squares.extract(lane);
        }
        sum_team(total, machine) / (self.vectors * N::value()) as f32
    }
}

/// One program adds and normalises one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn add_norm_kernel<E: Numeric, N: Size>(
    x: &View<Vector<E, N>>,                // [n, d]
    residual: &View<Vector<E, N>>,         // [n, d]
    weight: &[Vector<f32, N>],             // [d]
    out: &mut View<Vector<E, N>>,          // [n, d]
    new_residual: &mut View<Vector<E, N>>, // [n, d]
    eps: f32,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let row = program_id(machine);
    if row >= x.shape(0) {
        terminate!();
    }
    let terms = Terms::new(x, residual, row, machine);
    let mut by = 1.0f32.runtime();
    let mut square = terms.mean_square(by);
    let total = square + eps;
    if total < LEAST || total.is_nan() || total.is_inf() {
        by = select(total < LEAST, UP, DOWN);
        square = terms.mean_square(by);
    }
    let scale = scale_of(square, eps, by);
    let to = row * out.stride(0) / N::value();
    for step in 0..terms.vectors.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < terms.vectors {
            let sum = terms.sum(i);
            let y = sum * Vector::new(by) * Vector::new(scale) * weight[i];
            out.data[to + i] = round_vector::<E, N>(y, machine);
            new_residual.data[to + i] = round_vector::<E, N>(sum, machine);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`add_rms_norm`] takes and returns.
pub const ADD_RMS_NORM: Contract = Contract {
    name: "add_rms_norm",
    tensors: &["x: [n, d] f32|bf16|f16, rows", "residual: [n, d] as x, rows", "weight: [d] f32"],
    scalars: &["eps: number at least 0"],
    sizes: &[],
    outputs: &["y: [n, d] as x", "new_residual: [n, d] as x"],
};

/// The norm of `x + residual`, and that sum as the new residual ([`ADD_RMS_NORM`]).
///
/// - `x`: `[n, d]` f32, bf16 or f16;
/// - `residual`: `[n, d]` of the type of x;
/// - `weight`: `[d]` f32;
/// - returns y and the new residual, `[n, d]` of the type of x.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let device = x.device();
    let bound = ADD_RMS_NORM.check([x, residual, weight].map(Some), &[eps.into()])?;
    let [n, d] = bound.sizes(["n", "d"])?;
    let (y, new_residual) = (bound.output("y")?, bound.output("new_residual")?);
    if n * d == 0 {
        return Ok((y, new_residual));
    }
    let (machine, width) = (machine(device), width_of(&[x, residual, weight, &y]));
    // SAFETY: all accesses are below n and d, the shape of both terms and of both outputs, whose rows are whole
    // vectors; weight holds d.
    unsafe {
        add_norm_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n)?,
            machine.cube_dim(),
            device.addresses([x, residual, &y]),
            width,
            x.view(width),
            residual.view(width),
            weight.arg(width),
            y.view(width),
            new_residual.view(width),
            eps,
            machine,
            x.dtype().elem(),
        );
    }
    Ok((y, new_residual))
}
