//! Sparse attention over rows.

use super::attention::*;
use super::*;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::sparse_attention::{self, mla};

const OF: Of = Of { listed: true, records: false };

pub(super) const KERNEL: Kernel = Kernel {
    name: sparse_attention::SPARSE_MLA.name,
    contract: sparse_attention::SPARSE_MLA,
    file: "sparse_attention.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "4 * splits * s * h * (d_v + 2)",
    work: "s * h * topk * (d_qk + d_v)",
    tolerance: tolerance::attention,
    machine: |d| sparse_attention::machine(d, DType::Bf16),
    launch: |device, case| run(device, case, OF),
    compute: |case| reference(case, OF),
    reference: ("sparse_mla", "reference/src/sparse_attention.rs"),
    forms: || {
        let sizes = (0usize..4, 1usize..=40, 1usize..90, 1usize..150);
        forms_of_rows(KERNEL.name, OF, sizes, 80)
    },
    paths: Paths {
        all: |device| all(device, OF),
        of: |case, device| runs(case, device, OF),
        first: "q",
    },
    production: || production(KERNEL.name, with_keys),
    sample,
    bench: &[
        Bench {
            stage: Stage::Prefill,
            room: Some(|axes, context| room(axes, context, axes.s_q)),
            spec: |device, axes, context, seed| {
                spec(device, axes, context, Stage::Prefill, axes.s_q, seed)
            },
        },
        Bench {
            stage: Stage::Decode,
            room: Some(|axes, context| room(axes, context, axes.batch)),
            spec: |device, axes, context, seed| {
                spec(device, axes, context, Stage::Decode, axes.batch, seed)
            },
        },
    ],
};

fn with_keys(case: Case, s: usize) -> Case {
    case.with("kv", zeros(DType::Bf16, &[v32::TOPK, v32::D_QK]))
        .with("indices", ints(&[s, v32::TOPK]))
        .set("d_v", v32::KV_LORA_RANK)
}

fn sample() -> Case {
    let case = with_lists(small(KERNEL.name)).with("kv", floats(2, &[9, SMALL.0]));
    case.set("d_v", SMALL.1).set("splits", 1)
}

fn room(axes: &Axes, context: usize, rows: usize) -> (u128, u128) {
    let kv = bytes_of(&[context, v32::D_QK, axes.dtype.size()]);
    let inputs = room_of_queries(axes, rows, axes.topk) + kv;
    (inputs, room_of_outputs(axes, rows, v32::KV_LORA_RANK))
}

/// Of `rows` tokens.
fn spec(
    device: &Device,
    axes: &Axes,
    context: usize,
    stage: Stage,
    rows: usize,
    seed: u64,
) -> dsa_kernels::Result<Spec> {
    let (heads, topk, dtype) = (axes.heads, axes.topk, axes.dtype);
    let q = random(device, dtype, &[rows, heads, v32::D_QK], seed)?;
    let kv = random(device, dtype, &[context, v32::D_QK], seed + 1)?;
    let indices = device.upload_i32(&spread_lists(rows, topk, context), &[rows, topk])?;
    let mut rng = Rng::new(seed);
    let gate = gate_case(KERNEL.name, &mut rng, axes)
        .with("indices", HostTensor::i32(&[2, 70], &spread_lists(2, 70, 90)))
        .with("kv", tensor(&mut rng, dtype, &[90, v32::D_QK], Fill::Normal))
        .set("d_v", v32::KV_LORA_RANK);
    let kept = topk.min(context);
    let inputs = [&q, &kv, &indices].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage,
        case: "elements".to_string(),
        shape: sizes([("s_q", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * kept * (v32::D_QK + v32::KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (v32::D_QK + v32::KV_LORA_RANK) + kept * v32::D_QK) * dtype.size())
            as u64,
        gate,
        work: Box::new(move || {
            Ok(named(mla(&q, &Kv::Rows(&kv), &Keys::listed(&indices), &args())?))
        }),
        timed: Timed {
            rows,
            heads,
            cost: kept * (v32::D_QK + v32::KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, kv, indices] = &inputs;
                let (kv, indices) = listed(at.whole(kv)?, at.rows(indices)?);
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows_and_heads(q)?)
                    .with("kv", kv)
                    .with("indices", indices)
                    .set("softmax_scale", v32::SOFTMAX_SCALE)
                    .set("d_v", v32::KV_LORA_RANK);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
