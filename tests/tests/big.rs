//! Tensors of more than 2^32 elements: the caches of 64 requests of 128K tokens, which take few pages where memory is
//! given when it is touched (`sparse_memory.rs`), and on a GPU that holds them 40,000 x 131,072 logits.
//!
//! A row that is stored, or attended to, beyond 2^32 elements is held against the same row in a small tensor, which
//! other tests hold against the reference.

use crate::support::*;
use dsa_kernels::attention::{AttentionArgs, AttentionOut};
use dsa_kernels::cache_write::{KvRecord, store_index_keys, store_kv};
use dsa_kernels::copy::place_rows;
use dsa_kernels::dense_attention::dense_mla;
use dsa_kernels::indexer::{ScoreFn, indexer_logits, indexer_logits_paged};
use dsa_kernels::quant::{ScaleFmt, act_quant};
use dsa_kernels::sparse_attention::{sparse_mla, sparse_mla_paged};
use dsa_kernels::top_k::{Policy, shift_indices, top_k};
use dsa_kernels::{DType, Device, DeviceKind, KernelError, Tensor};
use dsa_reference as reference;
use dsa_tests::generate::Rng;
use dsa_tests::{HostTensor, Outputs};
use ndarray::{Array1, Array2, Array3};

/// Tokens of 64 requests of 128K, and how they are kept.
const TOKENS: usize = 64 << 17;
const PAGE: usize = 64;
const HEADS: usize = 16;
const RECORD: KvRecord = KvRecord { kv_lora_rank: 512, rope_dim: 64 };
const D_QK: usize = 576;
/// Where the tokens of these tests are stored: the first place, some around 2^32 elements, the last places.
const FAR: [usize; 6] = [0, 6_547_206, 7_456_540, 7_456_541, TOKENS - 2, TOKENS - 1];

/// A tensor of `shape`, or why this device cannot have it, on stderr.
fn room(device: &Device, shape: &[usize], dtype: DType) -> Option<Tensor> {
    let made = device.empty(shape, dtype);
    made.map_err(|error| eprintln!("not run on {}: {error}", device.name())).ok()
}

fn random(device: &Device, seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    device.upload_f32(&floats(seed, shape).to_f32(), shape, dtype).unwrap()
}

fn ints(device: &Device, values: &[usize], shape: &[usize]) -> Tensor {
    let values: Vec<i32> = values.iter().map(|v| *v as i32).collect();
    device.upload_i32(&values, shape).unwrap()
}

#[track_caller]
fn same_bits(far: &AttentionOut, near: &AttentionOut) {
    for (name, far, near) in [
        ("out", &far.out, &near.out),
        ("lse", &far.lse, &near.lse),
        ("max", &far.max_logits, &near.max_logits),
    ] {
        let near = near.download().unwrap();
        assert!(near.iter().any(|byte| *byte != 0), "{name} is all zeros");
        assert!(far.download().unwrap() == near, "{name}");
    }
}

fn args(d_v: usize) -> AttentionArgs {
    AttentionArgs { softmax_scale: 0.1, d_v, splits: Some(1), ..Default::default() }
}

#[test]
fn a_cache_of_five_thousand_million_elements_is_written_and_attended_to() {
    let device = device();
    let Some(kv) = room(&device, &[TOKENS, D_QK], DType::Bf16) else { return };
    let n = FAR.len();
    let rows = random(&device, 1, &[n, 1, D_QK], DType::Bf16);
    let whole = kv.reshape(&[TOKENS, 1, D_QK]).unwrap();
    place_rows(&rows, &ints(&device, &FAR, &[n]), &whole).unwrap();
    for (row, slot) in FAR.into_iter().enumerate() {
        let of = |tensor: &Tensor, at| tensor.narrow(0, at, 1).unwrap().download().unwrap();
        assert!(of(&kv, slot) == of(&rows, row), "row {row} in slot {slot}");
    }

    let near = rows.reshape(&[n, D_QK]).unwrap();
    let q = random(&device, 2, &[2, HEADS, D_QK], DType::Bf16);
    let lists = |slots: &[usize]| ints(&device, &[slots, slots].concat(), &[2, n]);
    let of = |kv: &Tensor, slots: &[usize]| sparse_mla(&q, kv, &lists(slots), &args(512)).unwrap();
    let all: Vec<usize> = (0..n).collect();
    same_bits(&of(&kv, &FAR), &of(&near, &all));

    let range = |kv: &Tensor, from: usize, to: usize| {
        let (ks, ke) = (ints(&device, &[from; 2], &[2]), ints(&device, &[to; 2], &[2]));
        dense_mla(&q, kv, &ks, &ke, &args(512)).unwrap()
    };
    same_bits(&range(&kv, TOKENS - 2, TOKENS), &range(&near, n - 2, n));
}

