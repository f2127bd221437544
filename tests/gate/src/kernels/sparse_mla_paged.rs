//! Sparse attention over the fp8 cache.

use super::attention::*;
use super::*;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::sparse_attention::{self, mla};

const OF: Of = Of { listed: true, records: true };

pub(super) const KERNEL: Kernel = Kernel {
    name: sparse_attention::SPARSE_MLA_PAGED.name,
    contract: sparse_attention::SPARSE_MLA_PAGED,
    file: "sparse_attention.rs",
    beside: || {
        let d_v = ScalarLine::parse("d_v: integer 1 to d_qk (kv_lora_rank)");
        d_v.into_iter().chain([strided()]).collect()
    },
    made: &[],
    scratch: "4 * splits * s * h * (d_v + 2)",
    work: "s * h * topk * (d_qk + d_v)",
    tolerance: tolerance::attention,
    machine: |d| sparse_attention::machine(d, DType::Bf16),
    launch: |device, case| run(device, case, OF),
    compute: |case| reference(case, OF),
    reference: ("sparse_mla_paged", "reference/src/sparse_attention.rs"),
    forms: || forms_of_records(KERNEL.name, OF),
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
    case.with("cache", pages(v32::TOPK / v32::PAGE, RECORD.bytes()))
        .with("indices", ints(&[s, v32::TOPK]))
        .set("kv_lora_rank", v32::KV_LORA_RANK)
        .set("page_size", v32::PAGE)
}

fn sample() -> Case {
    with_records(with_lists(small(KERNEL.name)))
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let cache = bytes_of(&[context, RECORD.bytes()]);
    let inputs = room_of_queries(axes, axes.batch, axes.topk) + cache;
    (inputs, room_of_outputs(axes, axes.batch, v32::KV_LORA_RANK))
}

/// Of the next token of each request.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (rows, heads, topk, dtype) = (axes.batch, axes.heads, axes.topk, axes.dtype);
    let q = random(device, dtype, &[rows, heads, v32::D_QK], seed)?;
    let pages = context.div_ceil(v32::PAGE);
    let page = v32::PAGE * RECORD.bytes();
    let cache = device.upload(&latent_pages(pages, seed + 1), &[pages, page], DType::U8)?;
    let indices = device.upload_i32(&spread_lists(rows, topk, context), &[rows, topk])?;
    let mut rng = Rng::new(seed);
    let gate = gate_case(KERNEL.name, &mut rng, axes)
        .with("indices", HostTensor::i32(&[2, 70], &spread_lists(2, 70, 90)))
        .with("cache", HostTensor::u8(&[2, page], latent_pages(2, seed)))
        .set("kv_lora_rank", v32::KV_LORA_RANK)
        .set("page_size", v32::PAGE);
    let kept = topk.min(context);
    let inputs = [&q, &cache, &indices].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Decode,
        case: "fp8 records".to_string(),
        shape: sizes([("batch", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * kept * (v32::D_QK + v32::KV_LORA_RANK)) as u64,
        bytes: (rows
            * (heads * (v32::D_QK + v32::KV_LORA_RANK) * dtype.size() + kept * RECORD.bytes()))
            as u64,
        gate,
        work: Box::new(move || {
            let kv = Kv::Records { cache: &cache, page_size: v32::PAGE, record: RECORD };
            Ok(named(mla(&q, &kv, &Keys::listed(&indices), &args())?))
        }),
        timed: Timed {
            rows,
            heads,
            cost: kept * (v32::D_QK + v32::KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, cache, indices] = &inputs;
                // Without pages: a slot is a slot.
                let records = cache.reshape(&[pages * v32::PAGE, RECORD.bytes()])?;
                let (records, indices) = listed(at.whole(&records)?, at.rows(indices)?);
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows_and_heads(q)?)
                    .with("cache", records)
                    .with("indices", indices)
                    .set("softmax_scale", v32::SOFTMAX_SCALE)
                    .set("kv_lora_rank", v32::KV_LORA_RANK)
                    .set("page_size", 1);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
