//! What is measured of each kernel: sizes, operations and bytes, the gate's small case, and the call.

use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use dsa_figures::Stage;
use dsa_kernels::attention::AttentionArgs;
use dsa_kernels::fold_scales::fold_scales;
use dsa_kernels::indexer::{ScoreFn, indexer_logits, indexer_logits_paged};
use dsa_kernels::quant::{KvRecord, ScaleFmt, act_quant, round_trip, store_index_keys, store_kv};
use dsa_kernels::rope::Pairing;
use dsa_kernels::sparse_attention::{sparse_mla, sparse_mla_paged};
use dsa_kernels::top_k::{Policy, top_k};
use dsa_kernels::{DType, Device, Result};
use dsa_kernels::{dense_attention, gemm, hadamard, norm, rope};
use dsa_tests::generate::{Fill, Rng, tensor};
use dsa_tests::{Case, HostTensor};
use std::collections::BTreeMap;

/// Width of index heads, latent, rope and expanded heads of DeepSeek-V3.2.
const INDEX_DIM: usize = 128;
const KV_LORA_RANK: usize = 512;
const ROPE: usize = 64;
const D_QK: usize = KV_LORA_RANK + ROPE;
const QK_HEAD: usize = 192;
const V_HEAD: usize = 128;
/// V3.2's softmax scale at long context.
const SOFTMAX_SCALE: f32 = 0.135_233_78;
/// Tokens of a cache page.
const PAGE: usize = 64;

fn shape<const N: usize>(sizes: [(&str, usize); N]) -> BTreeMap<String, u64> {
    sizes.into_iter().map(|(name, n)| (name.to_string(), n as u64)).collect()
}

fn vec_i32(device: &Device, values: &[i32]) -> Result<dsa_kernels::Tensor> {
    device.upload_i32(values, &[values.len()])
}

/// Every measurement the axes ask for of the kernels whose name contains `only`; the inputs of others, which
/// may be large, are not made.
pub fn all(device: &Device, axes: &Axes, seed: u64, only: &str) -> Result<Vec<Spec>> {
    type Make<'a> = &'a dyn Fn(usize) -> Result<Spec>;
    let of_context: [(&str, Make); 9] = [
        ("indexer_logits", &|n| indexer_prefill(device, axes, n, seed)),
        ("indexer_logits_paged", &|n| indexer_decode(device, axes, n, seed)),
        ("top_k", &|n| select(device, axes, n, Stage::Prefill, axes.s_q, seed)),
        ("top_k", &|n| select(device, axes, n, Stage::Decode, axes.batch, seed)),
        ("sparse_mla", &|n| sparse(device, axes, n, Stage::Prefill, axes.s_q, seed)),
        ("sparse_mla", &|n| sparse(device, axes, n, Stage::Decode, axes.batch, seed)),
        ("sparse_mla_paged", &|n| sparse_fp8(device, axes, n, seed)),
        ("dense_mha", &|n| dense_prefill(device, axes, n, seed)),
        ("dense_mla", &|n| dense_decode(device, axes, n, seed)),
    ];
    let mut specs = pointwise(device, axes, seed)?;
    specs.retain(|spec| spec.kernel.contains(only));
    for context in &axes.contexts {
        for (kernel, make) in of_context {
            if kernel.contains(only) {
                specs.push(make(*context)?);
            }
        }
    }
    Ok(specs)
}