#[test]
fn a_cache_of_five_thousand_million_bytes_of_records_is_written_and_attended_to() {
    let device = device();
    let shape = [TOKENS / PAGE, PAGE * RECORD.bytes()];
    let Some(far) = room(&device, &shape, DType::U8) else { return };
    let n = FAR.len();
    let near = device.empty(&[1, n * RECORD.bytes()], DType::U8).unwrap();
    let (c, k_pe) =
        (random(&device, 3, &[n, 512], DType::Bf16), random(&device, 4, &[n, 64], DType::Bf16));
    let all: Vec<usize> = (0..n).collect();
    for (cache, slots, page) in [(&far, &FAR[..], PAGE), (&near, &all[..], n)] {
        store_kv(&c, &k_pe, &ints(&device, slots, &[n]), cache, page).unwrap();
    }
    let q = random(&device, 5, &[2, HEADS, D_QK], DType::Bf16);
    let of = |cache: &Tensor, slots: &[usize], page| {
        let lists = ints(&device, &[slots, slots].concat(), &[2, n]);
        sparse_mla_paged(&q, cache, page, RECORD, &lists, &args(512)).unwrap()
    };
    // Pages of another size leave the records where they are.
    same_bits(&of(&far, &FAR, PAGE), &of(&near, &all, n));
}

#[test]
fn index_keys_beyond_two_to_the_32_bytes_are_written_and_scored() {
    let device = device();
    // Pages of keys with gaps behind them: the keys of 64 requests alone are 1.1 GB.
    let (dim, pages) = (128, TOKENS / PAGE);
    let Some(wide) = room(&device, &[pages, PAGE * 656], DType::U8) else { return };
    let far = wide.narrow(1, 0, PAGE * (dim + 4)).unwrap();
    let near = device.empty(&[2, PAGE * (dim + 4)], DType::U8).unwrap();
    let keys = act_quant(&random(&device, 6, &[2 * PAGE, dim], DType::Bf16), ScaleFmt::Ue8m0);
    let keys = keys.unwrap();
    let q = device.upload(&[0x38; 4 * 128], &[1, 1, 4, dim], DType::E4m3).unwrap();
    let weights = random(&device, 7, &[1, 4], DType::F32);
    let of = |cache: &Tensor, pages: [usize; 2]| {
        let slots: Vec<usize> =
            pages.iter().flat_map(|page| (0..PAGE).map(move |i| page * PAGE + i)).collect();
        store_index_keys(&keys, &ints(&device, &slots, &[2 * PAGE]), cache, PAGE).unwrap();
        let (lens, table) = (ints(&device, &[2 * PAGE], &[1]), ints(&device, &pages, &[1, 2]));
        let score = ScoreFn::default();
        let n = 2 * PAGE;
        let logits = indexer_logits_paged(&q, cache, PAGE, &weights, &lens, &table, n, score);
        logits.unwrap().download_f32().unwrap()
    };
    let expected = of(&near, [0, 1]);
    assert!(expected.iter().all(|logit| logit.is_finite()));
    assert!(expected.iter().any(|logit| *logit != 0.0));
    // The second page ends beyond 2^32 bytes, and so does the first.
    assert_eq!(of(&far, [pages - 1, 110_000]), expected);
}

/// Bytes of finite e4m3 codes, drawn cheaply: millions are needed.
fn codes(seed: u64, n: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let bytes = (0..n.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes());
    bytes.map(|byte| (byte & 0x9f) | 0x20).take(n).collect()
}

