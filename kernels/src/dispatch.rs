//! The pairs of tokens and experts in the order of the experts: what a grouped product works through.
//!
//! ```text
//! pair p = t · top_k + j          token t goes to expert indices[t, j]
//! order  = the pairs, by expert and then by number       [n · top_k]
//! ends   = where in it the pairs of each expert end      [experts]
//! ```
//! A pair whose index names no expert comes behind all others, and no end counts it. The order is a function of the
//! indices alone: no order of atomics shows in it, and within an expert tokens ascend.
//!
//! Method: a stable counting sort. One program an expert counts the pairs of the experts below it and its own, of
//! which each unit has a run; it then writes its own behind those. Nothing goes through the host.
//!
//! Cost: every expert's program reads the indices twice, from cache: `8 · n · top_k` bytes each.
//!
//! Budget (sm_90a): at most 40 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 32 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;

/// The expert that `index` names, of so many; `experts` if it names none.
#[cube]
pub(crate) fn expert_of(index: i32, experts: u32) -> u32 {
    // A negative index is a large one without its sign.
    min(index as u32, experts)
}

/// One program lists the pairs of one expert; one more lists those of none.
#[cube(launch_unchecked, address_type = "dynamic")]
fn dispatch_kernel(
    indices: &View<i32>, // [n, top_k]
    order: &mut [i32],   // [n * top_k]
    ends: &mut [i32],    // [experts]
    experts: u32,
    #[comptime] machine: Machine,
) {
    let expert = program_id(machine) as u32;
    if expert > experts {
        terminate!();
    }
    let pairs = indices.shape(0) * indices.shape(1);
    let run = pairs.div_ceil(comptime![machine.team]);
    let first = min(unit_id(machine) * run, pairs);
    let end = min(first + run, pairs);
    let mut below = 0u32.runtime();
    let mut own = 0u32.runtime();
    for pair in first..end {
        let of = expert_of(indices.data[pair], experts);
        below += select(of < expert, 1u32, 0u32);
        own += select(of == expert, 1u32, 0u32);
    }
    let mut scan = TeamScan::new(machine);
    let below = scan.count(below).total;
    let own = scan.count(own);
    let mut at = (below + own.before) as usize;
    for pair in first..end {
        if expert_of(indices.data[pair], experts) == expert {
            order[at] = pair as i32;
            at += 1;
        }
    }
    if expert < experts && unit_id(machine) == 0 {
        ends[expert as usize] = (below + own.total) as i32;
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`dispatch`] returns.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// `[n · top_k]` i32: the pairs `t · top_k + j`, sorted by expert, then by number.
    pub order: Tensor,
    /// `[experts]` i32: where in `order` each expert's pairs end. They begin where the ones before end.
    pub ends: Tensor,
}

/// What [`dispatch`] takes and returns.
pub const DISPATCH: Contract = Contract {
    name: "dispatch",
    tensors: &["indices: [n, top_k] i32"],
    scalars: &["experts: integer 1 to 512"],
    sizes: &["top_k: 1 to 512"],
    outputs: &["order: [n * top_k] i32", "ends: [experts] i32"],
};

/// Sorts pairs of tokens and experts by expert ([`DISPATCH`]).
///
/// - `indices`: `[n, top_k]` i32, the experts of each token; one that is negative or at least `experts` is none;
/// - returns the order and where each expert ends in it.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn dispatch(indices: &Tensor, experts: usize) -> Result<Dispatch> {
    let device = indices.device();
    let bound = DISPATCH.check([Some(indices)], &[experts.into()])?;
    let (order, ends) = (bound.output("order")?, bound.output("ends")?);
    let machine = machine(device);
    // SAFETY: a unit reads pairs of indices below n · top_k; all programs together write each place of `order` once,
    // since each begins where the ones before it end; `ends` has an element for each expert.
    unsafe {
        dispatch_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(experts + 1)?,
            machine.cube_dim(),
            device.addresses([indices, &order]),
            indices.view(1),
            order.arg(1),
            ends.arg(1),
            experts as u32,
            machine,
        );
    }
    Ok(Dispatch { order, ends })
}
