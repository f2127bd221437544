//! Merging the parts of an attention whose keys were split among programs (split-KV).
//!
//! ```text
//! max_logits = max_i max_i,   lse = max_logits + ln Σ_i w_i,   out = Σ_i w_i · out_i / Σ_i w_i
//! w_i = e^(max_i - max_logits + lse_i)
//! ```
//!
//! Over the splits that had a key (a split's lse of +inf says it had none). A split's lse is relative to its own
//! largest score max_i: of large scores an f32 would not hold the rest. An attention sink applies to
//! the merged result, not to the splits.
//!
//! Cost: reads every split once; bound by memory.
//!
//! Budget (sm_90a): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::attention::{AttentionArgs, AttentionOut, sink_factor};
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
    // Relative to the largest score, so that no exponential overflows; a split without a key has one of -inf.
    let mut top = f32::NEG_INFINITY.runtime();
    for split in 0..splits {
        top = max_nan(top, partial_max.data[split * partial_max.stride(0) + row]);
    }
    let mut sum = 0.0f32.runtime();
    for split in 0..splits {
        sum += weight(partial_lse, partial_max, split, row, top);
    }
    let merged = select(sum == 0.0f32, f32::INFINITY, top + sum.ln());
    let mut scale = 1.0f32 / select(sum == 0.0f32, f32::INFINITY, sum);
    if comptime![has_sink] {
        scale *= sink_factor(merged, sink[divided(row, heads).1], machine);
    }
    for step in 0..d_v.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < d_v {
            let mut value = 0.0f32.runtime();
            for split in 0..splits {
                let weight = weight(partial_lse, partial_max, split, row, top);
                // What weighs nothing is left out: 0 · inf is NaN.
                let share =
                    partial_out.data[split * partial_out.stride(0) + row * d_v + i] * weight;
                value += select(weight == 0.0f32, 0.0f32, share);
            }
            let value = select(scale == 0.0f32, 0.0f32, value * scale);
            out.data[row * d_v + i] = round_to::<O>(value, machine);
        }
    }
    if unit_id(machine) == 0 {
        lse[row] = merged;
        max_logits[row] = top;
    }
}

/// The sum of a part's exponentials, relative to the score `top`; 0 of a part without a key.
#[cube]
fn weight(
    partial_lse: &View<f32>,
    partial_max: &View<f32>,
    split: usize,
    row: usize,
    top: f32,
) -> f32 {
    let own = partial_lse.data[split * partial_lse.stride(0) + row];
    let largest = partial_max.data[split * partial_max.stride(0) + row];
    select(own == f32::INFINITY, 0.0f32, (largest - top + own).exp())
}

/// Merges `parts` into `whole`.
///
/// `parts`: outputs of rows `[splits, s, h]`, f32; `whole`: of `[s, h]`, out of any float type; contiguous.
pub(crate) fn merge_splits(
    parts: &AttentionOut,
    whole: &AttentionOut,
    args: &AttentionArgs,
) -> Result<()> {
    let device = parts.out.device();
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
