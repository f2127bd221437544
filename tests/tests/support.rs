//! What the tests share: running and judging a case, and small cases of every kernel.
//!
//! Shapes are reused on purpose: a kernel is compiled once for each of its compile-time shapes.

use dsa_gate::compare::compare_on;
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::kernels::{Kernel, find};
use dsa_gate::{Case, HostTensor, Outputs};
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device};
use dsa_reference::cache_write::{KvRecord, index_cache_pages};
use dsa_reference::quant::{ScaleFmt, act_quant};
use ndarray::Array2;
use std::ops::Range;

/// Row width and value width of the attention cases.
pub const D_QK: usize = 24;
/// See [`D_QK`].
pub const D_V: usize = 16;
/// Bytes of an fp8 record of [`D_V`] latent and `D_QK - D_V` rope elements.
pub const RECORD: KvRecord = KvRecord { kv_lora_rank: D_V, rope_dim: D_QK - D_V };
/// Width of the index cases' heads.
pub const DIM: usize = 32;

/// What must never be taken for a key, whatever the number of rows (below 100000).
pub const BAD_INDICES: [i32; 8] =
    [-1, i32::MIN, -123_456, i32::MAX, 114_514, 1_919_810, 2_147_480_000, -2];

pub fn device() -> Device {
    Device::best().unwrap()
}

pub fn kernel_of(case: &Case) -> &'static Kernel {
    find(&case.kernel).unwrap()
}

/// Runs the case's kernel on the device.
pub fn run(case: &Case) -> Outputs {
    kernel_of(case).run(&device(), case).unwrap()
}

/// Runs the case's reference.
pub fn expected(case: &Case) -> Outputs {
    kernel_of(case).reference(case).unwrap()
}

/// Runs the case, holds it against the reference, and returns what the kernel gave.
#[track_caller]
pub fn holds(case: &Case) -> Outputs {
    let got = run(case);
    same(&case.kernel, &got, &expected(case));
    got
}

/// Two results of `kernel` agree within its tolerances on this device.
#[track_caller]
pub fn same(kernel: &str, got: &Outputs, expected: &Outputs) {
    let unit = (find(kernel).unwrap().machine)(&device()).matrix;
    if let Err(mismatch) = compare_on(unit, kernel, got, expected) {
        panic!("{kernel}: {mismatch}");
    }
}

/// One output of `kernel` has these values, within its tolerance.
#[track_caller]
pub fn has(kernel: &str, got: &Outputs, output: &'static str, values: &[f32]) {
    let like = &got[output];
    assert_eq!(values.len(), like.shape.iter().product::<usize>(), "values for {like:?}");
    let tensor = HostTensor::new(like.dtype, &like.shape, values);
    same(kernel, got, &Outputs::from([(output, tensor)]));
}

/// Normal f32 numbers.
pub fn floats(seed: u64, shape: &[usize]) -> HostTensor {
    tensor(&mut Rng::new(seed), DType::F32, shape, Fill::Normal)
}

/// A vector of i32.
pub fn ints(values: &[i32]) -> HostTensor {
    HostTensor::i32(&[values.len()], values)
}

/// Values in the shape of a tensor of f32.
pub fn f32s(shape: &[usize], values: &[f32]) -> HostTensor {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    HostTensor::new(DType::F32, shape, values)
}

/// Rows `range` of the first axis.
pub fn rows(tensor: &HostTensor, range: Range<usize>) -> HostTensor {
    let bytes = tensor.bytes.len() / tensor.shape[0];
    let mut shape = tensor.shape.clone();
    shape[0] = range.len();
    let bytes = tensor.bytes[range.start * bytes..range.end * bytes].to_vec();
    HostTensor { dtype: tensor.dtype, shape, bytes }
}

/// The outputs of consecutive chunks as those of the whole.
pub fn stack(chunks: &[Outputs]) -> Outputs {
    let mut whole = chunks[0].clone();
    for (name, tensor) in &mut whole {
        for chunk in &chunks[1..] {
            tensor.shape[0] += chunk[name].shape[0];
            tensor.bytes.extend_from_slice(&chunk[name].bytes);
        }
    }
    whole
}

/// Fills rows of the first axis with NaN (0xff bytes).
pub fn poison(tensor: &mut HostTensor, rows: impl IntoIterator<Item = usize>) {
    let bytes = tensor.bytes.len() / tensor.shape[0];
    for row in rows {
        tensor.bytes[row * bytes..(row + 1) * bytes].fill(0xff);
    }
}

/// fp8 index keys and queries; a range of keys for each query.
pub fn indexer(seed: u64, heads: usize, s_kv: usize, ranges: &[(i32, i32)]) -> Case {
    let (rng, s) = (&mut Rng::new(seed), ranges.len());
    let (ks, ke): (Vec<i32>, Vec<i32>) = ranges.iter().copied().unzip();
    Case::new("indexer_logits")
        .with("q", tensor(rng, DType::E4m3, &[s, heads, DIM], Fill::Normal))
        .with("k", tensor(rng, DType::E4m3, &[s_kv, DIM], Fill::Normal))
        .with("k_scale", tensor(rng, DType::F32, &[s_kv], Fill::Normal))
        .with("weights", tensor(rng, DType::F32, &[s, heads], Fill::Normal))
        .with("ks", ints(&ks))
        .with("ke", ints(&ke))
}

