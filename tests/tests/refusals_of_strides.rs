//! Strides that a launcher does not take are refused with the tensor's name.

use crate::support::device;
use dsa_kernels::attention::AttentionArgs;
use dsa_kernels::cache_write::{self, KvRecord};
use dsa_kernels::indexer::ScoreFn;
use dsa_kernels::quant::{Quantised, ScaleFmt};
use dsa_kernels::rope::Pairing;
use dsa_kernels::sparse_attention::{sparse_mla, sparse_mla_paged};
use dsa_kernels::{DType, Device, KernelError, Tensor};
use dsa_kernels::{
    bandwidth, dense_attention, fold_scales, gemm, hadamard, indexer, norm, quant, rope,
};

const F32: DType = DType::F32;

/// A tensor of `shape` whose last two axes lie in memory the other way round.
fn turned(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let axis = shape.len() - 1;
    let mut stored = shape.to_vec();
    stored.swap(axis - 1, axis);
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    device.upload(&bytes, &stored, dtype).unwrap().transpose(axis - 1, axis).unwrap()
}

fn empty(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
    device.empty(shape, dtype).unwrap()
}

/// `result` is a refusal of the strides of `tensor`.
#[track_caller]
fn refused<T>(tensor: &str, result: Result<T, KernelError>) {
    let Err(error) = result else { panic!("the strides of {tensor} were let through") };
    let message = error.to_string();
    assert!(message.starts_with(&format!("{tensor} has strides ")), "{tensor}: {message}");
    assert!(message.contains(", expected "), "{message}");
}

#[test]
fn row_kernels_refuse_gaps_within_rows() {
    let device = &device();
    let (x, x_turned) = (empty(device, &[3, 8], F32), turned(device, F32, &[3, 8]));
    let weight = empty(device, &[8], F32);
    refused("x", quant::act_quant(&x_turned, ScaleFmt::Plain));
    refused("x", hadamard::hadamard(&x_turned));
    refused("x", norm::rms_norm(&x_turned, &weight, 1e-6));
    refused("x", norm::layer_norm(&x_turned, &weight, &weight, 1e-6));
    refused("out", norm::rms_norm_into(&x, &weight, &x_turned, 1e-6));
    refused("x", quant::round_trip(&x_turned, &x, ScaleFmt::Plain));
    refused("out", quant::round_trip(&x, &x_turned, ScaleFmt::Plain));
    refused("weights", fold_scales::fold_scales(&x_turned, &x, 1.0));
    refused("q_scale", fold_scales::fold_scales(&x, &x_turned, 1.0));
    let walk = bandwidth::walks(device)[0];
    refused("x", bandwidth::copy(&x_turned, &x, walk));
    refused("out", bandwidth::copy(&x, &x_turned, walk));
}

#[test]
fn products_refuse_gaps_within_rows() {
    let device = &device();
    let (x, w) = (empty(device, &[1, 3, 8], F32), empty(device, &[1, 4, 8], F32));
    refused("x", gemm::gemm(&turned(device, F32, &[1, 3, 8]), &w, F32));
    refused("w", gemm::gemm(&x, &turned(device, F32, &[1, 4, 8]), F32));
    refused("out", gemm::gemm_into(&x, &w, &turned(device, F32, &[1, 3, 4])));
}

#[test]
fn rotations_refuse_gaps_within_rows() {
    let device = &device();
    let positions = empty(device, &[3], DType::I32);
    let rotate = |x: &Tensor, cos: &Tensor, sin: &Tensor, out: &Tensor| {
        rope::rope(x, cos, sin, &positions, out, Pairing::HalfSplit)
    };
    let (x, table) = (empty(device, &[3, 2, 8], F32), empty(device, &[5, 4], F32));
    let (x_turned, table_turned) = (turned(device, F32, &[3, 2, 8]), turned(device, F32, &[5, 4]));
    refused("x", rotate(&x_turned, &table, &table, &x));
    refused("out", rotate(&x, &table, &table, &x_turned));
    refused("cos", rotate(&x, &table_turned, &table, &x));
    refused("sin", rotate(&x, &table, &table_turned, &x));
}

