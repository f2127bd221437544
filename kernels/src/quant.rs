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
//! Cost: one read of x and one write of a quarter to a half of its bytes; bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 40 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::{Tensor, width_of};
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

/// The e4m3 code of `x / scale`.
#[cube]
pub(crate) fn quantise(x: f32, scale: f32) -> e4m3 {
    code_of(x / scale)
}

/// The e4m3 code of `y`, clamped. NaN stays NaN, of the one code on every device: their own conversions differ in its
/// sign, and a cache must not.
#[cube]
fn code_of(y: f32) -> e4m3 {
    let near = select(y > E4M3_MAX, E4M3_MAX, y);
    let code = e4m3::cast_from(select(near < -E4M3_MAX, -E4M3_MAX, near));
    e4m3::reinterpret(select(y.is_nan(), 0x7fu8, u8::reinterpret(code)))
}

/// The inverse of a power of two; 0 of an infinity.
#[cube]
fn inverse(power: f32) -> f32 {
    let bits = u32::reinterpret(power);
    select(power.is_inf(), 0.0f32, f32::reinterpret((254u32 << 23) - bits))
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

/// Units that quantise a block together where there are several: each reads 16 bytes of a 2-byte type.
const SHARE: usize = 16;

/// What one unit has of a block: every [`share`]-th of its vectors.
#[derive(CubeType)]
struct OfBlock<N: Size> {
    row: usize,
    /// The column of the unit's first vector.
    col: usize,
    /// Where the vectors end: the columns of the row, or none of a block that there is not.
    end: usize,
    /// The number of the block.
    number: usize,
    values: Array<Vector<f32, N>>,
    scale: f32,
    #[cube(comptime)]
    machine: Machine,
}

/// Units that have a block together.
fn share(machine: Machine) -> usize {
    machine.team.min(SHARE)
}

/// Blocks that a program quantises.
fn blocks_of(machine: Machine) -> usize {
    machine.team / share(machine)
}

#[cube]
impl<N: Size> OfBlock<N> {
    /// Reads this unit's part of block `program ..` of `x`, and finds the block's scale.
    fn read<E: Numeric>(
        x: &View<Vector<E, N>>,
        #[comptime] fmt: ScaleFmt,
        #[comptime] machine: Machine,
    ) -> OfBlock<N> {
        let share = comptime![share(machine)];
        let (rows, cols) = (x.shape(0), x.shape(1));
        let number = program_id(machine) * comptime![blocks_of(machine)] + unit_id(machine) / share;
        let (row, nth) = divided(number, cols.div_ceil(BLOCK));
        let col = nth * BLOCK + unit_id(machine) % share * N::value();
        let end = select(row < rows, min(cols, (nth + 1) * BLOCK), 0usize);
        let width = N::value();
        let mut values = Array::<Vector<f32, N>>::new(comptime![BLOCK / width / share]);
        let mut top = 0.0f32.runtime();
        #[unroll(machine.unrolled())]
        for i in 0..comptime![BLOCK / width / share] {
            let at = col + i * comptime![share * width];
            let mut value = Vector::<f32, N>::new(0.0f32);
            if at < end {
                value = Vector::cast_from(x.data[(row * x.stride(0) + at) / width]);
            }
            values[i] = value;
            #[unroll]
            for lane in 0..N::value() {
                let one = value.extract(lane);
                let magnitude = select(one < 0.0f32, -one, one);
                // A comparison with NaN is false, so NaN never becomes the maximum.
                top = select(magnitude > top, magnitude, top);
            }
        }
        if comptime![share > 1] {
            #[unroll]
            for step in 0..comptime![share.ilog2()] {
                top = max(top, plane_shuffle_xor(top, comptime![1u32 << step]));
            }
        }
        let scale = block_scale(top, fmt, Floor::Amax);
        OfBlock::<N> { row, col, end, number, values, scale, machine }
    }

    /// The column of the unit's `i`-th vector.
    fn at(&self, i: usize) -> usize {
        self.col + i * comptime![share(self.machine)] * N::value()
    }

    /// The codes of the unit's `i`-th vector.
    fn codes(&self, i: usize, #[comptime] fmt: ScaleFmt) -> Vector<e4m3, N> {
        let mut codes = Vector::<e4m3, N>::new(e4m3::cast_from(0.0f32));
        #[unroll]
        for lane in 0..N::value() {
            let one = self.values[i].extract(lane);
            let code = if comptime![fmt == ScaleFmt::Ue8m0] {
                // A power of two: the product with its inverse is the quotient, bit for bit.
                code_of(one * inverse(self.scale))
            } else {
                quantise(one, self.scale)
            };
            codes.insert(lane, code);
        }
        codes
    }
}

/// One program quantises [`blocks_of`] blocks.
#[cube(launch_unchecked, address_type = "dynamic")]
fn act_quant_kernel<E: Numeric, N: Size>(
    x: &View<Vector<E, N>>,            // [rows, cols]
    codes: &mut View<Vector<e4m3, N>>, // [rows, cols]
    scales: &mut [f32],                // [rows, ceil(cols / 128)]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let block = OfBlock::<N>::read(x, fmt, machine);
    #[unroll(machine.unrolled())]
    for i in 0..block.values.len() {
        let at = block.at(i);
        if at < block.end {
            let to = (block.row * codes.stride(0) + at) / N::value();
            codes.data[to] = block.codes(i, fmt);
        }
    }
    if block.end > 0 && unit_id(machine) % comptime![share(machine)] == 0 {
        scales[block.number] = block.scale;
    }
}

/// One program quantises [`blocks_of`] blocks and writes what the codes stand for.
#[cube(launch_unchecked, address_type = "dynamic")]
fn round_trip_kernel<E: Numeric, N: Size>(
    x: &View<Vector<E, N>>,       // [rows, cols]
    out: &mut View<Vector<E, N>>, // [rows, cols]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let block = OfBlock::<N>::read(x, fmt, machine);
    #[unroll(machine.unrolled())]
    for i in 0..block.values.len() {
        let at = block.at(i);
        if at < block.end {
            let codes = block.codes(i, fmt);
            let values = Vector::<f32, N>::cast_from(codes) * Vector::new(block.scale);
            let to = (block.row * out.stride(0) + at) / N::value();
            out.data[to] = round_vector::<E, N>(values, machine);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
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
        let width = width_of(&[x, &codes]);
        // SAFETY: every access is below rows and cols, which are the shapes of all three tensors.
        unsafe {
            act_quant_kernel::launch_unchecked(
                device.client(),
                machine.cube_count((rows * blocks).div_ceil(blocks_of(machine)))?,
                machine.cube_dim(),
                device.addresses([x, &codes]),
                width,
                x.view(width),
                codes.view(width),
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
    let (blocks, width) = (rows * cols.div_ceil(BLOCK), width_of(&[x, out]));
    // SAFETY: every access is below rows and cols, the shape of both tensors; a unit reads what it writes before.
    unsafe {
        round_trip_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(blocks.div_ceil(blocks_of(machine)))?,
            machine.cube_dim(),
            device.addresses([x, out]),
            width,
            x.view(width),
            out.view(width),
            fmt,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
