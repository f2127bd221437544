//! What the attention kernels, sparse and dense, take and return alike.

use crate::Result;
use crate::contract::Bound;
use crate::device::Device;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tile::{Machine, reciprocal};

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

    /// Room for the outputs of a launch.
    pub(crate) fn of(launch: &Bound) -> Result<Self> {
        let [out, lse, max_logits] = ["out", "lse", "max_logits"].map(|name| launch.output(name));
        Ok(Self { out: out?, lse: lse?, max_logits: max_logits? })
    }
}

/// The outputs of attention, of `q` `[s, h, d_qk]`.
pub(crate) const OUTPUTS: &[&str] =
    &["out: [s, h, d_v] as q", "lse: [s, h] f32", "max_logits: [s, h] f32"];

/// What attention takes beside queries and keys.
#[derive(Clone, Debug)]
pub struct AttentionArgs {
    /// Factor of the scores; finite and positive. V3.2 at long context: 0.13523378.
    pub softmax_scale: f32,
    /// Columns of a key's row that are its value; at most d_qk.
    pub d_v: usize,
    /// `[h]` f32: a score that takes its share of the softmax and adds nothing; may be infinite. The
    /// lse does not include it.
    pub attn_sink: Option<Tensor>,
    /// Programs that share one token's keys; chosen for the device if `None`.
    pub splits: Option<usize>,
}

impl AttentionArgs {
    /// These, without a sink, and splits as suit the device.
    pub fn new(softmax_scale: f32, d_v: usize) -> Self {
        Self { softmax_scale, d_v, attn_sink: None, splits: None }
    }
}
