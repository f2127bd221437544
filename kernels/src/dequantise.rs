//! Weights from the type they are stored in to the one they are multiplied in.
//!
//! ```text
//! out[i, j] = x[i, j] · scale[i / 128, j / 128]        in f32, rounded once; without scales out = x
//! ```
//! Source: `weight_dequant` of the DeepSeek-V3.2-Exp inference demo.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | x | `[rows, cols]` | e4m3, f32, bf16, f16 |
//! | scale | `[ceil(rows / 128), ceil(cols / 128)]` | f32: the checkpoint's `weight_scale_inv`, which multiplies |
//! | out | `[rows, cols]` | f32, bf16, f16 |
//!
//! Cost: one FLOP an element; every element is read and written once. It runs while weights are loaded, never in a step.
//!
//! Budget (sm_90a): at most 24 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::quant::BLOCK;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program works on a part of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn dequantise_kernel<E: Numeric, O: Numeric>(
    x: &View<E>,       // [rows, cols]
    scale: &[f32],     // [ceil(rows / 128), ceil(cols / 128)]
    out: &mut View<O>, // [rows, cols]
    parts: usize,
    steps: usize,
    #[comptime] scaled: bool,
    #[comptime] machine: Machine,
    #[define(E, O)] _types: [ElemType; 2],
) {
    let program = program_id(machine);
    if program >= out.shape(0) * parts {
        terminate!();
    }
    let (row, part) = divided(program, parts);
    let cols = out.shape(1);
    let scales = row / BLOCK * cols.div_ceil(BLOCK);
    let (from, to) = (row * x.stride(0), row * out.stride(0));
    for step in 0..steps {
        let i = (part * steps + step) * comptime![machine.team] + unit_id(machine);
        if i < cols {
            let mut value = f32::cast_from(x.data[from + i]);
            if comptime![scaled] {
                value *= scale[scales + i / BLOCK];
            }
            out.data[to + i] = round_to::<O>(value, machine);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(128)
}

/// What [`dequantise`] takes and returns.
pub const DEQUANTISE: Contract = Contract {
    name: "dequantise",
    tensors: &[
        "x: [rows, cols] f32|bf16|f16|e4m3, rows",
        "scale: [ceil(rows / 128), ceil(cols / 128)] f32 (optional)",
    ],
    scalars: &["out: f32|bf16|f16 (f32)"],
    sizes: &[],
    outputs: &["out: [rows, cols] as out"],
};

/// What [`dequantise_into`] takes and changes.
pub const DEQUANTISE_INTO: Contract = Contract {
    name: "dequantise_into",
    tensors: &[
        DEQUANTISE.tensors[0],
        DEQUANTISE.tensors[1],
        "out: [rows, cols] f32|bf16|f16, rows",
    ],
    scalars: &[],
    ..DEQUANTISE
};

/// `x · scale`, one scale for 128×128, or x itself in another type ([`DEQUANTISE`]).
///
/// - `x`: `[rows, cols]` e4m3, f32, bf16 or f16;
/// - `scale`: `[ceil(rows / 128), ceil(cols / 128)]` f32; the last block of either axis may be partial;
/// - returns `[rows, cols]` of `out_dtype`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn dequantise(x: &Tensor, scale: Option<&Tensor>, out_dtype: DType) -> Result<Tensor> {
    let out = DEQUANTISE.check([Some(x), scale], &[out_dtype.into()])?.output("out")?;
    dequantise_into(x, scale, &out)?;
    Ok(out)
}

/// [`dequantise`] into an existing tensor ([`DEQUANTISE_INTO`]).
///
/// # Errors
/// What is not as the contract says.
pub fn dequantise_into(x: &Tensor, scale: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let device = x.device();
    let bound = DEQUANTISE_INTO.check([Some(x), scale, Some(out)], &[])?;
    let [rows, cols] = bound.sizes(["rows", "cols"])?;
    if rows * cols == 0 {
        return Ok(());
    }
    let machine = machine(device);
    let RowParts { parts, steps } = RowParts::new(machine, cols);
    // Without scales any buffer serves as one that is not read.
    let scales = scale.map_or_else(|| x.reinterpret(DType::F32), Tensor::clone);
    // SAFETY: rows of x and of out have `cols` elements, and the kernel stops at that number; the scales are one for
    // each block of 128×128 of them, and are read only if there are any.
    unsafe {
        dequantise_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows * parts)?,
            machine.cube_dim(),
            device.addresses([x, out]),
            x.view(1),
            scales.arg(1),
            out.view(1),
            parts,
            steps,
            scale.is_some(),
            machine,
            [x.dtype().elem(), out.dtype().elem()],
        );
    }
    Ok(())
}
