//! What writes tokens to their places.

use super::{D_QK, INDEX_DIM, KV_LORA_RANK, PAGE, QK_HEAD, RECORD, ROPE, one, shape, vec_i32};
use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use crate::timed::{Drawn, Named, Timed};
use dsa_figures::Stage;
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::{Case, CaseError, HostTensor, Outputs};
use dsa_kernels::cache_write::{store_index_keys, store_kv};
use dsa_kernels::copy::place_rows;
use dsa_kernels::quant::{ScaleFmt, act_quant};
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device, Result, Tensor};

/// All of them.
pub fn all(device: &Device, axes: &Axes, seed: u64) -> Result<Vec<Spec>> {
    let rng = &mut Rng::new(seed + 10);
    Ok(vec![
        store_kv_spec(device, axes, rng, seed)?,
        store_index_keys_spec(device, axes, rng, seed)?,
        place_rows_spec(device, axes, rng, seed)?,
    ])
}

/// The tokens that a drawn page holds, of `n` in all: of one timing whole pages are judged.
fn tokens(page: usize, n: usize) -> (usize, usize) {
    (page * PAGE, PAGE.min(n - page * PAGE))
}

/// The drawn pages' tokens of `x` `[n, width]`.
fn tokens_of(at: &Drawn, x: &Tensor) -> std::result::Result<HostTensor, CaseError> {
    let (mut bytes, mut rows) = (Vec::new(), 0);
    for page in &at.rows {
        let (first, count) = tokens(*page, x.shape()[0]);
        bytes.extend(at.whole(&x.narrow(0, first, count)?)?.bytes);
        rows += count;
    }
    Ok(HostTensor { dtype: x.dtype(), shape: vec![rows, x.shape()[1]], bytes })
}

/// A case of the drawn pages: their tokens' slots in a cache of as many pages, empty as the timed one was.
fn in_pages(
    case: Case,
    at: &Drawn,
    n: usize,
    out: &Named,
) -> std::result::Result<(Case, Outputs), CaseError> {
    let got = at.outputs(out)?;
    let slots: Vec<i32> = at
        .rows
        .iter()
        .enumerate()
        .flat_map(|(i, page)| (0..tokens(*page, n).1).map(move |token| (i * PAGE + token) as i32))
        .collect();
    let mut case = case.with("slots", HostTensor::i32(&[slots.len()], &slots));
    if let Some(cache) = got.get("cache") {
        case = case.with("cache", HostTensor::u8(&cache.shape, vec![0; cache.bytes.len()]));
    }
    Ok((case.set("page_size", PAGE), got))
}

/// A cache without tokens, of pages for `n` of `record` bytes.
fn empty_cache(device: &Device, n: usize, record: usize) -> Result<Tensor> {
    let shape = [n.div_ceil(PAGE), PAGE * record];
    device.upload(&vec![0; shape[0] * shape[1]], &shape, DType::U8)
}

fn store_kv_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, dtype) = (axes.s_q, axes.dtype);
    let c = random(device, dtype, &[n, KV_LORA_RANK], seed)?;
    let k_pe = random(device, dtype, &[n, ROPE], seed + 1)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let cache = empty_cache(device, n, RECORD.bytes())?;
    let gate = Case::new("store_kv")
        .with("c", tensor(rng, dtype, &[2, KV_LORA_RANK], Fill::Normal))
        .with("k_pe", tensor(rng, dtype, &[2, ROPE], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("cache", HostTensor::u8(&[1, 3 * RECORD.bytes()], vec![0; 3 * RECORD.bytes()]))
        .set("page_size", 3);
    let inputs = [c.clone(), k_pe.clone()];
    Ok(Spec {
        kernel: "store_kv",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n)]),
        dtype: dtype.to_string(),
        flop: (3 * n * KV_LORA_RANK) as u64,
        bytes: (n * (D_QK * dtype.size() + RECORD.bytes())) as u64,
        gate,
        work: Box::new(move || {
            store_kv(&c, &k_pe, &slots, &cache, PAGE)?;
            Ok(one("cache", cache.clone()))
        }),
        timed: Timed {
            rows: n.div_ceil(PAGE),
            heads: 1,
            cost: PAGE * D_QK,
            cut: Box::new(move |at, out| {
                let [c, k_pe] = &inputs;
                let case = Case::new("store_kv").with("c", tokens_of(at, c)?);
                in_pages(case.with("k_pe", tokens_of(at, k_pe)?), at, n, out)
            }),
        },
    })
}

fn store_index_keys_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, dtype) = (axes.s_q, axes.dtype);
    let k = random(device, dtype, &[n, INDEX_DIM], seed)?;
    let keys = act_quant(&k, ScaleFmt::Ue8m0)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let cache = empty_cache(device, n, INDEX_DIM + 4)?;
    let bytes = 3 * (INDEX_DIM + 4);
    let gate = Case::new("store_index_keys")
        .with("k", tensor(rng, dtype, &[2, INDEX_DIM], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("cache", HostTensor::u8(&[1, bytes], vec![0; bytes]))
        .set("page_size", 3);
    Ok(Spec {
        kernel: "store_index_keys",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n)]),
        dtype: DType::E4m3.to_string(),
        flop: 0,
        bytes: (2 * n * (INDEX_DIM + 4)) as u64,
        gate,
        work: Box::new(move || {
            store_index_keys(&keys, &slots, &cache, PAGE)?;
            Ok(one("cache", cache.clone()))
        }),
        timed: Timed {
            rows: n.div_ceil(PAGE),
            heads: 1,
            cost: PAGE * INDEX_DIM,
            cut: Box::new(move |at, out| {
                in_pages(Case::new("store_index_keys").with("k", tokens_of(at, &k)?), at, n, out)
            }),
        },
    })
}

fn place_rows_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    // The expanded keys of a chunk, each token's to a place of its own, in reverse.
    let (n, heads, dtype) = (axes.s_q, axes.heads, axes.dtype);
    let x = random(device, dtype, &[n, heads, QK_HEAD], seed)?;
    let slots = vec_i32(device, &(0..n as i32).rev().collect::<Vec<_>>())?;
    let out = device.upload(&vec![0; x.len() * dtype.size()], x.shape(), dtype)?;
    let gate = Case::new("place_rows")
        .with("x", tensor(rng, dtype, &[2, heads, QK_HEAD], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("out", tensor(rng, dtype, &[3, heads, QK_HEAD], Fill::Normal));
    let inputs = [x.clone(), slots.clone()];
    Ok(Spec {
        kernel: "place_rows",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n), ("heads", heads), ("dim", QK_HEAD)]),
        dtype: dtype.to_string(),
        flop: 0,
        bytes: (2 * n * heads * QK_HEAD * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            place_rows(&x, &slots, &out)?;
            Ok(one("out", out.clone()))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: heads * QK_HEAD,
            cut: Box::new(move |at, out| {
                // Row i of the output is row n - 1 - i of x: the case is that of the drawn places.
                let [x, slots] = &inputs;
                let slots = at.whole(slots)?.to_i32();
                let from =
                    at.rows.iter().filter_map(|row| slots.iter().position(|s| *s == *row as i32));
                let from = Drawn { device: at.device, rows: from.collect(), heads: 0..1 };
                let x = from.rows(x)?;
                let places: Vec<i32> = (0..at.rows.len() as i32).collect();
                let got = at.outputs(out)?;
                let empty = HostTensor { bytes: vec![0; x.bytes.len()], ..x.clone() };
                let case = Case::new("place_rows").with("x", x).with("out", empty);
                Ok((case.with("slots", HostTensor::i32(&[places.len()], &places)), got))
            }),
        },
    })
}
