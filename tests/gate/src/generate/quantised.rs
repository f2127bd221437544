//! Forms and inputs of quantisation and of what writes the fp8 caches.

use super::form::{Exactly, Forms, INDEX_DIM, KV_LORA_RANK, Model, PAGE, ROPE_DIM};
use super::{ALL, Fill, float, gap, slots, tensor};
use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_reference::cache_write::KvRecord;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct ActQuant {
    rows: usize,
    cols: usize,
    dtype: DType,
    fmt: &'static str,
    strided: &'static str,
}

pub(super) fn act_quant(kernel: &'static str) -> Forms {
    let form = |(rows, cols, dtype, fmt, strided)| ActQuant { rows, cols, dtype, fmt, strided };
    let fmt = || proptest::sample::select(&["plain", "ue8m0"][..]);
    let random = (0usize..5, 1usize..300, float(), fmt(), gap()).prop_map(form);
    let production = move |model: Model| {
        let cols = if kernel == "round_trip" { KV_LORA_RANK } else { model.hidden() };
        (1usize..4, Exactly(cols), float(), fmt(), gap()).prop_map(form)
    };
    Forms::new(random, production, move |form: &ActQuant, rng| {
        const FILLS: [Fill; 7] = [
            Fill::Normal,
            Fill::Ties,
            Fill::Zeros,
            Fill::Wide,
            Fill::Outliers,
            Fill::Extreme,
            Fill::Extreme,
        ];
        let shape = [form.rows, form.cols];
        let fill = rng.choose(&FILLS);
        let mut x = tensor(rng, DType::F32, &shape, fill).to_f32();
        // The scale's own steps: powers of two times 448, and their neighbours.
        for v in x.iter_mut() {
            if rng.one_in(30) {
                *v = f32::from_bits((448.0 * 2f32.powi(rng.below(9) as i32 - 6)).to_bits() + 1);
            }
            if rng.one_in(200) {
                *v = f32::NAN;
            }
        }
        Case::new(kernel)
            .with("x", HostTensor::new(form.dtype, &shape, &x))
            .set("fmt", form.fmt)
            .set("strided", form.strided)
    })
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

pub(super) fn store_kv() -> Forms {
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
        let (rank, half_rope) = (Exactly(KV_LORA_RANK), Exactly(ROPE_DIM / 2));
        (1usize..9, rank, half_rope, 1usize..3, Exactly(PAGE), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &StoreKv, rng| {
        let (n, rank, rope_dim, pages) = (form.n, form.rank, 2 * form.half_rope, form.pages);
        let record = KvRecord { kv_lora_rank: rank, rope_dim };
        let page_bytes = form.page_size * record.bytes();
        let fill = rng.choose(&ALL);
        let of_rope = if fill == Fill::Extreme { fill } else { Fill::Normal };
        Case::new("store_kv")
            .with("c", tensor(rng, form.dtype, &[n, rank], fill))
            .with("k_pe", tensor(rng, form.dtype, &[n, rope_dim], of_rope))
            .with("slots", slots(rng, n, pages * form.page_size))
            .with("cache", HostTensor::u8(&[pages, page_bytes], vec![0xa5; pages * page_bytes]))
            .set("page_size", form.page_size)
            .set("strided", if rope_dim > 0 { form.strided } else { "false" })
    })
}

pub(super) fn store_index_keys() -> Forms {
    let random = (0usize..9, 1usize..129, 1usize..4, 1usize..70, float());
    let production = |_: Model| (1usize..9, Exactly(INDEX_DIM), 1usize..3, Exactly(PAGE), float());
    type StoreIndexKeys = (usize, usize, usize, usize, DType);
    Forms::new(random, production, |(n, dim, pages, page_size, dtype): &StoreIndexKeys, rng| {
        let page_bytes = page_size * (dim + 4);
        let fill = rng.choose(&[Fill::Normal, Fill::Extreme]);
        Case::new("store_index_keys")
            .with("k", tensor(rng, *dtype, &[*n, *dim], fill))
            .with("slots", slots(rng, *n, pages * page_size))
            .with("cache", HostTensor::u8(&[*pages, page_bytes], vec![0x5a; pages * page_bytes]))
            .set("page_size", page_size)
    })
}