/// Decode over paged index keys: a context length for each request, its pages in reverse order.
pub fn indexer_paged(seed: u64, page_size: usize, max_pages: usize, lens: &[i32]) -> Case {
    let (rng, b, heads) = (&mut Rng::new(seed), lens.len(), 4);
    let n_pages = b * max_pages;
    let n = n_pages * page_size;
    let keys = Array2::from_shape_fn((n, DIM), |_| rng.normal());
    let q8 = act_quant(keys.view(), DIM, ScaleFmt::Plain).unwrap();
    let cache = index_cache_pages(q8.codes.view(), q8.scale.column(0), page_size);
    let table: Vec<i32> = (0..n_pages as i32).rev().collect();
    Case::new("indexer_logits_paged")
        .with("q", tensor(rng, DType::E4m3, &[b, 1, heads, DIM], Fill::Normal))
        .with("cache", HostTensor::u8(cache.shape(), cache.iter().copied().collect()))
        .with("weights", tensor(rng, DType::F32, &[b, heads], Fill::Normal))
        .with("context_lens", ints(lens))
        .with("block_table", HostTensor::i32(&[b, max_pages], &table))
        .set("page_size", page_size)
        .set("max_context", max_pages * page_size)
}

/// Selection of `topk` columns from rows of one length, over the whole rows.
pub fn top_k(logits: &[Vec<f32>], topk: usize) -> Case {
    let length = logits[0].len();
    let ranges = vec![(0, length as i32); logits.len()];
    top_k_in(logits, &ranges, topk)
}

/// [`top_k`] over a range of each row.
pub fn top_k_in(logits: &[Vec<f32>], ranges: &[(i32, i32)], topk: usize) -> Case {
    let (ks, ke): (Vec<i32>, Vec<i32>) = ranges.iter().copied().unzip();
    Case::new("top_k")
        .with("logits", f32s(&[logits.len(), logits[0].len()], &logits.concat()))
        .with("ks", ints(&ks))
        .with("ke", ints(&ke))
        .set("topk", topk)
}

/// The index lists of a selection that agrees with the reference.
#[track_caller]
pub fn selected(case: &Case) -> Vec<Vec<i32>> {
    let indices = &holds(case)["indices"];
    indices.to_i32().chunks(indices.shape[1]).map(<[i32]>::to_vec).collect()
}

/// Sparse attention of four heads over lists of one length.
pub fn sparse(seed: u64, s_kv: usize, lists: &[Vec<i32>]) -> Case {
    sparse_heads(seed, 4, s_kv, lists)
}

/// [`sparse`] of any number of heads.
pub fn sparse_heads(seed: u64, heads: usize, s_kv: usize, lists: &[Vec<i32>]) -> Case {
    Case::new("sparse_mla")
        .with("q", floats(seed, &[lists.len(), heads, D_QK]))
        .with("kv", floats(seed + 1, &[s_kv, D_QK]))
        .with("indices", HostTensor::i32(&[lists.len(), lists[0].len()], &lists.concat()))
        .set("softmax_scale", 0.2)
        .set("d_v", D_V)
}

/// [`sparse`] from an fp8 cache of `n_pages` pages.
pub fn sparse_paged(seed: u64, n_pages: usize, page_size: usize, lists: &[Vec<i32>]) -> Case {
    let (rng, n) = (&mut Rng::new(seed), n_pages * page_size);
    let c = Array2::from_shape_fn((n, D_V), |_| rng.normal());
    let k_pe = Array2::from_shape_fn((n, D_QK - D_V), |_| rng.normal());
    let records = RECORD.quantise_kv(c.view(), k_pe.view()).iter().copied().collect();
    Case::new("sparse_mla_paged")
        .with("q", floats(seed, &[lists.len(), 4, D_QK]))
        .with("cache", HostTensor::u8(&[n_pages, page_size * RECORD.bytes()], records))
        .with("indices", HostTensor::i32(&[lists.len(), lists[0].len()], &lists.concat()))
        .set("softmax_scale", 0.2)
        .set("kv_lora_rank", D_V)
        .set("page_size", page_size)
}

/// Dense attention of four heads in the absorbed form.
pub fn dense_mla(seed: u64, s_kv: usize, ranges: &[(i32, i32)]) -> Case {
    let (ks, ke): (Vec<i32>, Vec<i32>) = ranges.iter().copied().unzip();
    Case::new("dense_mla")
        .with("q", floats(seed, &[ranges.len(), 4, D_QK]))
        .with("kv", floats(seed + 1, &[s_kv, D_QK]))
        .with("ks", ints(&ks))
        .with("ke", ints(&ke))
        .set("softmax_scale", 0.2)
        .set("d_v", D_V)
}

/// Dense attention of four heads in the expanded form.
pub fn dense_mha(seed: u64, s_kv: usize, ranges: &[(i32, i32)]) -> Case {
    let (ks, ke): (Vec<i32>, Vec<i32>) = ranges.iter().copied().unzip();
    Case::new("dense_mha")
        .with("q", floats(seed, &[ranges.len(), 4, D_QK]))
        .with("k", floats(seed + 1, &[s_kv, 4, D_QK]))
        .with("v", floats(seed + 2, &[s_kv, 4, D_V]))
        .with("ks", ints(&ks))
        .with("ke", ints(&ke))
        .set("softmax_scale", 0.2)
}

/// `n` distinct rows of `0..s_kv` in random order.
pub fn some_of(seed: u64, s_kv: usize, n: usize) -> Vec<i32> {
    let mut rng = Rng::new(seed);
    let mut order: Vec<i32> = (0..s_kv as i32).collect();
    for i in (1..s_kv).rev() {
        order.swap(i, rng.below(i + 1));
    }
    order.truncate(n);
    order
}
