//! What the attention kernels, sparse and dense, take and return alike.

use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::{Machine, reciprocal};
use crate::{KernelError, Result};
use cubecl::prelude::*;

/// What an attention sink leaves of an output: `e^lse / (e^lse + e^sink)`. A row without a key (lse +inf)
/// is 0 whatever the sink.
#[cube]
pub(crate) fn sink_factor(lse: f32, sink: f32, #[comptime] machine: Machine) -> f32 {
    let factor = reciprocal(1.0f32 + (sink - lse).exp(), machine);
    select(lse == f32::INFINITY, 0.0f32, factor)
}

/// How attention of `dtype` runs on `device`, sizes permitting.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    // A wave of 64, or two warps: more would need wider tiles than shared memory holds.
    device.matrix_machine(dtype.elem(), 2).unwrap_or_else(|| device.machine(64))
}

/// What attention returns.
#[derive(Clone, Debug)]
pub struct AttentionOut {
    /// `[s, h, d_v]` of the type of q.
    pub out: Tensor,
    /// `[s, h]` f32: natural logarithm of the sum of exponentials; +inf for a row without a key.
    pub lse: Tensor,
    /// `[s, h]` f32: the largest scaled score; -inf for a row without a key.
    pub max_logits: Tensor,
}

impl AttentionOut {
    /// Room for the outputs of `rows`, e.g. `[s, h]`, and `d_v` columns.
    pub(crate) fn empty(device: &Device, rows: &[usize], d_v: usize, dtype: DType) -> Result<Self> {
        let out = device.output("out", &[rows, &[d_v]].concat(), dtype)?;
        let lse = device.output("lse", rows, DType::F32)?;
        let max_logits = device.output("max_logits", rows, DType::F32)?;
        Ok(Self { out, lse, max_logits })
    }
}

/// What attention takes beside its tensors.
#[derive(Clone, Debug, Default)]
pub struct AttentionArgs {
    /// Factor of the scores; finite and positive. V3.2 at long context: 0.13523378.
    pub softmax_scale: f32,
    /// Columns of a key's row that are its value; at most d_qk.
    pub d_v: usize,
    /// `[s]` i32: entries of the index list from here on are ignored.
    pub topk_length: Option<Tensor>,
    /// `[h]` f32: a score that takes its share of the softmax and adds nothing; may be infinite. The
    /// lse does not include it.
    pub attn_sink: Option<Tensor>,
    /// Programs that share one token's keys; chosen for the device if `None`.
    pub splits: Option<usize>,
}

/// Checks what every attention launcher takes.
pub(crate) fn check_args(
    q: &Tensor,
    heads: usize,
    d_qk: usize,
    args: &AttentionArgs,
) -> Result<()> {
    q.expect_dtype("q", &DType::FLOATS)?;
    q.expect_rows("q")?;
    if !(1..=128).contains(&heads) || !(1..=1024).contains(&d_qk) {
        return Err(KernelError::Shape {
            tensor: "q",
            got: q.shape().to_vec(),
            expected: "h from 1 to 128 and d_qk from 1 to 1024".to_string(),
        });
    }
    let positive = args.softmax_scale.is_finite() && args.softmax_scale > 0.0;
    for (name, ok, got, expected) in [
        (
            "softmax_scale",
            positive,
            args.softmax_scale.to_string(),
            "finite and positive".to_string(),
        ),
        ("d_v", (1..=1024).contains(&args.d_v), args.d_v.to_string(), "1 to 1024".to_string()),
        (
            "splits",
            args.splits.is_none_or(|n| (1..=1024).contains(&n)),
            format!("{:?}", args.splits),
            "1 to 1024".to_string(),
        ),
    ] {
        if !ok {
            return Err(KernelError::Value { name, got, expected });
        }
    }
    if let Some(sink) = &args.attn_sink {
        sink.expect_shape("attn_sink", &[("h", heads)])?;
        sink.expect_dtype("attn_sink", &[DType::F32])?;
        sink.expect_contiguous("attn_sink")?;
    }
    Ok(())
}
