//! Index keys to their fp8 cache, quantised on the way.

use super::store_kv::{empty_cache, in_pages, tokens_of};
use super::*;
use dsa_kernels::cache_write::{self, STORE_INDEX_KEYS, store_index_keys};
use dsa_kernels::quant::{self, ScaleFmt, act_quant};

pub(super) const KERNEL: Kernel = Kernel {
    name: STORE_INDEX_KEYS.name,
    // A case holds the keys; the launcher takes what act_quant makes of them.
    contract: Contract {
        name: "store_index_keys, of keys",
        tensors: &[
            "k: [n, D] f32|bf16|f16, rows",
            STORE_INDEX_KEYS.tensors[2],
            STORE_INDEX_KEYS.tensors[3],
        ],
        ..STORE_INDEX_KEYS
    },
    file: "cache_write.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "n * D",
    tolerance: tolerance::exact,
    machine: cache_write::machine,
    launch: run,
    compute: reference,
    reference: ("index_cache_pages", "reference/src/cache_write/index_cache.rs"),
    forms,
    paths: Paths {
        all: |_| paths::FLOATS.to_vec(),
        of: |case, _| vec![paths::type_of(case, "k")],
        first: "k",
    },
    production: || {
        let k = zeros(DType::Bf16, &[v32::FEW, v32::INDEX_DIM]);
        let cache = pages(1, v32::INDEX_DIM + 4);
        vec![case(k, ints(&[v32::FEW]), cache).set("page_size", v32::PAGE)]
    },
    sample: || {
        let cache = zeros(DType::U8, &[2, 3 * (32 + 4)]);
        case(floats(1, &[5, 32]), vector(&[4, 0, -1, 5, 2]), cache).set("page_size", 3)
    },
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case(k: HostTensor, slots: HostTensor, cache: HostTensor) -> Case {
    Case::new(KERNEL.name).with("k", k).with("slots", slots).with("cache", cache)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let k = case.upload(device, "k")?;
    let keys = act_quant(&k, ScaleFmt::Ue8m0)?;
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    store_index_keys(&keys, &slots, &cache, case.scalar("page_size")?)?;
    only("cache", &cache)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let k: Matrix = case.array("k")?;
    let fmt = reference::quant::ScaleFmt::Ue8m0;
    let q = reference::quant::act_quant(k.view(), quant::BLOCK, fmt)?;
    let (dim, page_size): (usize, usize) = (k.ncols(), case.scalar("page_size")?);
    let mut cache = case.tensor("cache")?.clone();
    let n_slots = cache.shape[0] * page_size;
    for (row, slot) in case.vec_i32("slots")?.into_iter().enumerate() {
        let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < n_slots) else {
            continue;
        };
        let page = slot / page_size * page_size * (dim + 4);
        for i in 0..dim {
            cache.bytes[page + slot % page_size * dim + i] = q.codes[(row, i)];
        }
        let at = page + page_size * dim + slot % page_size * 4;
        cache.bytes[at..at + 4].copy_from_slice(&q.scale[(row, 0)].to_le_bytes());
    }
    Ok(outputs([("cache", cache)]))
}

fn forms() -> Forms {
    let random = (0usize..9, 1usize..129, 1usize..4, 1usize..70, float());
    let production =
        |_: Model| (1usize..9, Exactly(v32::INDEX_DIM), 1usize..3, Exactly(v32::PAGE), float());
    type StoreIndexKeys = (usize, usize, usize, usize, DType);
    Forms::new(random, production, |(n, dim, pages, page_size, dtype): &StoreIndexKeys, rng| {
        let page_bytes = page_size * (dim + 4);
        let fill = rng.choose(&[Fill::Normal, Fill::Extreme]);
        Case::new(KERNEL.name)
            .with("k", tensor(rng, *dtype, &[*n, *dim], fill))
            .with("slots", slots(rng, *n, pages * page_size))
            .with("cache", HostTensor::u8(&[*pages, page_bytes], vec![0x5a; pages * page_bytes]))
            .set("page_size", page_size)
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    let (n, dtype) = (axes.s_q, axes.dtype);
    let k = random(device, dtype, &[n, v32::INDEX_DIM], seed)?;
    let keys = act_quant(&k, ScaleFmt::Ue8m0)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let cache = empty_cache(device, n, v32::INDEX_DIM + 4)?;
    let bytes = 3 * (v32::INDEX_DIM + 4);
    let gate = Case::new(KERNEL.name)
        .with("k", tensor(rng, dtype, &[2, v32::INDEX_DIM], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("cache", HostTensor::u8(&[1, bytes], vec![0; bytes]))
        .set("page_size", 3);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n)]),
        dtype: DType::E4m3.to_string(),
        flop: 0,
        bytes: (2 * n * (v32::INDEX_DIM + 4)) as u64,
        gate,
        work: Box::new(move || {
            store_index_keys(&keys, &slots, &cache, v32::PAGE)?;
            Ok(one("cache", cache.clone()))
        }),
        timed: Timed {
            rows: n.div_ceil(v32::PAGE),
            heads: 1,
            cost: v32::PAGE * v32::INDEX_DIM,
            cut: Box::new(move |at, out| {
                in_pages(Case::new(KERNEL.name).with("k", tokens_of(at, &k)?), at, n, out)
            }),
        },
    })
}
