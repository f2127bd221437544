//! Block-scaled fp8 of activations. What is written to the fp8 caches is quantised alike, in
//! [`cache_write`](crate::cache_write).
//!
//! ```text
//! amax = max(max |x_i|, 1e-4)                over blocks of 128 along the last axis
//! s    = amax / 448                          plain
//! s    = 2^ceil(log2(amax / 448))            ue8m0
//! q_i  = e4m3(clamp(x_i / s, -448, 448))     round to nearest even
//! ```
//!
//! DeepSeek-V3.2-Exp demo, `act_quant`, operation by operation: the codes are bit-exact.
//!
//! Cost: two reads of x and one write of a quarter to a half of its bytes; bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl_common::e4m3;

/// Elements that share a scale.
pub const BLOCK: usize = 128;

/// The largest finite e4m3 number.
const E4M3_MAX: f32 = 448.0;

/// How a block's scale is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleFmt {
    /// `amax / 448` as it is.
    Plain,
    /// Up to a power of two.
    Ue8m0,
}

impl ScaleFmt {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("ue8m0", Self::Ue8m0), ("plain", Self::Plain)];
}

/// Where the floor that keeps an all-zero block's scale positive applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Floor {
    /// On amax (act_quant).
    Amax,
    /// On the scale (FlashMLA's cache).
    Scale,
}

/// The scale of a block whose largest magnitude is `amax`.
#[cube]
pub(crate) fn block_scale(amax: f32, #[comptime] fmt: ScaleFmt, #[comptime] floor: Floor) -> f32 {
    let inverse = comptime![1.0f32 / E4M3_MAX];
    let scale = if comptime![floor == Floor::Amax] {
        max(amax, 1.0e-4f32) * inverse
    } else {
        max(amax * inverse, 1.0e-4f32)
    };
    if comptime![fmt == ScaleFmt::Ue8m0] {
        let bits = u32::reinterpret(scale);
        let up = select((bits & 0x007f_ffffu32) != 0, 1u32, 0u32);
        f32::reinterpret(((bits >> 23) + up) << 23)
    } else {
        scale
    }
}

/// The e4m3 code of `x / scale`. NaN stays NaN, of the one code on every device: their own conversions differ in
/// its sign, and a cache must not.
#[cube]
pub(crate) fn quantise(x: f32, scale: f32) -> e4m3 {
    let y = x / scale;
    let y = select(y > E4M3_MAX, E4M3_MAX, y);
    let code = e4m3::cast_from(select(y < -E4M3_MAX, -E4M3_MAX, y));
    e4m3::reinterpret(select(y.is_nan(), 0x7fu8, u8::reinterpret(code)))
}

/// The largest magnitude of `x[at .. at + n]`, NaN left out.
#[cube]
pub(crate) fn amax<E: Numeric>(x: &[E], at: usize, n: usize, #[comptime] machine: Machine) -> f32 {
    let mut top = 0.0f32.runtime();
    for step in 0..n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < n {
            let value = f32::cast_from(x[at + i]);
            let magnitude = select(value < 0.0f32, -value, value);
            // A comparison with NaN is false, so NaN never becomes the maximum.
            top = select(magnitude > top, magnitude, top);
        }
    }
    max_team(top, machine)
}

/// The block of a row that a program quantises: its `n` columns from `first` on, which begin at element `at`,
/// and their scale.
#[derive(CubeType)]
struct Block {
    row: usize,
    first: usize,
    n: usize,
    at: usize,
    scale: f32,
}

/// Block `program` of `x`.
#[cube]
fn block_of<E: Numeric>(
    x: &View<E>,
    program: usize,
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
) -> Block {
    let cols = x.shape(1);
    let blocks = cols.div_ceil(BLOCK);
    let (row, nth) = divided(program, blocks);
    let first = nth * BLOCK;
    let n = min(cols - first, BLOCK);
    let at = row * x.stride(0) + first;
    let scale = block_scale(amax(&x.data, at, n, machine), fmt, Floor::Amax);
    Block { row, first, n, at, scale }
}