/// The small kernels around the three: one size each.
fn pointwise(device: &Device, axes: &Axes, seed: u64) -> Result<Vec<Spec>> {
    let (rows, dtype) = (axes.s_q * axes.index_heads, axes.dtype);
    let x = random(device, dtype, &[rows, INDEX_DIM], seed)?;
    let mut rng = Rng::new(seed);
    let small = tensor(&mut rng, dtype, &[3, INDEX_DIM], Fill::Normal);
    let (n, size) = (rows * INDEX_DIM, dtype.size());
    let of_rows = |kernel, flop: usize, bytes: usize, gate, work| Spec {
        kernel,
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("rows", rows), ("cols", INDEX_DIM)]),
        dtype: dtype.to_string(),
        flop: flop as u64,
        bytes: bytes as u64,
        gate,
        work,
    };
    let mut specs = Vec::new();
    let y = x.clone();
    specs.push(of_rows(
        "act_quant",
        3 * n,
        n * (size + 1),
        Case::new("act_quant").with("x", small.clone()).set("fmt", "ue8m0"),
        Box::new(move |d: &Device| act_quant(d, &y, ScaleFmt::Ue8m0).map(|_| ())),
    ));
    let (y, out) = (x.clone(), device.empty(&[rows, INDEX_DIM], dtype)?);
    specs.push(of_rows(
        "round_trip",
        4 * n,
        2 * n * size,
        Case::new("round_trip").with("x", small.clone()).set("fmt", "ue8m0"),
        Box::new(move |d: &Device| round_trip(d, &y, &out, ScaleFmt::Ue8m0)),
    ));
    let y = x.clone();
    specs.push(of_rows(
        "hadamard",
        7 * n,
        2 * n * size,
        Case::new("hadamard").with("x", small.clone()),
        Box::new(move |d: &Device| hadamard::hadamard(d, &y).map(|_| ())),
    ));
    let y = x.clone();
    let of_cols = |seed| random(device, DType::F32, &[INDEX_DIM], seed);
    let weight = of_cols(1)?;
    let small_weight = tensor(&mut rng, DType::F32, &[INDEX_DIM], Fill::Normal);
    let norm_gate = |kernel| {
        let case = Case::new(kernel).with("x", small.clone()).set("eps", 1e-6);
        case.with("weight", small_weight.clone())
    };
    specs.push(of_rows(
        "rms_norm",
        4 * n,
        2 * n * size,
        norm_gate("rms_norm"),
        Box::new(move |d: &Device| norm::rms_norm(d, &y, &weight, 1e-6).map(|_| ())),
    ));
    let y = x.clone();
    let (weight, bias) = (of_cols(1)?, of_cols(2)?);
    specs.push(of_rows(
        "layer_norm",
        6 * n,
        2 * n * size,
        norm_gate("layer_norm").with("bias", small_weight.clone()),
        Box::new(move |d: &Device| norm::layer_norm(d, &y, &weight, &bias, 1e-6).map(|_| ())),
    ));
    let shape_of = [axes.s_q, axes.index_heads];
    let weights = random(device, DType::F32, &shape_of, 4)?;
    let folded = tensor(&mut rng, DType::F32, &[3, axes.index_heads], Fill::Normal);
    specs.push(of_rows(
        "fold_scales",
        2 * rows,
        12 * rows,
        Case::new("fold_scales")
            .with("weights", folded.clone())
            .with("q_scale", folded)
            .set("factor", 0.5),
        Box::new(move |d: &Device| fold_scales(d, &weights, &weights, 0.5).map(|_| ())),
    ));
    specs.push(rope_spec(device, axes, &mut rng, seed)?);
    specs.push(store_kv_spec(device, axes, &mut rng, seed)?);
    specs.push(store_index_keys_spec(device, axes, &mut rng, seed)?);
    specs.push(gemm_spec(device, axes, &mut rng, seed)?);
    Ok(specs)
}