#[test]
fn forty_thousand_rows_of_128k_logits_are_scored_and_selected_from() {
    const S: usize = 40_000;
    const S_KV: usize = 131_072;
    const TOPK: usize = 2048;
    let (heads, dim, page) = (4, 64, PAGE);
    let device = device();
    if device.kind() == DeviceKind::Cpu {
        eprintln!("not run on {}: a GPU with 100 GB scores these rows in a second", device.name());
        return;
    }
    if room(&device, &[S, S_KV], DType::F32).is_none() {
        return;
    }
    let (q_codes, k_codes) = (codes(1, S * heads * dim), codes(2, S_KV * dim));
    let (w, scales) = (floats(3, &[S, heads]), floats(4, &[S_KV]));
    let q = device.upload(&q_codes, &[S, heads, dim], DType::E4m3).unwrap();
    let weights = device.upload(&w.bytes, &[S, heads], DType::F32).unwrap();
    // The row that 2^32 elements end in is 32,768.
    let rows = [0, 1, 32_767, 32_768, 32_769, S - 1];
    let k_values = DType::E4m3.decode(&k_codes);
    let k_values = Array2::from_shape_vec((S_KV, dim), k_values).unwrap();
    let k_scale = Array1::from_vec(scales.to_f32());
    let expected: Vec<Vec<f32>> = rows
        .iter()
        .map(|row| {
            let of = |bytes: &[u8], n: usize| bytes[row * n..(row + 1) * n].to_vec();
            let q_row = DType::E4m3.decode(&of(&q_codes, heads * dim));
            let q_row = Array3::from_shape_vec((1, heads, dim), q_row).unwrap();
            let w_row = w.to_f32()[row * heads..(row + 1) * heads].to_vec();
            let w_row = Array2::from_shape_vec((1, heads), w_row).unwrap();
            let score = reference::indexer::ScoreFn::ReluWeighted;
            let ends = [S_KV as i32];
            let logits = reference::indexer::indexer_logits(
                q_row.view(),
                k_values.view(),
                k_scale.view(),
                w_row.view(),
                &[0],
                &ends,
                score,
            );
            logits.unwrap().into_iter().collect()
        })
        .collect();

    let check = |logits: &Tensor, kernel: &str| {
        for (row, expected) in rows.iter().zip(&expected) {
            let got = logits.narrow(0, *row, 1).unwrap().download().unwrap();
            let of = |bytes| HostTensor { dtype: DType::F32, shape: vec![1, S_KV], bytes };
            let expected =
                Outputs::from([("logits", HostTensor::new(DType::F32, &[1, S_KV], expected))]);
            println!("{kernel}, row {row}");
            same(kernel, &Outputs::from([("logits", of(got))]), &expected);
        }
    };
    let (starts, ends) = (ints(&device, &vec![0; S], &[S]), ints(&device, &vec![S_KV; S], &[S]));
    {
        let k = device.upload(&k_codes, &[S_KV, dim], DType::E4m3).unwrap();
        let k_scale = device.upload(&scales.bytes, &[S_KV], DType::F32).unwrap();
        let score = ScoreFn::default();
        let logits = indexer_logits(&q, &k, &k_scale, &weights, &starts, &ends, score).unwrap();
        check(&logits, "indexer_logits");
        let indices = top_k(&logits, &starts, &ends, TOPK, Policy::Fixed).unwrap();
        for row in rows {
            let of = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
            let values = Array2::from_shape_vec((1, S_KV), of(&logits).download_f32().unwrap());
            let policy = reference::top_k::Policy::Fixed;
            let best =
                reference::top_k::top_k(values.unwrap().view(), &[0], &[S_KV as i32], TOPK, policy);
            let got = of(&indices).download_i32().unwrap();
            assert!(best.iter().eq(&got), "row {row} of top_k");
        }
    }
    {
        let pages = S_KV / page;
        let mut cache = Vec::with_capacity(S_KV * (dim + 4));
        for page_codes in 0..pages {
            let tokens = page_codes * page..(page_codes + 1) * page;
            cache.extend_from_slice(&k_codes[tokens.start * dim..tokens.end * dim]);
            cache.extend_from_slice(&scales.bytes[4 * tokens.start..4 * tokens.end]);
        }
        let cache = device.upload(&cache, &[pages, page * (dim + 4)], DType::U8).unwrap();
        let table: Vec<i32> = (0..S).flat_map(|_| 0..pages as i32).collect();
        let table = device.upload_i32(&table, &[S, pages]).unwrap();
        let q = q.reshape(&[S, 1, heads, dim]).unwrap();
        let score = ScoreFn::default();
        let logits = indexer_logits_paged(&q, &cache, page, &weights, &ends, &table, S_KV, score);
        check(&logits.unwrap(), "indexer_logits_paged");
    }
    // 5,000 lists of 2^20 entries of which 100 exist: the outputs are what is large.
    let (n, length, topk) = (5_000, 100, 1 << 20);
    let logits = random(&device, 5, &[n, length], DType::F32);
    let (starts, ends) = (ints(&device, &vec![0; n], &[n]), ints(&device, &vec![length; n], &[n]));
    let indices = top_k(&logits, &starts, &ends, topk, Policy::Fixed).unwrap();
    let first: Vec<usize> = (0..n).map(|t| 1000 * t).collect();
    let shifted = shift_indices(&indices, &ints(&device, &first, &[n])).unwrap();
    for row in [0, 4095, 4096, n - 1] {
        let of = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap().download_i32().unwrap();
        let list = |from: usize| {
            let entry = |j| if j < length { (from + j) as i32 } else { -1 };
            (0..topk).map(entry).collect::<Vec<_>>()
        };
        assert!(of(&indices) == list(0), "row {row} of top_k");
        assert!(of(&shifted) == list(first[row]), "row {row} of shift_indices");
    }
}

