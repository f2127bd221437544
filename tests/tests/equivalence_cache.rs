//! The same numbers in chunks and through the caches: prefill piece by piece, pages and flat rows, what one
//! kernel writes and another reads.

use crate::support::*;
use dsa_gate::{Case, HostTensor, Outputs};
use dsa_kernels::DType;
use dsa_reference::cache_write::{KvRecord, index_cache_pages};
use dsa_reference::quant::{ScaleFmt, act_quant};
use ndarray::{Array1, Array2};

/// `case` with some of its tensors cut to `range` of their rows.
fn cut(case: &Case, names: &[&str], range: std::ops::Range<usize>) -> Case {
    names.iter().fold(case.clone(), |cut, name| {
        let part = rows(&case.tensors[*name], range.clone());
        cut.with(name, part)
    })
}

#[test]
fn an_indexer_in_chunks_equals_the_whole() {
    let ranges: Vec<(i32, i32)> = (0..23).map(|t| (0, t + 1)).collect();
    let whole = indexer(5, 4, 23, &ranges);
    let chunks: Vec<Outputs> = [0..5, 5..10, 10..11, 11..23]
        .map(|chunk| run(&cut(&whole, &["q", "weights", "ks", "ke"], chunk)))
        .into();
    same("indexer_logits", &stack(&chunks), &run(&whole));
}

/// Each chunk sees a cache that ends with it, and within it column <= start + row.
#[test]
fn a_prefill_in_chunks_from_the_cache_equals_the_whole() {
    let n = 37;
    let ranges: Vec<(i32, i32)> = (0..n).map(|t| (0, t + 1)).collect();
    let mla = dense_mla(6, n as usize, &ranges);
    let mha = dense_mha(6, n as usize, &ranges);
    let (mut of_mla, mut of_mha) = (Vec::new(), Vec::new());
    for (start, end) in [(0, 9), (9, 10), (10, 30), (30, 37)] {
        let chunk = cut(&mla, &["q", "ks", "ke"], start..end);
        of_mla.push(run(&cut(&chunk, &["kv"], 0..end)));
        let chunk = cut(&mha, &["q", "ks", "ke"], start..end);
        of_mha.push(run(&cut(&chunk, &["k", "v"], 0..end)));
    }
    same("dense_mla", &stack(&of_mla), &run(&mla));
    same("dense_mha", &stack(&of_mha), &run(&mha));
}

#[test]
fn attention_from_the_fp8_cache_equals_attention_over_its_dequantised_rows() {
    let lists = [some_of(13, 60, 50), some_of(14, 60, 50)];
    let paged = sparse_paged(13, 6, 10, &lists);
    let records = paged.tensors["cache"].bytes.clone();
    let records = Array2::from_shape_vec((60, RECORD.bytes()), records).unwrap();
    let flat =
        sparse(13, 60, &lists).with("kv", HostTensor::of(&RECORD.dequantise_kv(records.view())));
    assert_eq!(flat.tensors["q"], paged.tensors["q"]);
    same("sparse_mla", &run(&paged), &run(&flat));
}

#[test]
fn attention_over_pages_of_elements_equals_attention_over_rows() {
    let case = sparse(15, 60, &[some_of(15, 60, 50)]);
    let mut pages = case.tensors["kv"].clone();
    for page_size in [1, 4, 15] {
        pages.shape = vec![60 / page_size, page_size, D_QK];
        assert_eq!(run(&case.clone().with("kv", pages.clone())), run(&case));
    }
}

#[test]
fn the_paged_indexer_equals_the_prefill_indexer_over_the_same_keys() {
    let (n, page_size) = (35usize, 7);
    let flat = indexer(16, 4, n, &[(0, 30)]);
    let codes = Array2::from_shape_vec((n, DIM), flat.tensors["k"].bytes.clone()).unwrap();
    let scale = Array1::from(flat.tensors["k_scale"].to_f32());
    let pages = index_cache_pages(codes.view(), scale.view(), page_size);
    // Key page j lies in page order[j] of the cache.
    let order = some_of(17, n / page_size, n / page_size);
    let mut cache = pages.clone();
    for (from, to) in order.iter().enumerate() {
        cache.row_mut(*to as usize).assign(&pages.row(from));
    }
    let mut q = flat.tensors["q"].clone();
    q.shape.insert(0, 1);
    let paged = indexer_paged(16, page_size, n / page_size, &[30])
        .with("q", q)
        .with("weights", flat.tensors["weights"].clone())
        .with("cache", HostTensor::u8(cache.shape(), cache.iter().copied().collect()))
        .with("block_table", HostTensor::i32(&[1, order.len()], &order));
    same("indexer_logits", &run(&paged), &run(&flat));
}

