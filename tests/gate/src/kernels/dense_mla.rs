//! Dense attention over rows, in the absorbed form.

use super::attention::*;
use super::*;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::sparse_attention::{self, mla};

const OF: Of = Of { listed: false, records: false };

pub(super) const KERNEL: Kernel = Kernel {
    name: sparse_attention::DENSE_MLA.name,
    contract: sparse_attention::DENSE_MLA,
    file: "dense_attention.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "4 * splits * s * h * (d_v + 2)",
    work: "s * h * s_kv * (d_qk + d_v) or s * h * n_pages * page_size * (d_qk + d_v)",
    tolerance: tolerance::attention,
    machine: |d| sparse_attention::machine(d, DType::Bf16),
    launch: |device, case| run(device, case, OF),
    compute: |case| reference(case, OF),
    reference: ("dense_mla", "reference/src/dense_attention.rs"),
    forms: || {
        let sizes = (0usize..4, 1usize..40, 0usize..150, Just(0usize));
        forms_of_rows(KERNEL.name, OF, sizes, 99)
    },
    paths: Paths {
        all: |device| all(device, OF),
        of: |case, device| runs(case, device, OF),
        first: "q",
    },
    production: || production(KERNEL.name, with_keys),
    sample,
    bench: &[Bench { stage: Stage::Decode, room: Some(room), spec }],
};

fn with_keys(case: Case, s: usize) -> Case {
    case.with("kv", zeros(DType::Bf16, &[256, v32::D_QK]))
        .with("ks", ints(&[s]))
        .with("ke", ints(&[s]))
        .set("d_v", v32::KV_LORA_RANK)
}

fn sample() -> Case {
    let case = with_ranges(small(KERNEL.name)).with("kv", floats(2, &[9, SMALL.0]));
    case.set("d_v", SMALL.1).set("splits", 1)
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let kv = bytes_of(&[context, v32::D_QK, axes.dtype.size()]);
    let inputs = room_of_queries(axes, axes.batch, axes.topk) + kv;
    (inputs, room_of_outputs(axes, axes.batch, v32::KV_LORA_RANK))
}

/// Of the next token of each request.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (rows, heads, dtype) = (axes.batch, axes.heads, axes.dtype);
    let q = random(device, dtype, &[rows, heads, v32::D_QK], seed)?;
    let kv = random(device, dtype, &[context, v32::D_QK], seed + 1)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let mut rng = Rng::new(seed);
    let gate = Case::new(KERNEL.name)
        .with("q", tensor(&mut rng, dtype, &[2, heads, v32::D_QK], Fill::Normal))
        .with("kv", tensor(&mut rng, dtype, &[90, v32::D_QK], Fill::Normal))
        .with("ks", HostTensor::i32(&[2], &[0, 7]))
        .with("ke", HostTensor::i32(&[2], &[90, 60]))
        .set("d_v", v32::KV_LORA_RANK)
        .set("softmax_scale", v32::SOFTMAX_SCALE);
    let inputs = [&q, &kv, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Decode,
        case: String::new(),
        shape: sizes([("batch", rows), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * context * (v32::D_QK + v32::KV_LORA_RANK)) as u64,
        bytes: (rows
            * (heads * (v32::D_QK + v32::KV_LORA_RANK) + context * v32::D_QK)
            * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            Ok(named(mla(&q, &Kv::Rows(&kv), &Keys::range(&ks, &ke), &args())?))
        }),
        timed: Timed {
            rows,
            heads,
            cost: context * (v32::D_QK + v32::KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, kv, ks, ke] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows_and_heads(q)?)
                    .with("kv", at.whole(kv)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("softmax_scale", v32::SOFTMAX_SCALE)
                    .set("d_v", v32::KV_LORA_RANK);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
