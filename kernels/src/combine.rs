//! The sum over a token's experts.
//!
//! ```text
//! out[t] = round( Σ_e weights[t, e] · y[t, e] + shared[t] )
//! ```
//! In f32, over the token's experts by ascending number, whatever order the gate lists them in (an expert that is
//! listed twice counts twice, the earlier place first); the shared network comes last, and only then the sum is
//! rounded. So a token's result depends on nothing but the token. A pair of no expert is left out.
//!
//! | tensor | shape |
//! |---|---|
//! | y | `[n · top_k, d]`: row i is what the expert of pair `order[i]` made of its token |
//! | order, ends | `[n · top_k]`, `[experts]`: as `dispatch.rs` makes them |
//! | indices, weights | `[n, top_k]`: as `router.rs` makes them |
//! | shared, out | `[n, d]` |
//!
//! Source: `MoE` of the DeepSeek-V3.2-Exp inference demo.
//!
//! Cost: `2 · top_k` FLOP an element of the output; reads every row of y once, bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 4 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 4 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dispatch::{Dispatch, expert_of};
use crate::dtype::DType;
use crate::router::Routing;
use crate::tensor::{Tensor, width_of};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Experts of a token, at most.
const MOST: usize = 512;

/// The place of `pair` in `order`, which is somewhere in `start .. end`, where pairs ascend.
#[cube]
fn place_of(pair: i32, order: &[i32], start: usize, end: usize) -> usize {
    let mut low = start;
    let mut high = end;
    while low < high {
        let middle = (low + high) / 2;
        if order[middle] < pair {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// One program sums a part of one token's row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn combine_kernel<E: Numeric, O: Numeric, N: Size>(
    y: &View<Vector<E, N>>,       // [n * top_k, d]
    order: &[i32],                // [n * top_k]
    ends: &[i32],                 // [experts]
    indices: &View<i32>,          // [n, top_k]
    weights: &[f32],              // [n, top_k]
    shared: &View<Vector<E, N>>,  // [n, d]
    out: &mut View<Vector<O, N>>, // [n, d]
    experts: u32,
    parts: usize,
    steps: usize,
    #[comptime] has_shared: bool,
    #[comptime] machine: Machine,
    #[define(E, O)] _types: [ElemType; 2],
) {
    let program = program_id(machine);
    if program >= out.shape(0) * parts {
        terminate!();
    }
    let (token, part) = divided(program, parts);
    let (top_k, pairs) = (indices.shape(1), y.shape(0));
    // The token's rows of y and their weights, by ascending expert.
    let mut rows = team_memory::<u32>(MOST, 4usize, machine);
    let mut factors = team_memory::<f32>(MOST, 4usize, machine);
    let first = token * top_k;
    for step in 0..top_k.div_ceil(comptime![machine.team]) {
        let j = step * comptime![machine.team] + unit_id(machine);
        if j < top_k {
            let expert = expert_of(indices.data[first + j], experts);
            let mut rank = 0u32.runtime();
            for i in 0..top_k {
                let other = expert_of(indices.data[first + i], experts);
                let before = other < expert || (other == expert && i < j);
                rank += select(before, 1u32, 0u32);
            }
            let mut row = pairs;
            if expert < experts {
                // Whatever the caller's lists hold, no place beyond them is read.
                let start = select(expert > 0, ends[max(expert, 1u32) as usize - 1], 0i32);
                let (start, end) = (max(start, 0i32), max(ends[expert as usize], 0i32));
                let (start, end) = (min(start as usize, pairs), min(end as usize, pairs));
                row = min(place_of((first + j) as i32, order, start, end), pairs - 1);
            }
            rows[rank as usize] = row as u32;
            factors[rank as usize] = weights[first + j];
        }
    }
    sync_team(machine);
    let to = token * out.stride(0) / N::value();
    for step in 0..steps {
        let i = (part * steps + step) * comptime![machine.team] + unit_id(machine);
        if i < out.shape(1) / N::value() {
            let mut sum = Vector::<f32, N>::new(0.0f32);
            for nth in 0..top_k {
                let row = rows[nth] as usize;
                if row < pairs {
                    let of =
                        Vector::<f32, N>::cast_from(y.data[row * y.stride(0) / N::value() + i]);
                    sum += of * Vector::new(factors[nth]);
                }
            }
            if comptime![has_shared] {
                let at = token * shared.stride(0) / N::value() + i;
                sum += Vector::<f32, N>::cast_from(shared.data[at]);
            }
            out.data[to + i] = round_vector::<O, N>(sum, machine);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(128)
}

/// What [`combine`] takes and returns.
pub const COMBINE: Contract = Contract {
    name: "combine",
    tensors: &[
        "y: [n * top_k, d] f32|bf16|f16, rows",
        "order: [n * top_k] i32",
        "ends: [experts] i32",
        "indices: [n, top_k] i32",
        "weights: [n, top_k] f32",
        "shared: [n, d] as y, rows (optional)",
    ],
    scalars: &["out: f32|bf16|f16 (f32)"],
    sizes: &["top_k: 1 to 512", "experts: 1 to 512"],
    outputs: &["out: [n, d] as out"],
};

/// The weighted sum over each token's experts, by ascending number, and the shared network's output ([`COMBINE`]).
///
/// - `y`: `[n · top_k, d]` f32, bf16 or f16, in the order of `dispatch`;
/// - `dispatch`: of the indices of `routing`; of any others the rows that are summed are arbitrary ones of y;
/// - `routing`: indices and weights `[n, top_k]`;
/// - `shared`: `[n, d]` of the type of y;
/// - returns `[n, d]` of `out_dtype`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn combine(
    y: &Tensor,
    dispatch: &Dispatch,
    routing: &Routing,
    shared: Option<&Tensor>,
    out_dtype: DType,
) -> Result<Tensor> {
    let (device, Dispatch { order, ends }) = (y.device(), dispatch);
    let Routing { indices, weights } = routing;
    let tensors = [Some(y), Some(order), Some(ends), Some(indices), Some(weights), shared];
    let bound = COMBINE.check(tensors, &[out_dtype.into()])?;
    let [n, d, experts] = bound.sizes(["n", "d", "experts"])?;
    let out = bound.output("out")?;
    if n * d == 0 {
        return Ok(out);
    }
    let machine = machine(device);
    // Without a shared network any buffer of that type serves as one that is not read.
    let of_shared = shared.unwrap_or(y);
    let width = width_of(&[y, of_shared, &out]);
    let RowParts { parts, steps } = RowParts::new(machine, d / width);
    // SAFETY: a row of y is compared with their number, an expert with the number of ends, a place in `order` with the
    // number of pairs; rows of y, shared and out have d elements, in whole vectors, and the kernel stops there; a
    // token has at most `MOST` experts.
    unsafe {
        combine_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n * parts)?,
            machine.cube_dim(),
            device.addresses([y, of_shared, &out]),
            width,
            y.view(width),
            order.arg(1),
            ends.arg(1),
            indices.view(1),
            weights.arg(1),
            of_shared.view(width),
            out.view(width),
            experts as u32,
            parts,
            steps,
            shared.is_some(),
            machine,
            [y.dtype().elem(), out.dtype().elem()],
        );
    }
    Ok(out)
}
