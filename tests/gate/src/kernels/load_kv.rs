//! Rows out of the fp8 cache.

use super::gemm::{OUTS, out_dtype};
use super::*;
use dsa_kernels::cache_read::{self, LOAD_KV};
use dsa_kernels::cache_write::KvRecord;

pub(super) const KERNEL: Kernel = Kernel {
    name: LOAD_KV.name,
    contract: LOAD_KV,
    file: "cache_read.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * (kv_lora_rank + rope_dim)",
    tolerance: tolerance::exact,
    machine: cache_read::machine,
    launch: run,
    compute: reference,
    reference: ("load_kv", "reference/src/cache_read.rs"),
    forms,
    paths: Paths {
        all: |_| paths::words(OUTS),
        of: |case, _| {
            let out = out_dtype(case).unwrap_or(DType::F32);
            OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path).collect()
        },
        first: "slots",
    },
    production: || {
        let pages = pages(2, RECORD.bytes());
        vec![case(pages, ints(&[v32::FEW]), v32::PAGE, RECORD, DType::Bf16)]
    },
    sample: || {
        let record = KvRecord { kv_lora_rank: 16, rope_dim: 4 };
        let bytes = records(&mut Rng::new(1), 6, record);
        let cache = HostTensor::u8(&[2, 3 * record.bytes()], bytes);
        case(cache, vector(&[4, -1, 0, 6, 2]), 3, record, DType::F32)
    },
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

/// V3.2's token of the fp8 cache.
const RECORD: KvRecord = KvRecord { kv_lora_rank: v32::KV_LORA_RANK, rope_dim: v32::ROPE_DIM };

fn case(
    cache: HostTensor,
    slots: HostTensor,
    page_size: usize,
    record: KvRecord,
    out: DType,
) -> Case {
    Case::new(KERNEL.name)
        .with("cache", cache)
        .with("slots", slots)
        .set("page_size", page_size)
        .set("kv_lora_rank", record.kv_lora_rank)
        .set("rope_dim", record.rope_dim)
        .set("out", out.name())
}

/// Bytes of `n` records: any codes, scales and rope parts, but that a scale's exponent keeps products in range.
fn records(rng: &mut Rng, n: usize, record: KvRecord) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..n * record.bytes()).map(|_| rng.below(256) as u8).collect();
    for record_bytes in bytes.chunks_mut(record.bytes().max(1)) {
        let blocks = record.kv_lora_rank.div_ceil(128);
        for block in 0..blocks {
            let scale = rng.normal().abs().max(1e-3);
            record_bytes[record.kv_lora_rank + 4 * block..][..4]
                .copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

fn record_of(case: &Case) -> Result<KvRecord, CaseError> {
    let (kv_lora_rank, rope_dim) = (case.scalar("kv_lora_rank")?, case.scalar("rope_dim")?);
    Ok(KvRecord { kv_lora_rank, rope_dim })
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (cache, slots) = (case.upload_rows(device, "cache")?, case.upload(device, "slots")?);
    let (page_size, record) = (case.scalar("page_size")?, record_of(case)?);
    only("out", &cache_read::load_kv(&cache, &slots, page_size, record, out_dtype(case)?)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let KvRecord { kv_lora_rank, rope_dim } = record_of(case)?;
    let record = reference::cache_write::KvRecord { kv_lora_rank, rope_dim };
    let cache = case.tensor("cache")?;
    let slots = cache.bytes.len() / record.bytes().max(1);
    let flat = HostTensor::u8(&[slots, record.bytes()], cache.bytes.clone());
    let records = Case::new("").with("records", flat).array_u8("records")?;
    let out = reference::cache_read::load_kv(records.view(), &case.vec_i32("slots")?, record);
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

#[derive(Clone, Debug)]
struct LoadKv {
    n: usize,
    record: KvRecord,
    pages: usize,
    page_size: usize,
    out: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, kv_lora_rank, rope_dim, pages, page_size, out, strided)| {
        let record = KvRecord { kv_lora_rank, rope_dim };
        LoadKv { n, record, pages, page_size, out, strided }
    };
    let random =
        (0usize..9, 1usize..200, 0usize..40, 1usize..4, 1usize..70, float(), gap()).prop_map(form);
    let production = move |_: Model| {
        let (rank, rope) = (Exactly(v32::KV_LORA_RANK), Exactly(v32::ROPE_DIM));
        (1usize..9, rank, rope, 1usize..3, Exactly(v32::PAGE), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &LoadKv, rng| {
        let (record, pages, page_size) = (form.record, form.pages, form.page_size);
        let slots = slots(rng, form.n, pages * page_size);
        let bytes = records(rng, pages * page_size, record);
        let cache = HostTensor::u8(&[pages, page_size * record.bytes()], bytes);
        case(cache, slots, page_size, record, form.out).set("strided", form.strided)
    })
}

/// Of the whole context of a request.
fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, dtype) = (axes.s_q, axes.dtype);
    let pages = n.div_ceil(v32::PAGE);
    let page = v32::PAGE * RECORD.bytes();
    let cache = device.upload(&latent_pages(pages, seed), &[pages, page], DType::U8)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let gate = HostTensor::u8(&[2, page], latent_pages(2, seed));
    let gate = case(gate, vector(&[70, 3, -1]), v32::PAGE, RECORD, dtype);
    let input = cache.reshape(&[pages * v32::PAGE, RECORD.bytes()])?;
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n)]),
        dtype: dtype.to_string(),
        flop: (n * v32::KV_LORA_RANK) as u64,
        bytes: (n * (v32::D_QK * dtype.size() + RECORD.bytes() + 4)) as u64,
        gate,
        work: Box::new(move || {
            let rows = cache_read::load_kv(&cache, &slots, v32::PAGE, RECORD, dtype)?;
            Ok(one("out", rows))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: v32::D_QK,
            cut: Box::new(move |at, out| {
                // Without pages: the drawn records one after the other.
                let cache = at.rows(&input)?;
                let slots: Vec<i32> = (0..at.rows.len() as i32).collect();
                Ok((case(cache, vector(&slots), 1, RECORD, dtype), at.outputs(out)?))
            }),
        },
    })
}