/// The refusal of a tensor that is never made.
#[track_caller]
fn refused<T>(result: Result<T, KernelError>, tensor: &str, expected: &str) {
    let Err(error) = result else { panic!("{tensor} was made") };
    let message = error.to_string();
    assert!(message.starts_with(&format!("{tensor} has shape [")), "{message}");
    assert!(message.contains(expected), "{message}");
}

#[test]
fn outputs_that_no_device_holds_are_refused_before_anything_is_allocated() {
    let device = &device();
    let of = |shape: &[usize], dtype| device.empty(shape, dtype).unwrap();
    let (many, memory, rows) =
        (1 << 20, "bytes, what the device allocates", "fewer than 2^31 rows");

    let (x, w) = (of(&[1, many, 1], DType::F32), of(&[1, many, 1], DType::F32));
    refused(dsa_kernels::gemm::gemm(&x, &w, DType::F32), "out", memory);

    let (q, k) = (of(&[many, 1, 1], DType::E4m3), of(&[many, 1], DType::E4m3));
    let (scale, weights) = (of(&[many], DType::F32), of(&[many, 1], DType::F32));
    let range = of(&[many], DType::I32);
    let score = ScoreFn::default();
    let logits = indexer_logits(&q, &k, &scale, &weights, &range, &range, score);
    refused(logits, "logits", memory);
    let (cache, table) = (of(&[1, 5 * many], DType::U8), of(&[many, 1], DType::I32));
    let q = q.reshape(&[many, 1, 1, 1]).unwrap();
    let logits = indexer_logits_paged(&q, &cache, many, &weights, &range, &table, many, score);
    refused(logits, "logits", memory);

    let logits = of(&[many, 1], DType::F32);
    refused(top_k(&logits, &range, &range, many, Policy::Fixed), "indices", memory);

    // The parts of a split attention are outputs, too.
    let (q, kv) = (of(&[1 << 17, 128, 1], DType::F32), of(&[1, 1], DType::F32));
    let lists = of(&[1 << 17, 1], DType::I32);
    let args = AttentionArgs { splits: Some(1024), ..args(1) };
    refused(sparse_mla(&q, &kv, &lists, &args), "out", rows);
}

#[test]
fn what_an_i32_does_not_number_is_refused_wherever_it_comes_from() {
    let device = &device();
    let made = |shape: &[usize]| device.empty(shape, DType::U8);
    let expected = "fewer than 2^31 rows of fewer than 2^31 elements";
    for shape in [
        &[1 << 31, 1][..],
        &[1, 1 << 31],
        &[1 << 16, 1 << 15, 1],
        &[usize::MAX, usize::MAX],
        &[2, usize::MAX],
    ] {
        refused(made(shape), "tensor", expected);
    }
    // A view that repeats its one row has as many rows as it says.
    let row = device.empty(&[1, 8], DType::F32).unwrap();
    let repeated = row.broadcast(0, 1 << 31).unwrap();
    refused(act_quant(&repeated, ScaleFmt::Plain), "x", expected);
    // Slots of pages are rows, too.
    let page = device.empty(&[1, 1 << 20], DType::U8).unwrap();
    let pages = page.broadcast(0, 1 << 12).unwrap();
    let (c, k_pe) =
        (device.empty(&[1, 1], DType::F32).unwrap(), device.empty(&[1, 0], DType::F32).unwrap());
    let slots = device.empty(&[1], DType::I32).unwrap();
    let narrow = pages.narrow(1, 0, 5 << 17).unwrap();
    assert!(store_kv(&c, &k_pe, &slots, &narrow, 1 << 17).is_ok());
    let pages = page.broadcast(0, 1 << 14).unwrap().narrow(1, 0, 5 << 17).unwrap();
    refused(store_kv(&c, &k_pe, &slots, &pages, 1 << 17), "cache", "fewer than 2^31 slots");
}