#[test]
fn indexers_refuse_gaps_within_rows() {
    let device = &device();
    let (range, scale) = (empty(device, &[3], DType::I32), empty(device, &[9], F32));
    let index = |q: &Tensor, k: &Tensor, w: &Tensor| {
        indexer::indexer_logits(q, k, &scale, w, &range, &range, ScoreFn::ReluWeighted)
    };
    let (q, k, w) =
        (empty(device, &[3, 4, 8], F32), empty(device, &[9, 8], F32), empty(device, &[3, 4], F32));
    refused("q", index(&turned(device, F32, &[3, 4, 8]), &k, &w));
    refused("k", index(&q, &turned(device, F32, &[9, 8]), &w));
    refused("weights", index(&q, &k, &turned(device, F32, &[3, 4])));

    let paged = |q: &Tensor, cache: &Tensor, w: &Tensor, table: &Tensor| {
        let score = ScoreFn::ReluWeighted;
        indexer::indexer_logits_paged(q, cache, 2, w, &range, table, 4, score)
    };
    let q_shape = [3, 1, 4, 8];
    let (q, cache) = (empty(device, &q_shape, DType::E4m3), empty(device, &[6, 24], DType::U8));
    let table = empty(device, &[3, 2], DType::I32);
    refused("q", paged(&turned(device, DType::E4m3, &q_shape), &cache, &w, &table));
    refused("cache", paged(&q, &turned(device, DType::U8, &[6, 24]), &w, &table));
    refused("weights", paged(&q, &cache, &turned(device, F32, &[3, 4]), &table));
    refused("block_table", paged(&q, &cache, &w, &turned(device, DType::I32, &[3, 2])));
}

#[test]
fn selection_refuses_gaps_within_rows() {
    let device = &device();
    let (logits, range) = (turned(device, F32, &[3, 8]), empty(device, &[3], DType::I32));
    let policy = dsa_kernels::top_k::Policy::Fixed;
    refused("logits", dsa_kernels::top_k::top_k(&logits, &range, &range, 4, policy));
}

#[test]
fn attention_refuses_gaps_within_rows() {
    let device = &device();
    let args = AttentionArgs { softmax_scale: 1.0, d_v: 4, ..Default::default() };
    let (q, kv) = (empty(device, &[3, 4, 8], F32), empty(device, &[9, 8], F32));
    let (q_turned, kv_turned) = (turned(device, F32, &[3, 4, 8]), turned(device, F32, &[9, 8]));
    let (list, range) = (empty(device, &[3, 5], DType::I32), empty(device, &[3], DType::I32));
    let list_turned = turned(device, DType::I32, &[3, 5]);
    refused("q", sparse_mla(&q_turned, &kv, &list, &args));
    refused("kv", sparse_mla(&q, &kv_turned, &list, &args));
    refused("kv", sparse_mla(&q, &turned(device, F32, &[3, 3, 8]), &list, &args));
    refused("indices", sparse_mla(&q, &kv, &list_turned, &args));
    refused("kv", dense_attention::dense_mla(&q, &kv_turned, &range, &range, &args));

    let dense = |k: &Tensor, v: &Tensor| dense_attention::dense_mha(&q, k, v, &range, &range, 1.0);
    let k = empty(device, &[9, 4, 8], F32);
    refused("k", dense(&turned(device, F32, &[9, 4, 8]), &k));
    refused("v", dense(&k, &turned(device, F32, &[9, 4, 8])));

    let record = KvRecord { kv_lora_rank: 4, rope_dim: 4 };
    let cache = turned(device, DType::U8, &[2, 3 * record.bytes()]);
    refused("cache", sparse_mla_paged(&q, &cache, 3, record, &list, &args));
}

#[test]
fn caches_refuse_gaps_within_rows() {
    let device = &device();
    let record = KvRecord { kv_lora_rank: 4, rope_dim: 4 };
    let (c, slots) = (empty(device, &[3, 4], F32), empty(device, &[3], DType::I32));
    let c_turned = turned(device, F32, &[3, 4]);
    let cache = empty(device, &[2, 3 * record.bytes()], DType::U8);
    let cache_turned = turned(device, DType::U8, &[2, 3 * record.bytes()]);
    refused("c", cache_write::store_kv(&c_turned, &c, &slots, &cache, 3));
    refused("k_pe", cache_write::store_kv(&c, &c_turned, &slots, &cache, 3));
    refused("cache", cache_write::store_kv(&c, &c, &slots, &cache_turned, 3));
}

#[test]
fn index_keys_that_act_quant_did_not_make_are_refused_by_name() {
    let device = &device();
    let cache = empty(device, &[2, 3 * 12], DType::U8);
    let slots = empty(device, &[5], DType::I32);
    let store = |codes: Tensor, scale: Tensor| {
        let keys = Quantised { codes, scale };
        cache_write::store_index_keys(&keys, &slots, &cache, 3).unwrap_err().to_string()
    };
    let codes = || empty(device, &[5, 8], DType::E4m3);
    let scale = || empty(device, &[5, 1], DType::F32);
    assert!(store(empty(device, &[5, 8], DType::F32), scale()).starts_with("codes holds f32"));
    assert!(store(turned(device, DType::E4m3, &[5, 8]), scale()).starts_with("codes has strides"));
    assert!(store(codes(), empty(device, &[5, 1], DType::Bf16)).starts_with("scale holds bf16"));
    assert!(store(codes(), empty(device, &[5, 2], DType::F32)).starts_with("scale has shape"));
    let gaps = empty(device, &[5, 2], DType::F32).narrow(1, 0, 1).unwrap();
    assert!(store(codes(), gaps).starts_with("scale has strides"));
}
