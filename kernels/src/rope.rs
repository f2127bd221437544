//! Rotary position embedding.
//!
//! ```text
//! (x_a, x_b) -> (x_a cos θ - x_b sin θ, x_a sin θ + x_b cos θ),   θ = position · f_i
//! interleaved: a = 2i, b = 2i + 1        half-split: a = i, b = i + dim/2
//! ```
//!
//! MLA rotates interleaved pairs, the indexer half-split ones; the demo of September 2025 mixed them up
//! (DeepSeek-V3.2-Exp, fix of 2025-11-17), and GLM-5 interleaves in both, so the pairing is an argument.
//!
//! Cost: 6 FLOP a pair; bound by memory.
//!
//! Budget (sm_90a): at most 24 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Which elements are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `(2i, 2i + 1)`.
    Interleaved,
    /// `(i, i + dim/2)`, NeoX style.
    HalfSplit,
}

impl Pairing {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("interleaved", Self::Interleaved), ("half_split", Self::HalfSplit)];
}

/// One program rotates one head of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rope_kernel<E: Numeric>(
    x: &View<E>,       // [n, heads, dim]
    cos: &View<f32>,   // [positions, dim/2]
    sin: &[f32],       // [positions, dim/2]
    positions: &[i32], // [n]
    out: &mut View<E>, // [n, heads, dim]
    #[comptime] dim: usize,
    #[comptime] pairing: Pairing,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let heads = x.shape(1);
    let program = program_id(machine);
    if program >= x.shape(0) * heads {
        terminate!();
    }
    let (row, head) = divided(program, heads);
    let from = row * x.stride(0) + head * x.stride(1);
    let to = row * out.stride(0) + head * out.stride(1);
    let position = positions[row];
    let known = position >= 0 && position < cos.shape(0) as i32;
    let position = select(known, position, 0i32) as usize;
    let pairs = comptime![dim / 2];
    for step in 0..comptime![pairs.div_ceil(machine.team)] {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < pairs {
            let (a, b) = if comptime![pairing == Pairing::Interleaved] {
                (2 * i, 2 * i + 1)
            } else {
                (i, i + pairs)
            };
            let c = select(known, cos.data[position * pairs + i], f32::NAN);
            let s = select(known, sin[position * pairs + i], f32::NAN);
            let xa = f32::cast_from(x.data[from + a]);
            let xb = f32::cast_from(x.data[from + b]);
            out.data[to + a] = round_to::<E>(sum_of_products(xa, c, -xb, s), machine);
            out.data[to + b] = round_to::<E>(sum_of_products(xa, s, xb, c), machine);
        }
    }
}

/// `a · c + b · d`, of which a product may be out of f32's range where the sum is not, if a table's numbers are
/// above 1 (YaRN's attention factor): then it is the sum of smaller ones.
#[cube]
fn sum_of_products(a: f32, c: f32, b: f32, d: f32) -> f32 {
    let sum = a * c + b * d;
    let halves = (a * 0.0078125f32) * c + (b * 0.0078125f32) * d;
    select(sum.is_inf() || sum.is_nan(), halves * 128.0f32, sum)
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(32)
}

/// What [`rope`] takes and changes.
pub const ROPE: Contract = Contract {
    name: "rope",
    tensors: &[
        "x: [n, heads, dim] f32|bf16|f16, rows",
        "cos: [positions, dim / 2] f32",
        "sin: [positions, dim / 2] f32",
        "positions: [n] i32",
        "out: [n, heads, dim] as x, rows",
    ],
    scalars: &[],
    sizes: &["dim: at least 2, even", "positions: at least 1"],
    outputs: &["out: [n, heads, dim] as x"],
};

/// Rotates every head of every row into `out`, which may be `x` itself ([`ROPE`]).
///
/// - `x`, `out`: `[n, heads, dim]` of one float type, dim even;
/// - `cos`, `sin`: `[positions, dim / 2]` f32;
/// - `positions`: `[n]` i32, the row's line of the tables; a row whose line they do not have becomes NaN.
///
/// # Errors
/// What is not as the contract says.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    out: &Tensor,
    pairing: Pairing,
) -> Result<()> {
    let device = x.device();
    let bound = ROPE.check([x, cos, sin, positions, out].map(Some), &[])?;
    let [rows, heads, dim] = bound.sizes(["n", "heads", "dim"])?;
    if rows * heads == 0 {
        return Ok(());
    }
    let machine = machine(device);
    // SAFETY: rows, heads and dim are those of x and out; positions are compared with the tables' lines; a pair is
    // read whole before it is written, so x and out may be the same.
    unsafe {
        rope_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows * heads)?,
            machine.cube_dim(),
            device.addresses([x, cos, out]),
            x.view(1),
            cos.view(1),
            sin.arg(1),
            positions.arg(1),
            out.view(1),
            dim,
            pairing,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
