//! RMSNorm and LayerNorm of rows.
//!
//! ```text
//! rms_norm:   y = w · x / sqrt(mean(x²) + eps)
//! layer_norm: y = w · (x - mean(x)) / sqrt(var(x) + eps) + b
//! ```
//!
//! In f32, rounded once to the type of x (DeepSeek-V3.2-Exp demo). The indexer's `k_norm` is a LayerNorm
//! with a bias, not an RMSNorm.
//!
//! The square of a number leaves the range of f32 long before the number does: a row whose squares do is taken
//! times a power of two, which leaves the result as it is. Any finite row is normalised.
//!
//! Cost: about 4 FLOP and one read and write an element; bound by memory.
//!
//! Budget (sm_90a): at most 32 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What a row whose squares are too large, or too small, is taken times.
pub(crate) const DOWN: f32 = 1.0 / UP;
/// See [`DOWN`]: 2^100. Its square is out of range, so nothing is multiplied by that.
pub(crate) const UP: f32 = (1u128 << 100) as f32;
/// The mean square from which on no square that counts is lost.
pub(crate) const LEAST: f32 = DOWN;
/// What is left of an eps that is not 0: a row of equal numbers is divided by its root.
const LEAST_EPS: f32 = f32::MIN_POSITIVE;

/// Of the `cols` elements of `x` from `at` on, times `by`: their mean, 0 unless they are `centred`, and the mean
/// square of what is left without it.
#[cube]
fn moments<E: Numeric>(
    x: &[E],
    at: usize,
    cols: usize,
    by: f32,
    #[comptime] centred: bool,
    #[comptime] machine: Machine,
) -> (f32, f32) {
    let team = comptime![machine.team];
    let unit = unit_id(machine);
    let steps = cols.div_ceil(team);
    let mut mean = 0.0f32.runtime();
    if comptime![centred] {
        let mut sum = 0.0f32.runtime();
        for step in 0..steps {
            let i = step * team + unit;
            if i < cols {
                sum += f32::cast_from(x[at + i]) * by;
            }
        }
        mean = sum_team(sum, machine) / cols as f32;
    }
    let mut squares = 0.0f32.runtime();
    for step in 0..steps {
        let i = step * team + unit;
        if i < cols {
            let d = f32::cast_from(x[at + i]) * by - mean;
            squares += d * d;
        }
    }
    (mean, sum_team(squares, machine) / cols as f32)
}

/// What each element, already taken times `by`, is multiplied with: `square` is the mean square of these products.
#[cube]
pub(crate) fn scale_of(square: f32, eps: f32, by: f32) -> f32 {
    let eps = select(eps > 0.0f32, max(eps * by * by, LEAST_EPS), 0.0f32);
    1.0f32 / (square + eps).sqrt()
}

/// One program normalises one row. `bias`: read only by LayerNorm.
#[cube(launch_unchecked, address_type = "dynamic")]
fn norm_kernel<E: Numeric>(
    x: &View<E>,       // [rows, cols]
    weight: &[f32],    // [cols]
    bias: &[f32],      // [cols]
    out: &mut View<E>, // [rows, cols]
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let row = program_id(machine);
    if row >= x.shape(0) {
        terminate!();
    }
    let cols = x.shape(1);
    let team = comptime![machine.team];
    let unit = unit_id(machine);
    let (at, to) = (row * x.stride(0), row * out.stride(0));

    let mut by = 1.0f32.runtime();
    let (mut mean, mut square) = moments(&x.data, at, cols, by, centred, machine);
    let total = square + eps;
    // Deviations from a mean beyond 1 are nothing or not small.
    let small = total < LEAST && mean.abs() <= 1.0f32;
    if small || total.is_nan() || total.is_inf() {
        by = select(small, UP, DOWN);
        let scaled = moments(&x.data, at, cols, by, centred, machine);
        mean = scaled.0;
        square = scaled.1;
    }
    let scale = scale_of(square, eps, by);
    for step in 0..cols.div_ceil(team) {
        let i = step * team + unit;
        if i < cols {
            let y = (f32::cast_from(x.data[at + i]) * by - mean) * scale;
            let y = if comptime![centred] {
                // The product alone may be out of range where the sum is not.
                fma(y, weight[i], bias[i])
            } else {
                y * weight[i]
            };
            out.data[to + i] = round_to::<E>(y, machine);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`rms_norm`] takes and returns.
pub const RMS_NORM: Contract = Contract {
    name: "rms_norm",
    tensors: &["x: [rows, cols] f32|bf16|f16, rows", "weight: [cols] f32"],
    scalars: &["eps: number at least 0"],
    sizes: &[],
    outputs: &["out: [rows, cols] as x"],
};

/// What [`rms_norm_into`] takes and changes.
pub const RMS_NORM_INTO: Contract = Contract {
    name: "rms_norm_into",
    tensors: &[RMS_NORM.tensors[0], RMS_NORM.tensors[1], "out: [rows, cols] as x, rows"],
    ..RMS_NORM
};

/// What [`layer_norm`] takes and returns.
pub const LAYER_NORM: Contract = Contract {
    name: "layer_norm",
    tensors: &[RMS_NORM.tensors[0], RMS_NORM.tensors[1], "bias: [cols] f32"],
    ..RMS_NORM
};

/// `weight · x / sqrt(mean(x²) + eps)` ([`RMS_NORM`]).
///
/// - `x`: `[rows, cols]` f32, bf16 or f16;
/// - `weight`: `[cols]` f32;
/// - returns `[rows, cols]` of the type of x.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let out = RMS_NORM.check([x, weight].map(Some), &[eps.into()])?.output("out")?;
    norm(x, weight, None, &out, eps)?;
    Ok(out)
}

/// [`rms_norm`] into an existing tensor of the same shape and type ([`RMS_NORM_INTO`]).
///
/// # Errors
/// What is not as the contract says.
pub fn rms_norm_into(x: &Tensor, weight: &Tensor, out: &Tensor, eps: f32) -> Result<()> {
    RMS_NORM_INTO.check([x, weight, out].map(Some), &[eps.into()])?;
    norm(x, weight, None, out, eps)
}

/// `weight · (x - mean(x)) / sqrt(var(x) + eps) + bias`; shapes as [`rms_norm`], `bias`: `[cols]` f32
/// ([`LAYER_NORM`]).
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let out = LAYER_NORM.check([x, weight, bias].map(Some), &[eps.into()])?.output("out")?;
    norm(x, weight, Some(bias), &out, eps)?;
    Ok(out)
}

/// The launch of both; tensors and eps are as the contracts say.
fn norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out: &Tensor, eps: f32) -> Result<()> {
    let (device, rows, cols) = (x.device(), x.shape()[0], x.shape()[1]);
    if rows * cols == 0 {
        return Ok(());
    }
    let machine = machine(device);
    // SAFETY: all accesses are below rows and cols, the shape of x and out; weight and bias hold cols.
    unsafe {
        norm_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows)?,
            machine.cube_dim(),
            device.addresses([x, out]),
            x.view(1),
            weight.arg(1),
            bias.unwrap_or(weight).arg(1),
            out.view(1),
            eps,
            bias.is_some(),
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
