//! The embedding: a row of the table for each token.
//!
//! ```text
//! out[t] = table[ids[t]]        table [V, hidden], ids [n], out [n, hidden]
//! ```
//! A number that names no row gives a row of NaN: on the device nothing can be refused, so the host looks at the ids
//! before.
//!
//! Source: `ParallelEmbedding` of the DeepSeek-V3.2-Exp inference demo, on one rank.
//!
//! Cost: no FLOP; every element is read and written once, in vectors of 16 bytes where the rows allow it.
//!
//! Budget (sm_90a): at most 24 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::{Tensor, width_of};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program copies a part of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn embedding_kernel<E: Numeric, N: Size>(
    table: &View<Vector<E, N>>,   // [V, hidden]
    ids: &[i32],                  // [n]
    out: &mut View<Vector<E, N>>, // [n, hidden]
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
    let id = ids[row];
    let known = id >= 0 && id < table.shape(0) as i32;
    let from = select(known, id, 0i32) as usize * table.stride(0) / N::value();
    let to = row * out.stride(0) / N::value();
    let nan = round_vector::<E, N>(Vector::new(f32::NAN), machine);
    for step in 0..steps {
        let i = (part * steps + step) * comptime![machine.team] + unit_id(machine);
        if i < out.shape(1) / N::value() {
            let mut values = nan;
            if known {
                values = table.data[from + i];
            }
            out.data[to + i] = values;
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(128)
}

/// What [`embedding`] takes and returns.
pub const EMBEDDING: Contract = Contract {
    name: "embedding",
    tensors: &["table: [V, hidden] f32|bf16|f16, rows", "ids: [n] i32"],
    scalars: &[],
    sizes: &[],
    outputs: &["out: [n, hidden] as table"],
};

/// A row of the table for each token ([`EMBEDDING`]).
///
/// - `table`: `[V, hidden]` f32, bf16 or f16;
/// - `ids`: `[n]` i32; one that is negative or at least V gives a row of NaN;
/// - returns `[n, hidden]` of the type of the table.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let device = table.device();
    let bound = EMBEDDING.check([table, ids].map(Some), &[])?;
    let [n, hidden] = bound.sizes(["n", "hidden"])?;
    let out = bound.output("out")?;
    if n * hidden == 0 {
        return Ok(out);
    }
    let (machine, width) = (machine(device), width_of(&[table, &out]));
    let RowParts { parts, steps } = RowParts::new(machine, hidden / width);
    // SAFETY: an id is compared with the rows of the table before one is read; a row of table and of out has `hidden`
    // elements, in whole vectors, and the kernel stops at that number.
    unsafe {
        embedding_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n * parts)?,
            machine.cube_dim(),
            device.addresses([table, &out]),
            width,
            table.view(width),
            ids.arg(1),
            out.view(width),
            parts,
            steps,
            machine,
            table.dtype().elem(),
        );
    }
    Ok(out)
}
