//! Dense attention over the fp8 cache, in the absorbed form.

use super::attention::*;
use super::*;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::sparse_attention::{self, mla};

const OF: Of = Of { listed: false, records: true };

pub(super) const KERNEL: Kernel = Kernel {
    name: sparse_attention::DENSE_MLA_PAGED.name,
    contract: sparse_attention::DENSE_MLA_PAGED,
    file: "sparse_attention.rs",
    beside: || {
        let d_v = ScalarLine::parse("d_v: integer 1 to d_qk (kv_lora_rank)");
        d_v.into_iter().chain([strided()]).collect()
    },
    made: &[],
    scratch: "4 * splits * s * h * (d_v + 2)",
    work: "s * h * n_pages * page_size * (d_qk + d_v)",
    tolerance: tolerance::attention,
    machine: |d| sparse_attention::machine(d, DType::Bf16),
    launch: |device, case| run(device, case, OF),
    compute: |case| reference(case, OF),
    reference: ("dense_mla", "reference/src/dense_attention.rs"),
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
    case.with("cache", pages(4, RECORD.bytes()))
        .with("ks", ints(&[s]))
        .with("ke", ints(&[s]))
        .set("kv_lora_rank", v32::KV_LORA_RANK)
        .set("page_size", v32::PAGE)
}

fn sample() -> Case {
    with_records(with_ranges(small(KERNEL.name)))
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let cache = bytes_of(&[context.next_multiple_of(v32::PAGE), RECORD.bytes()]);
    let inputs = room_of_queries(axes, axes.batch, 2) + cache;
    (inputs, room_of_outputs(axes, axes.batch, v32::KV_LORA_RANK))
}

/// Of the next token of each request.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (rows, heads, dtype) = (axes.batch, axes.heads, axes.dtype);
    let q = random(device, dtype, &[rows, heads, v32::D_QK], seed)?;
    let pages = context.div_ceil(v32::PAGE);
    let page = v32::PAGE * RECORD.bytes();
    let cache = device.upload(&latent_pages(pages, seed + 1), &[pages, page], DType::U8)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let gate = gate_case(KERNEL.name, &mut Rng::new(seed), axes)
        .with("cache", HostTensor::u8(&[2, page], latent_pages(2, seed)))
        .with("ks", vector(&[0, 7]))
        .with("ke", vector(&[90, 60]))
        .set("kv_lora_rank", v32::KV_LORA_RANK)
        .set("page_size", v32::PAGE);
    let inputs = [&q, &cache, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Decode,
        case: "fp8 records".to_string(),
        shape: sizes([("batch", rows), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * context * (v32::D_QK + v32::KV_LORA_RANK)) as u64,
        bytes: (rows
            * (heads * (v32::D_QK + v32::KV_LORA_RANK) * dtype.size() + context * RECORD.bytes()))
            as u64,
        gate,
        work: Box::new(move || {
            let kv = Kv::Records { cache: &cache, page_size: v32::PAGE, record: RECORD };
            Ok(named(mla(&q, &kv, &Keys::range(&ks, &ke), &args())?))
        }),
        timed: Timed {
            rows,
            heads,
            cost: context * (v32::D_QK + v32::KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, cache, ks, ke] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows_and_heads(q)?)
                    .with("cache", at.whole(cache)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("softmax_scale", v32::SOFTMAX_SCALE)
                    .set("kv_lora_rank", v32::KV_LORA_RANK)
                    .set("page_size", v32::PAGE);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
