//! Latents to the fp8 cache.

use super::*;
use dsa_kernels::cache_write::{self, KvRecord, store_kv};
use dsa_reference::cache_write as expected;
use half::bf16;

pub(super) const KERNEL: Kernel = Kernel {
    name: cache_write::STORE_KV.name,
    contract: cache_write::STORE_KV,
    file: "cache_write.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * (kv_lora_rank + rope_dim)",
    tolerance: tolerance::exact,
    machine: cache_write::machine,
    launch: run,
    compute: reference,
    reference: ("quantise_kv", "reference/src/cache_write/kv_cache.rs"),
    forms,
    paths: Paths {
        all: |_| paths::FLOATS.to_vec(),
        of: |case, _| vec![paths::type_of(case, "c")],
        first: "c",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

/// V3.2's token of the fp8 cache.
const RECORD: KvRecord = KvRecord { kv_lora_rank: v32::KV_LORA_RANK, rope_dim: v32::ROPE_DIM };

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe) = (case.upload_rows(device, "c")?, case.upload_rows(device, "k_pe")?);
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    store_kv(&c, &k_pe, &slots, &cache, case.scalar("page_size")?)?;
    let record = KvRecord { kv_lora_rank: c.shape()[1], rope_dim: k_pe.shape()[1] };
    let mut out = HostTensor::download(&cache)?;
    one_nan(&mut out, &case.vec_i32("slots")?, record);
    Ok(outputs([("cache", out)]))
}

/// Makes one of bf16's NaNs of each in the records written to `slots`: which it is, is the device's own.
fn one_nan(cache: &mut HostTensor, slots: &[i32], record: KvRecord) {
    for slot in slots {
        let Ok(slot) = usize::try_from(*slot) else { continue };
        let end = (slot + 1) * record.bytes();
        let Some(rope) = cache.bytes.get_mut(end - 2 * record.rope_dim..end) else { continue };
        for value in rope.as_chunks_mut::<2>().0 {
            if bf16::from_le_bytes(*value).is_nan() {
                *value = bf16::NAN.to_le_bytes();
            }
        }
    }
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe): (Matrix, Matrix) = (case.array("c")?, case.array("k_pe")?);
    let record = expected::KvRecord { kv_lora_rank: c.ncols(), rope_dim: k_pe.ncols() };
    let records = record.quantise_kv(c.view(), k_pe.view());
    let mut cache = case.tensor("cache")?.clone();
    let bytes = record.bytes();
    for (row, slot) in records.axis_iter(Axis(0)).zip(case.vec_i32("slots")?) {
        let at = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(bytes);
        if at < cache.bytes.len() {
            for (i, byte) in row.iter().enumerate() {
                cache.bytes[at + i] = *byte;
            }
        }
    }
    let written = KvRecord { kv_lora_rank: record.kv_lora_rank, rope_dim: record.rope_dim };
    one_nan(&mut cache, &case.vec_i32("slots")?, written);
    Ok(outputs([("cache", cache)]))
}

#[derive(Clone, Debug)]
struct StoreKv {
    n: usize,
    rank: usize,
    half_rope: usize,
    pages: usize,
    page_size: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, rank, half_rope, pages, page_size, dtype, strided)| StoreKv {
        n,
        rank,
        half_rope,
        pages,
        page_size,
        dtype,
        strided,
    };
    let random =
        (0usize..9, 1usize..200, 0usize..20, 1usize..4, 1usize..70, float(), gap()).prop_map(form);
    let production = move |_: Model| {
        let (rank, half_rope) = (Exactly(v32::KV_LORA_RANK), Exactly(v32::ROPE_DIM / 2));
        (1usize..9, rank, half_rope, 1usize..3, Exactly(v32::PAGE), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &StoreKv, rng| {
        let (n, rank, rope_dim, pages) = (form.n, form.rank, 2 * form.half_rope, form.pages);
        let record = KvRecord { kv_lora_rank: rank, rope_dim };
        let page_bytes = form.page_size * record.bytes();
        let fill = rng.choose(&ALL_FILLS);
        let of_rope = if fill == Fill::Extreme { fill } else { Fill::Normal };
        Case::new(KERNEL.name)
            .with("c", tensor(rng, form.dtype, &[n, rank], fill))
            .with("k_pe", tensor(rng, form.dtype, &[n, rope_dim], of_rope))
            .with("slots", slots(rng, n, pages * form.page_size))
            .with("cache", HostTensor::u8(&[pages, page_bytes], vec![0xa5; pages * page_bytes]))
            .set("page_size", form.page_size)
            .set("strided", if rope_dim > 0 { form.strided } else { "false" })
    })
}

