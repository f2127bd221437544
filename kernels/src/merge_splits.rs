//! Merging the parts of an attention whose keys were split among programs (split-KV).
//!
//! ```text
//! lse = ln Σ_i e^lse_i,   out = Σ_i e^(lse_i - lse) · out_i,   max_logits = max_i max_logits_i
//! ```
//!
//! Over the splits that had a key (a split's lse of +inf says it had none). An attention sink applies to
//! the merged result, not to the splits.
//!
//! Cost: reads every split once; bound by memory.
//!
//! Budget (sm_90a): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::attention::{Attention, AttentionArgs, sink_factor};
use crate::device::Device;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program merges the splits of one head of one token.
#[cube(launch_unchecked, address_type = "dynamic")]
fn merge_kernel<O: Numeric>(
    partial_out: &View<f32>, // [splits, s, h, d_v]
    partial_lse: &View<f32>, // [splits, s, h]
    partial_max: &View<f32>, // [splits, s, h]
    sink: &[f32],            // [h]
    out: &mut View<O>,       // [s, h, d_v]
    lse: &mut [f32],         // [s, h]
    max_logits: &mut [f32],  // [s, h]
    #[comptime] has_sink: bool,
    #[comptime] machine: Machine,
    #[define(O)] _elem: ElemType,
) {
    let (splits, heads, d_v) = (partial_out.shape(0), out.shape(1), out.shape(2));
    let row = program_id(machine);
    if row >= out.shape(0) * heads {
        terminate!();
    }
    // Relative to the largest lse, so that no exponential overflows; +inf marks a split without a key.
    let mut top = f32::NEG_INFINITY.runtime();
    let mut max_logit = f32::NEG_INFINITY.runtime();
    for split in 0..splits {
        let of_split = partial_lse.data[split * partial_lse.stride(0) + row];
        if of_split != f32::INFINITY {
            top = max_nan(top, of_split);
        }
        max_logit = max_nan(max_logit, partial_max.data[split * partial_max.stride(0) + row]);
    }
    let shift = select(top == f32::NEG_INFINITY, 0.0f32, top);
    let mut sum = 0.0f32.runtime();
    for split in 0..splits {
        let of_split = partial_lse.data[split * partial_lse.stride(0) + row];
        if of_split != f32::INFINITY {
            sum += (of_split - shift).exp();
        }
    }
    let merged = select(sum == 0.0f32, f32::INFINITY, shift + sum.ln());
    let mut scale = 1.0f32 / select(sum == 0.0f32, f32::INFINITY, sum);
    if comptime![has_sink] {
        scale *= sink_factor(merged, sink[divided(row, heads).1], machine);
    }
    for step in 0..d_v.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < d_v {
            let mut value = 0.0f32.runtime();
            for split in 0..splits {
                let of_split = partial_lse.data[split * partial_lse.stride(0) + row];
                if of_split != f32::INFINITY {
                    let at = split * partial_out.stride(0) + row * d_v + i;
                    let weight = (of_split - shift).exp();
                    // What weighs nothing is left out: 0 · inf is NaN.
                    value += select(weight == 0.0f32, 0.0f32, partial_out.data[at] * weight);
                }
            }
            let value = select(scale == 0.0f32, 0.0f32, value * scale);
            out.data[row * d_v + i] = round_to::<O>(value, machine);
        }
    }
    if unit_id(machine) == 0 {
        lse[row] = merged;
        max_logits[row] = max_logit;
    }
}

/// Merges `parts` into `whole`.
///
/// `parts`: outputs of rows `[splits, s, h]`, f32; `whole`: of `[s, h]`, out of any float type; contiguous.
pub(crate) fn merge_splits(
    device: &Device,
    parts: &Attention,
    whole: &Attention,
    args: &AttentionArgs,
) -> Result<()> {
    parts.out.expect_rank("parts", &["splits", "s", "h", "d_v"])?;
    let [_, s, heads, d_v] = [0, 1, 2, 3].map(|axis| parts.out.shape()[axis]);
    whole.out.expect_shape("whole", &[("s", s), ("h", heads), ("d_v", d_v)])?;
    let machine = device.machine(128);
    // Without a sink any buffer of f32 serves as one that is not read.
    let sink = args.attn_sink.as_ref().unwrap_or(&whole.lse);
    // SAFETY: the parts hold `splits · s · heads` rows, the whole `s · heads`, a sink `heads`.
    unsafe {
        merge_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(s * heads)?,
            machine.cube_dim(),
            device.addresses([&parts.out, &whole.out]),
            parts.out.view(1),
            parts.lse.view(1),
            parts.max_logits.view(1),
            sink.arg(1),
            whole.out.view(1),
            whole.lse.arg(1),
            whole.max_logits.arg(1),
            args.attn_sink.is_some(),
            machine,
            whole.out.dtype().elem(),
        );
    }
    Ok(())
}