fn rope_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, heads, dtype) = (axes.s_q, axes.index_heads, axes.dtype);
    let x = random(device, dtype, &[n, heads, ROPE], seed)?;
    let out = device.empty(&[n, heads, ROPE], dtype)?;
    let cos = random(device, DType::F32, &[n, ROPE / 2], 2)?;
    let sin = random(device, DType::F32, &[n, ROPE / 2], 3)?;
    let positions = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let table = tensor(rng, DType::F32, &[2, ROPE / 2], Fill::Tenth);
    let gate = Case::new("rope")
        .with("x", tensor(rng, dtype, &[2, 2, ROPE], Fill::Normal))
        .with("cos", table.clone())
        .with("sin", table)
        .with("positions", HostTensor::i32(&[2], &[1, 0]))
        .set("pairing", "half_split");
    let elements = n * heads * ROPE;
    Ok(Spec {
        kernel: "rope",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n), ("heads", heads), ("dim", ROPE)]),
        dtype: dtype.to_string(),
        flop: 3 * elements as u64,
        bytes: (2 * elements * dtype.size()) as u64,
        gate,
        work: Box::new(move |d| {
            rope::rope(d, &x, &cos, &sin, &positions, &out, Pairing::HalfSplit)
        }),
    })
}

fn store_kv_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, dtype) = (axes.s_q, axes.dtype);
    let record = KvRecord { kv_lora_rank: KV_LORA_RANK, rope_dim: ROPE };
    let c = random(device, dtype, &[n, KV_LORA_RANK], seed)?;
    let k_pe = random(device, dtype, &[n, ROPE], seed + 1)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let pages = n.div_ceil(PAGE);
    let cache = device.empty(&[pages, PAGE * record.bytes()], DType::U8)?;
    let gate = Case::new("store_kv")
        .with("c", tensor(rng, dtype, &[2, KV_LORA_RANK], Fill::Normal))
        .with("k_pe", tensor(rng, dtype, &[2, ROPE], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("cache", HostTensor::u8(&[1, 3 * record.bytes()], vec![0; 3 * record.bytes()]))
        .set("page_size", 3);
    Ok(Spec {
        kernel: "store_kv",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n)]),
        dtype: dtype.to_string(),
        flop: (3 * n * KV_LORA_RANK) as u64,
        bytes: (n * (D_QK * dtype.size() + record.bytes())) as u64,
        gate,
        work: Box::new(move |d| store_kv(d, &c, &k_pe, &slots, &cache, PAGE)),
    })
}

fn store_index_keys_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, dtype) = (axes.s_q, axes.dtype);
    let k = random(device, dtype, &[n, INDEX_DIM], seed)?;
    let keys = act_quant(device, &k, ScaleFmt::Ue8m0)?;
    let slots = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let cache = device.empty(&[n.div_ceil(PAGE), PAGE * (INDEX_DIM + 4)], DType::U8)?;
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
        work: Box::new(move |d| store_index_keys(d, &keys, &slots, &cache, PAGE)),
    })
}

fn gemm_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    // The latent's projection to index heads: 1536 x 8192 in V3.2.
    let (m, k, n) = (axes.s_q, 24 * axes.index_heads, axes.index_heads * INDEX_DIM);
    let dtype = axes.dtype;
    let x = random(device, dtype, &[1, m, k], seed)?;
    let w = random(device, dtype, &[1, n, k], seed + 1)?;
    let gate = Case::new("gemm")
        .with("x", tensor(rng, dtype, &[1, m.min(40), k], Fill::Normal))
        .with("w", tensor(rng, dtype, &[1, 70, k], Fill::Tenth));
    Ok(Spec {
        kernel: "gemm",
        stage: Stage::Prefill,
        case: "wq_b".to_string(),
        shape: shape([("m", m), ("n", n), ("k", k)]),
        dtype: dtype.to_string(),
        flop: (2 * m * n * k) as u64,
        bytes: ((m * k + n * k + m * n) * dtype.size()) as u64,
        gate,
        work: Box::new(move |d| gemm::gemm(d, &x, &w, dtype).map(|_| ())),
    })
}