fn production() -> Vec<Case> {
    vec![
        Case::new(KERNEL.name)
            .with("c", zeros(DType::Bf16, &[v32::FEW, v32::KV_LORA_RANK]))
            .with("k_pe", zeros(DType::Bf16, &[v32::FEW, v32::ROPE_DIM]))
            .with("slots", ints(&[v32::FEW]))
            .with("cache", pages(1, RECORD.bytes()))
            .set("page_size", v32::PAGE),
    ]
}

fn sample() -> Case {
    let record = KvRecord { kv_lora_rank: 16, rope_dim: 8 };
    Case::new(KERNEL.name)
        .with("c", floats(1, &[5, record.kv_lora_rank]))
        .with("k_pe", floats(2, &[5, record.rope_dim]))
        .with("slots", vector(&[4, 0, -1, 5, 2]))
        .with("cache", zeros(DType::U8, &[2, 3 * record.bytes()]))
        .set("page_size", 3)
}

/// The tokens that a drawn page holds, of `n` in all: of one timing whole pages are judged.
pub(super) fn tokens(page: usize, n: usize) -> (usize, usize) {
    (page * v32::PAGE, v32::PAGE.min(n - page * v32::PAGE))
}

/// The drawn pages' tokens of `x` `[n, width]`.
pub(super) fn tokens_of(at: &Drawn, x: &Tensor) -> Result<HostTensor, CaseError> {
    let (mut bytes, mut rows) = (Vec::new(), 0);
    for page in &at.rows {
        let (first, count) = tokens(*page, x.shape()[0]);
        bytes.extend(at.whole(&x.narrow(0, first, count)?)?.bytes);
        rows += count;
    }
    Ok(HostTensor { dtype: x.dtype(), shape: vec![rows, x.shape()[1]], bytes })
}

/// A case of the drawn pages: their tokens' slots in a cache of as many pages, empty as the timed one was.
pub(super) fn in_pages(
    case: Case,
    at: &Drawn,
    n: usize,
    out: &Named,
) -> Result<(Case, Outputs), CaseError> {
    let got = at.outputs(out)?;
    let slots: Vec<i32> = at
        .rows
        .iter()
        .enumerate()
        .flat_map(|(i, page)| {
            (0..tokens(*page, n).1).map(move |token| (i * v32::PAGE + token) as i32)
        })
        .collect();
    let mut case = case.with("slots", HostTensor::i32(&[slots.len()], &slots));
    if let Some(cache) = got.get("cache") {
        case = case.with("cache", HostTensor::u8(&cache.shape, vec![0; cache.bytes.len()]));
    }
    Ok((case.set("page_size", v32::PAGE), got))
}

/// A cache without tokens, of pages for `n` of `record` bytes.
pub(super) fn empty_cache(device: &Device, n: usize, record: usize) -> dsa_kernels::Result<Tensor> {
    let shape = [n.div_ceil(v32::PAGE), v32::PAGE * record];
    device.upload(&vec![0; shape[0] * shape[1]], &shape, DType::U8)
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    let (n, dtype) = (axes.s_q, axes.dtype);
    let c = random(device, dtype, &[n, v32::KV_LORA_RANK], seed)?;
    let k_pe = random(device, dtype, &[n, v32::ROPE_DIM], seed + 1)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let cache = empty_cache(device, n, RECORD.bytes())?;
    let gate = Case::new(KERNEL.name)
        .with("c", tensor(rng, dtype, &[2, v32::KV_LORA_RANK], Fill::Normal))
        .with("k_pe", tensor(rng, dtype, &[2, v32::ROPE_DIM], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("cache", HostTensor::u8(&[1, 3 * RECORD.bytes()], vec![0; 3 * RECORD.bytes()]))
        .set("page_size", 3);
    let inputs = [c.clone(), k_pe.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n)]),
        dtype: dtype.to_string(),
        flop: (3 * n * v32::KV_LORA_RANK) as u64,
        bytes: (n * (v32::D_QK * dtype.size() + RECORD.bytes())) as u64,
        gate,
        work: Box::new(move || {
            store_kv(&c, &k_pe, &slots, &cache, v32::PAGE)?;
            Ok(one("cache", cache.clone()))
        }),
        timed: Timed {
            rows: n.div_ceil(v32::PAGE),
            heads: 1,
            cost: v32::PAGE * v32::D_QK,
            cut: Box::new(move |at, out| {
                let [c, k_pe] = &inputs;
                let case = Case::new(KERNEL.name).with("c", tokens_of(at, c)?);
                in_pages(case.with("k_pe", tokens_of(at, k_pe)?), at, n, out)
            }),
        },
    })
}
