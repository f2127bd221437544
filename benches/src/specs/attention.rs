//! Attention, sparse and dense.

use super::records::latent_pages;
use super::{D_QK, KV_LORA_RANK, PAGE, QK_HEAD, RECORD, SOFTMAX_SCALE, V_HEAD, shape, vec_i32};
use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use crate::timed::{Named, Timed};
use dsa_figures::Stage;
use dsa_kernels::attention::{AttentionArgs, AttentionOut};
use dsa_kernels::sparse_attention::{sparse_mla, sparse_mla_paged};
use dsa_kernels::{DType, Device, Result, Tensor, dense_attention};
use dsa_tests::generate::{Fill, Rng, tensor};
use dsa_tests::{Case, HostTensor};
use std::collections::BTreeMap;

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

fn named(a: AttentionOut) -> Named {
    vec![("out", a.out), ("lse", a.lse), ("max_logits", a.max_logits)]
}

/// The rows of `keys` `[n, width]` that `indices` lists, and the lists of where they are now: the reference reads
/// no others.
fn listed(keys: HostTensor, indices: HostTensor) -> (HostTensor, HostTensor) {
    let row = keys.bytes.len() / keys.shape[0].max(1);
    let lists = indices.to_i32();
    let mut at: BTreeMap<i32, i32> = lists.iter().filter(|i| **i >= 0).map(|i| (*i, 0)).collect();
    let mut bytes = Vec::with_capacity(at.len() * row);
    for (new, (index, place)) in at.iter_mut().enumerate() {
        *place = new as i32;
        let start = *index as usize * row;
        bytes.extend_from_slice(&keys.bytes[start..start + row]);
    }
    let moved: Vec<i32> = lists.iter().map(|i| at.get(i).copied().unwrap_or(-1)).collect();
    let shape = vec![at.len(), keys.shape[1]];
    (HostTensor { bytes, shape, ..keys }, HostTensor::i32(&indices.shape, &moved))
}

/// Sparse attention to latents, of `rows` tokens.
pub fn sparse(
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
    let kept = topk.min(context);
    let inputs = [&q, &kv, &indices].map(Tensor::clone);
    Ok(Spec {
        kernel: "sparse_mla",
        stage,
        case: "elements".to_string(),
        shape: shape([("s_q", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * kept * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (D_QK + KV_LORA_RANK) + kept * D_QK) * dtype.size()) as u64,
        gate,
        work: Box::new(move || Ok(named(sparse_mla(&q, &kv, &indices, &args())?))),
        timed: Timed {
            rows,
            heads,
            cost: kept * (D_QK + KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, kv, indices] = &inputs;
                let (kv, indices) = listed(at.whole(kv)?, at.rows(indices)?);
                let case = Case::new("sparse_mla")
                    .with("q", at.rows_and_heads(q)?)
                    .with("kv", kv)
                    .with("indices", indices)
                    .set("softmax_scale", SOFTMAX_SCALE)
                    .set("d_v", KV_LORA_RANK);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}

/// Sparse attention to fp8 records, of the next token of each request.
pub fn sparse_fp8(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (rows, heads, topk, dtype) = (axes.batch, axes.heads, axes.topk, axes.dtype);
    let q = random(device, dtype, &[rows, heads, D_QK], seed)?;
    let pages = context.div_ceil(PAGE);
    let page = PAGE * RECORD.bytes();
    let cache = device.upload(&latent_pages(pages, seed + 1), &[pages, page], DType::U8)?;
    let indices = device.upload_i32(&index_lists(rows, topk, context), &[rows, topk])?;
    let mut rng = Rng::new(seed);
    let gate = attention_gate("sparse_mla_paged", &mut rng, axes)
        .with("cache", HostTensor::u8(&[2, page], latent_pages(2, seed)))
        .set("kv_lora_rank", KV_LORA_RANK)
        .set("page_size", PAGE);
    let kept = topk.min(context);
    let inputs = [&q, &cache, &indices].map(Tensor::clone);
    Ok(Spec {
        kernel: "sparse_mla_paged",
        stage: Stage::Decode,
        case: "fp8 records".to_string(),
        shape: shape([("batch", rows), ("context", context), ("heads", heads), ("topk", topk)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * kept * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (D_QK + KV_LORA_RANK) * dtype.size() + kept * RECORD.bytes()))
            as u64,
        gate,
        work: Box::new(move || {
            Ok(named(sparse_mla_paged(&q, &cache, PAGE, RECORD, &indices, &args())?))
        }),
        timed: Timed {
            rows,
            heads,
            cost: kept * (D_QK + KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, cache, indices] = &inputs;
                // Without pages: a slot is a slot.
                let records = cache.reshape(&[pages * PAGE, RECORD.bytes()])?;
                let (records, indices) = listed(at.whole(&records)?, at.rows(indices)?);
                let case = Case::new("sparse_mla_paged")
                    .with("q", at.rows_and_heads(q)?)
                    .with("cache", records)
                    .with("indices", indices)
                    .set("softmax_scale", SOFTMAX_SCALE)
                    .set("kv_lora_rank", KV_LORA_RANK)
                    .set("page_size", 1);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}

/// Dense attention of a chunk at the end of its context, heads expanded.
pub fn dense_prefill(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
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
    let inputs = [&q, &k, &v, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: "dense_mha",
        stage: Stage::Prefill,
        case: "causal".to_string(),
        shape: shape([("s_q", s), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * pairs * heads * (QK_HEAD + V_HEAD)) as u64,
        bytes: ((s + context) * heads * (QK_HEAD + V_HEAD) * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            Ok(named(dense_attention::dense_mha(&q, &k, &v, &ks, &ke, SOFTMAX_SCALE)?))
        }),
        timed: Timed {
            rows: s,
            heads,
            cost: context * (QK_HEAD + V_HEAD),
            cut: Box::new(move |at, out| {
                let [q, k, v, ks, ke] = &inputs;
                let case = Case::new("dense_mha")
                    .with("q", at.rows_and_heads(q)?)
                    .with("k", at.heads(k)?)
                    .with("v", at.heads(v)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("softmax_scale", SOFTMAX_SCALE);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}

/// Dense attention to latents, of the next token of each request.
pub fn dense_decode(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
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
    let inputs = [&q, &kv, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: "dense_mla",
        stage: Stage::Decode,
        case: String::new(),
        shape: shape([("batch", rows), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * rows * heads * context * (D_QK + KV_LORA_RANK)) as u64,
        bytes: (rows * (heads * (D_QK + KV_LORA_RANK) + context * D_QK) * dtype.size()) as u64,
        gate,
        work: Box::new(move || Ok(named(dense_attention::dense_mla(&q, &kv, &ks, &ke, &args())?))),
        timed: Timed {
            rows,
            heads,
            cost: context * (D_QK + KV_LORA_RANK),
            cut: Box::new(move |at, out| {
                let [q, kv, ks, ke] = &inputs;
                let case = Case::new("dense_mla")
                    .with("q", at.rows_and_heads(q)?)
                    .with("kv", at.whole(kv)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("softmax_scale", SOFTMAX_SCALE)
                    .set("d_v", KV_LORA_RANK);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