fn indexer_prefill(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (s, heads, dtype) = (axes.s_q, axes.index_heads, DType::E4m3);
    let q = random(device, dtype, &[s, heads, INDEX_DIM], seed)?;
    let k = random(device, dtype, &[context, INDEX_DIM], seed + 1)?;
    let k_scale = random(device, DType::F32, &[context], seed + 2)?;
    let weights = random(device, DType::F32, &[s, heads], seed + 3)?;
    let (ks, ke) = (vec_i32(device, &vec![0; s])?, vec_i32(device, &vec![context as i32; s])?);
    let mut rng = Rng::new(seed);
    let gate = Case::new("indexer_logits")
        .with("q", tensor(&mut rng, dtype, &[3, heads, INDEX_DIM], Fill::Normal))
        .with("k", tensor(&mut rng, dtype, &[150, INDEX_DIM], Fill::Normal))
        .with("k_scale", tensor(&mut rng, DType::F32, &[150], Fill::Normal))
        .with("weights", tensor(&mut rng, DType::F32, &[3, heads], Fill::Normal))
        .with("ks", HostTensor::i32(&[3], &[0, 3, 100]))
        .with("ke", HostTensor::i32(&[3], &[150, 140, 100]));
    Ok(Spec {
        kernel: "indexer_logits",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", s), ("s_kv", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * s * context * heads * INDEX_DIM) as u64,
        bytes: (context * (INDEX_DIM + 4) + s * heads * (INDEX_DIM + 4) + 4 * s * context) as u64,
        gate,
        work: Box::new(move |d| {
            indexer_logits(d, &q, &k, &k_scale, &weights, &ks, &ke, ScoreFn::default()).map(|_| ())
        }),
    })
}