/// One program quantises one block of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn act_quant_kernel<E: Numeric>(
    x: &View<E>,            // [rows, cols]
    codes: &mut View<e4m3>, // [rows, cols]
    scales: &mut [f32],     // [rows, ceil(cols / 128)]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= x.shape(0) * x.shape(1).div_ceil(BLOCK) {
        terminate!();
    }
    let block = block_of(x, program, fmt, machine);
    let to = block.row * codes.stride(0) + block.first;
    for step in 0..block.n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < block.n {
            codes.data[to + i] = quantise(f32::cast_from(x.data[block.at + i]), block.scale);
        }
    }
    if unit_id(machine) == 0 {
        scales[program] = block.scale;
    }
}

/// One program quantises one block of one row and writes what the codes stand for.
#[cube(launch_unchecked, address_type = "dynamic")]
fn round_trip_kernel<E: Numeric>(
    x: &View<E>,       // [rows, cols]
    out: &mut View<E>, // [rows, cols]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= x.shape(0) * x.shape(1).div_ceil(BLOCK) {
        terminate!();
    }
    let block = block_of(x, program, fmt, machine);
    let to = block.row * out.stride(0) + block.first;
    for step in 0..block.n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < block.n {
            let code = quantise(f32::cast_from(x.data[block.at + i]), block.scale);
            out.data[to + i] = round_to::<E>(f32::cast_from(code) * block.scale, machine);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(32)
}

/// What [`act_quant`] returns.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// `[rows, cols]` e4m3.
    pub codes: Tensor,
    /// `[rows, ceil(cols / 128)]` f32; multiply to dequantise.
    pub scale: Tensor,
}

/// What [`act_quant`] takes and returns.
pub const ACT_QUANT: Contract = Contract {
    name: "act_quant",
    tensors: &["x: [rows, cols] f32|bf16|f16, rows"],
    scalars: &[],
    sizes: &[],
    outputs: &["codes: [rows, cols] e4m3", "scale: [rows, ceil(cols / 128)] f32"],
};

/// What [`round_trip`] takes and changes.
pub const ROUND_TRIP: Contract = Contract {
    name: "round_trip",
    tensors: &[ACT_QUANT.tensors[0], "out: [rows, cols] as x, rows"],
    scalars: &[],
    sizes: &[],
    outputs: &["out: [rows, cols] as x"],
};

/// Quantises rows in blocks of 128 ([`ACT_QUANT`]).
///
/// - `x`: `[rows, cols]` f32, bf16 or f16; the last block may be partial;
/// - returns codes `[rows, cols]` e4m3 and scales `[rows, ceil(cols / 128)]` f32. A NaN element gives a NaN
///   code and does not touch its block's scale.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn act_quant(x: &Tensor, fmt: ScaleFmt) -> Result<Quantised> {
    let device = x.device();
    let bound = ACT_QUANT.check([Some(x)], &[])?;
    let [rows, cols] = bound.sizes(["rows", "cols"])?;
    let blocks = cols.div_ceil(BLOCK);
    let (codes, scale) = (bound.output("codes")?, bound.output("scale")?);
    if rows * cols > 0 {
        let machine = machine(device);
        // SAFETY: every access is below rows and cols, which are the shapes of all three tensors.
        unsafe {
            act_quant_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows * blocks)?,
                machine.cube_dim(),
                device.addresses([x, &codes]),
                x.view(1),
                codes.view(1),
                scale.arg(1),
                fmt,
                machine,
                x.dtype().elem(),
            );
        }
    }
    Ok(Quantised { codes, scale })
}

/// Quantises and dequantises: what the latent goes through before it is cached in bf16 (the fixed
/// November 2025 model).
///
/// `x`, `out`: `[rows, cols]` of one type; they may be the same tensor ([`ROUND_TRIP`]).
///
/// # Errors
/// What is not as the contract says.
pub fn round_trip(x: &Tensor, out: &Tensor, fmt: ScaleFmt) -> Result<()> {
    let device = x.device();
    let [rows, cols] = ROUND_TRIP.check([x, out].map(Some), &[])?.sizes(["rows", "cols"])?;
    if rows * cols == 0 {
        return Ok(());
    }
    let machine = machine(device);
    // SAFETY: every access is below rows and cols, the shape of both tensors; a block is read whole
    // before it is written.
    unsafe {
        round_trip_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows * cols.div_ceil(BLOCK))?,
            machine.cube_dim(),
            device.addresses([x, out]),
            x.view(1),
            out.view(1),
            fmt,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
