//! SwiGLU: what stands between the two products of a feed-forward network.
//!
//! ```text
//! y = silu(gate) · up,   silu(x) = x / (1 + e^−x)        all [n, dim]
//! ```
//! In f32, rounded once to the type of gate (`MLP` and `Expert` of the DeepSeek-V3.2-Exp inference demo).
//!
//! Nothing overflows or vanishes on the way that the result does not: e^−x of a large negative x is out of range, and
//! so may be silu(x) alone, where the product with a large `up` is an ordinary number.
//!
//! Cost: about 20 FLOP an element; reads two elements and writes one, bound by memory.
//!
//! Budget (sm_90a): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 48 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::{Tensor, width_of};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// `gate / (1 + e^−gate) · up`.
#[cube]
fn silu_times(gate: f32, up: f32) -> f32 {
    // With h = e^(−|x|/2), silu(x) is x / (1 + h²) for x ≥ 0 and x · h² / (1 + h²) below: h is in range for all x whose
    // silu is not 0 beside any `up`.
    let h = (gate.abs() * -0.5f32).exp();
    let half = select(gate < 0.0f32, h, 1.0f32);
    let larger = select(gate.abs() > up.abs(), gate, up);
    let smaller = select(gate.abs() > up.abs(), up, gate);
    // What shrinks first meets the larger of the two.
    let y = larger * (half / (1.0f32 + h * h)) * smaller * half;
    // silu may have vanished, and 0 · inf would be NaN.
    select(up.is_inf() && !gate.is_inf(), gate * up, y)
}

/// One program works on a part of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn swiglu_kernel<E: Numeric, N: Size>(
    gate: &View<Vector<E, N>>,    // [n, dim]
    up: &View<Vector<E, N>>,      // [n, dim]
    out: &mut View<Vector<E, N>>, // [n, dim]
    parts: usize,
    steps: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= out.shape(0) * parts {
        terminate!();
    }
    let (row, part) = divided(program, parts);
    let of_gate = row * gate.stride(0) / N::value();
    let of_up = row * up.stride(0) / N::value();
    let to = row * out.stride(0) / N::value();
    for step in 0..steps {
        let i = (part * steps + step) * comptime![machine.team] + unit_id(machine);
        if i < out.shape(1) / N::value() {
            let gate = Vector::<f32, N>::cast_from(gate.data[of_gate + i]);
            let up = Vector::<f32, N>::cast_from(up.data[of_up + i]);
            let mut y = gate;
            #[unroll]
            for lane in 0..N::value() {
                y.insert(lane, silu_times(gate.extract(lane), up.extract(lane)));
            }
            out.data[to + i] = round_vector::<E, N>(y, machine);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(128)
}

/// What [`swiglu`] takes and returns.
pub const SWIGLU: Contract = Contract {
    name: "swiglu",
    tensors: &["gate: [n, dim] f32|bf16|f16, rows", "up: [n, dim] as gate, rows"],
    scalars: &[],
    sizes: &[],
    outputs: &["out: [n, dim] as gate"],
};

/// `gate / (1 + e^−gate) · up` ([`SWIGLU`]).
///
/// - `gate`: `[n, dim]` f32, bf16 or f16;
/// - `up`: `[n, dim]` of the type of gate;
/// - returns `[n, dim]` of that type. An infinite `up` gives an infinity, unless gate is 0, infinite or NaN.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let device = gate.device();
    let bound = SWIGLU.check([gate, up].map(Some), &[])?;
    let [n, dim] = bound.sizes(["n", "dim"])?;
    let out = bound.output("out")?;
    if n * dim == 0 {
        return Ok(out);
    }
    let (machine, width) = (machine(device), width_of(&[gate, up, &out]));
    let RowParts { parts, steps } = RowParts::new(machine, dim / width);
    // SAFETY: rows of all three have `dim` elements, in whole vectors, and the kernel stops at that number.
    unsafe {
        swiglu_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n * parts)?,
            machine.cube_dim(),
            device.addresses([gate, up, &out]),
            width,
            gate.view(width),
            up.view(width),
            out.view(width),
            parts,
            steps,
            machine,
            gate.dtype().elem(),
        );
    }
    Ok(out)
}