fn indexer_decode(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (b, heads, dtype) = (axes.batch, axes.index_heads, DType::E4m3);
    let max_pages = context.div_ceil(PAGE);
    let q = random(device, dtype, &[b, 1, heads, INDEX_DIM], seed)?;
    // Codes and scales of ones: the time does not depend on the values.
    let page = [vec![0x38u8; PAGE * INDEX_DIM], 1f32.to_le_bytes().repeat(PAGE)].concat();
    let cache =
        device.upload(&page.repeat(b * max_pages), &[b * max_pages, page.len()], DType::U8)?;
    let weights = random(device, DType::F32, &[b, heads], seed + 3)?;
    let lens = vec_i32(device, &vec![context as i32; b])?;
    let table: Vec<i32> = (0..(b * max_pages) as i32).rev().collect();
    let table = device.upload_i32(&table, &[b, max_pages])?;
    let mut rng = Rng::new(seed);
    let gate = Case::new("indexer_logits_paged")
        .with("q", tensor(&mut rng, dtype, &[2, 1, heads, INDEX_DIM], Fill::Normal))
        .with("cache", HostTensor::u8(&[3, page.len()], page.repeat(3)))
        .with("weights", tensor(&mut rng, DType::F32, &[2, heads], Fill::Normal))
        .with("context_lens", HostTensor::i32(&[2], &[100, 3]))
        .with("block_table", HostTensor::i32(&[2, 2], &[2, 0, 1, -1]))
        .set("page_size", PAGE)
        .set("max_context", 120);
    Ok(Spec {
        kernel: "indexer_logits_paged",
        stage: Stage::Decode,
        case: String::new(),
        shape: shape([("batch", b), ("context", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * b * context * heads * INDEX_DIM) as u64,
        bytes: (b * context * (INDEX_DIM + 8)) as u64,
        gate,
        work: Box::new(move |d| {
            let score = ScoreFn::default();
            indexer_logits_paged(d, &q, &cache, PAGE, &weights, &lens, &table, context, score)
                .map(|_| ())
        }),
    })
}

fn select(
    device: &Device,
    axes: &Axes,
    context: usize,
    stage: Stage,
    rows: usize,
    seed: u64,
) -> Result<Spec> {
    let topk = axes.topk;
    let logits = random(device, DType::F32, &[rows, context], seed)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let mut rng = Rng::new(seed);
    let length = 2 * topk + 77;
    let gate = Case::new("top_k")
        .with("logits", tensor(&mut rng, DType::F32, &[2, length], Fill::Zeros))
        .with("ks", HostTensor::i32(&[2], &[0, 5]))
        .with("ke", HostTensor::i32(&[2], &[length as i32, 70]))
        .set("topk", topk);
    Ok(Spec {
        kernel: "top_k",
        stage,
        case: String::new(),
        shape: shape([("rows", rows), ("context", context), ("topk", topk)]),
        dtype: DType::F32.to_string(),
        flop: 0,
        bytes: (4 * rows * (context + topk)) as u64,
        gate,
        work: Box::new(move |d| top_k(d, &logits, &ks, &ke, topk, Policy::Fixed).map(|_| ())),
    })
}

/// Ascending index lists spread evenly over the context, each a little shifted.
fn index_lists(rows: usize, topk: usize, context: usize) -> Vec<i32> {
    let step = (context / topk).max(1);
    let index = |t: usize, j: usize| if j < context { (j * step + t % step) as i32 } else { -1 };
    (0..rows).flat_map(|t| (0..topk).map(move |j| index(t, j))).collect()
}

/// A small attention case with the measured widths.
fn attention_gate(kernel: &str, rng: &mut Rng, axes: &Axes) -> Case {
    Case::new(kernel)
        .with("q", tensor(rng, axes.dtype, &[2, axes.heads, D_QK], Fill::Normal))
        .with("indices", HostTensor::i32(&[2, 70], &index_lists(2, 70, 90)))
        .set("softmax_scale", SOFTMAX_SCALE)
}

fn args() -> AttentionArgs {
    AttentionArgs { softmax_scale: SOFTMAX_SCALE, d_v: KV_LORA_RANK, ..Default::default() }
}

fn sparse(
    device: &Device,
    axes: &Axes,
    context: usize,
    stage: Stage,
    rows: usize,
    seed: u64,
) -> Result<Spec> {
    let (heads, topk, dtype) = (axes.heads, axes.topk, axes.dtype);
    let q = random(device, dtype, &[rows, heads, D_QK], seed)?;
    let kv = random(device, dtype, &[context, D_QK], seed + 1)?;
    let indices = device.upload_i32(&index_lists(rows, topk, context), &[rows, topk])?;
    let mut rng = Rng::new(seed);
    let gate = attention_gate("sparse_mla", &mut rng, axes)
        .with("kv", tensor(&mut rng, dtype, &[90, D_QK], Fill::Normal))
        .set("d_v", KV_LORA_RANK);
    Ok(Spec {
        kernel: "sparse_mla",
        stage,
        case: "elements".to_string(),
        shape: shape([("s_q", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * topk.min(context) * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (D_QK + KV_LORA_RANK) + topk.min(context) * D_QK) * dtype.size())
            as u64,
        gate,
        work: Box::new(move |d| sparse_mla(d, &q, &kv, &indices, &args()).map(|_| ())),
    })
}

fn sparse_fp8(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (rows, heads, topk, dtype) = (axes.batch, axes.heads, axes.topk, axes.dtype);
    let record = KvRecord { kv_lora_rank: KV_LORA_RANK, rope_dim: ROPE };
    let q = random(device, dtype, &[rows, heads, D_QK], seed)?;
    // Codes of one, scales of one, rope parts of one.
    let token = [
        vec![0x38u8; KV_LORA_RANK],
        1f32.to_le_bytes().repeat(KV_LORA_RANK / 128),
        [0x80u8, 0x3f].repeat(ROPE),
    ]
    .concat();
    let page = token.repeat(PAGE);
    let pages = context.div_ceil(PAGE);
    let cache = device.upload(&page.repeat(pages), &[pages, page.len()], DType::U8)?;
    let indices = device.upload_i32(&index_lists(rows, topk, context), &[rows, topk])?;
    let mut rng = Rng::new(seed);
    let gate = attention_gate("sparse_mla_paged", &mut rng, axes)
        .with("cache", HostTensor::u8(&[2, page.len()], page.repeat(2)))
        .set("kv_lora_rank", KV_LORA_RANK)
        .set("page_size", PAGE);
    Ok(Spec {
        kernel: "sparse_mla_paged",
        stage: Stage::Decode,
        case: "fp8 records".to_string(),
        shape: shape([("batch", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * topk.min(context) * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows
            * (heads * (D_QK + KV_LORA_RANK) * dtype.size() + topk.min(context) * record.bytes()))
            as u64,
        gate,
        work: Box::new(move |d| {
            sparse_mla_paged(d, &q, &cache, PAGE, record, &indices, &args()).map(|_| ())
        }),
    })
}

fn dense_prefill(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (s, heads, dtype) = (axes.s_q.min(context), axes.heads, axes.dtype);
    let q = random(device, dtype, &[s, heads, QK_HEAD], seed)?;
    let k = random(device, dtype, &[context, heads, QK_HEAD], seed + 1)?;
    let v = random(device, dtype, &[context, heads, V_HEAD], seed + 2)?;
    let ends: Vec<i32> = (0..s).map(|t| (context - s + t + 1) as i32).collect();
    let (ks, ke) = (vec_i32(device, &vec![0; s])?, vec_i32(device, &ends)?);
    let pairs: usize = ends.iter().map(|end| *end as usize).sum();
    let mut rng = Rng::new(seed);
    let gate = Case::new("dense_mha")
        .with("q", tensor(&mut rng, dtype, &[s.min(20), 2, QK_HEAD], Fill::Normal))
        .with("k", tensor(&mut rng, dtype, &[90, 2, QK_HEAD], Fill::Normal))
        .with("v", tensor(&mut rng, dtype, &[90, 2, V_HEAD], Fill::Normal))
        .with("ks", HostTensor::i32(&[s.min(20)], &vec![0; s.min(20)]))
        .with("ke", HostTensor::i32(&[s.min(20)], &vec![77; s.min(20)]))
        .set("softmax_scale", SOFTMAX_SCALE);
    Ok(Spec {
        kernel: "dense_mha",
        stage: Stage::Prefill,
        case: "causal".to_string(),
        shape: shape([("s_q", s), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * pairs * heads * (QK_HEAD + V_HEAD)) as u64,
        bytes: ((s + context) * heads * (QK_HEAD + V_HEAD) * dtype.size()) as u64,
        gate,
        work: Box::new(move |d| {
            dense_attention::dense_mha(d, &q, &k, &v, &ks, &ke, SOFTMAX_SCALE).map(|_| ())
        }),
    })
}

fn dense_decode(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (rows, heads, dtype) = (axes.batch, axes.heads, axes.dtype);
    let q = random(device, dtype, &[rows, heads, D_QK], seed)?;
    let kv = random(device, dtype, &[context, D_QK], seed + 1)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let mut rng = Rng::new(seed);
    let gate = Case::new("dense_mla")
        .with("q", tensor(&mut rng, dtype, &[2, heads, D_QK], Fill::Normal))
        .with("kv", tensor(&mut rng, dtype, &[90, D_QK], Fill::Normal))
        .with("ks", HostTensor::i32(&[2], &[0, 7]))
        .with("ke", HostTensor::i32(&[2], &[90, 60]))
        .set("d_v", KV_LORA_RANK)
        .set("softmax_scale", SOFTMAX_SCALE);
    Ok(Spec {
        kernel: "dense_mla",
        stage: Stage::Decode,
        case: String::new(),
        shape: shape([("batch", rows), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * context * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (D_QK + KV_LORA_RANK) + context * D_QK) * dtype.size()) as u64,
        gate,
        work: Box::new(move |d| {
            dense_attention::dense_mla(d, &q, &kv, &ks, &ke, &args()).map(|_| ())
        }),
    })
}