#[test]
fn what_store_kv_writes_sparse_attention_reads() {
    let (n, page_size) = (20, 8);
    let slots = some_of(18, 24, n);
    let cache = HostTensor::u8(
        &[3, page_size * RECORD.bytes()],
        vec![0xff; 3 * page_size * RECORD.bytes()],
    );
    let store = Case::new("store_kv")
        .with("c", floats(19, &[n, D_V]))
        .with("k_pe", floats(20, &[n, D_QK - D_V]))
        .with("slots", ints(&slots))
        .with("cache", cache)
        .set("page_size", page_size);
    let cache = holds(&store).remove("cache").unwrap();
    let case = sparse_paged(18, 3, page_size, std::slice::from_ref(&slots)).with("cache", cache);
    let got = holds(&case);
    // The same tokens without any cache: quantised and dequantised row by row.
    let (c, k_pe): (Array2<f32>, Array2<f32>) =
        (store.array("c").unwrap(), store.array("k_pe").unwrap());
    let kv = RECORD.dequantise_kv(RECORD.quantise_kv(c.view(), k_pe.view()).view());
    let all: Vec<i32> = (0..n as i32).collect();
    let flat = sparse(18, n, &[all]).with("kv", HostTensor::of(&kv));
    same("sparse_mla", &got, &expected(&flat));
}

#[test]
fn a_record_of_656_bytes_with_four_scales_is_written_and_read() {
    let record = KvRecord { kv_lora_rank: 512, rope_dim: 64 };
    assert_eq!(record.bytes(), 656);
    // Each block of 128 has a magnitude, hence a scale, of its own.
    let c: Vec<f32> = floats(23, &[3, 512]).to_f32();
    let c: Vec<f32> =
        c.iter().enumerate().map(|(i, v)| v * 10f32.powi((i % 512 / 128) as i32)).collect();
    let store = Case::new("store_kv")
        .with("c", f32s(&[3, 512], &c))
        .with("k_pe", floats(24, &[3, 64]))
        .with("slots", ints(&[2, 0, 3]))
        .with("cache", HostTensor::u8(&[2, 2 * 656], vec![0xff; 4 * 656]))
        .set("page_size", 2);
    let cache = holds(&store).remove("cache").unwrap();
    let case = Case::new("sparse_mla_paged")
        .with("q", floats(25, &[1, 4, 576]))
        .with("cache", cache)
        .with("indices", HostTensor::i32(&[1, 4], &[3, 2, -1, 0]))
        .set("softmax_scale", 1e-4)
        .set("kv_lora_rank", 512)
        .set("page_size", 2);
    let got = holds(&case);
    assert!(got["out"].to_f32().iter().all(|v| v.is_finite()), "slot 1 is NaN and unused");
}

#[test]
fn what_store_index_keys_writes_the_paged_indexer_reads() {
    let (n, page_size) = (20, 8);
    let store = Case::new("store_index_keys")
        .with("k", floats(21, &[n, DIM]))
        .with("slots", ints(&(0..n as i32).collect::<Vec<_>>()))
        .with("cache", HostTensor::u8(&[3, 8 * (DIM + 4)], vec![0xff; 3 * 8 * (DIM + 4)]))
        .set("page_size", page_size);
    let cache = holds(&store).remove("cache").unwrap();
    let paged = indexer_paged(21, page_size, 3, &[n as i32])
        .with("cache", cache)
        .with("block_table", HostTensor::i32(&[1, 3], &[0, 1, 2]))
        .set("max_context", n);
    let k: Array2<f32> = store.array("k").unwrap();
    let keys = act_quant(k.view(), DIM, ScaleFmt::Ue8m0).unwrap();
    let mut q = paged.tensors["q"].clone();
    q.shape.remove(0);
    let flat = indexer(21, 4, n, &[(0, n as i32)])
        .with("q", q)
        .with("weights", paged.tensors["weights"].clone())
        .with(
            "k",
            HostTensor {
                dtype: DType::E4m3,
                shape: vec![n, DIM],
                bytes: keys.codes.iter().copied().collect(),
            },
        )
        .with("k_scale", f32s(&[n], &keys.scale.iter().copied().collect::<Vec<_>>()));
    same("indexer_logits", &holds(&paged), &expected(&flat));
}
