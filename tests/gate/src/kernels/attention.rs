//! What the kernels of attention share: one launcher and one reference for rows or records that are listed or in a
//! range, and how their cases are drawn.

mod forms;

pub(super) use forms::*;

use super::*;
use crate::generate::extreme;
use dsa_kernels::attention::{AttentionArgs, AttentionOut};
use dsa_kernels::cache_write::KvRecord;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::seen::KeyRange;
use dsa_kernels::sparse_attention::{self, mla};
use dsa_reference::dense_attention::dense_mla;
use dsa_reference::sparse_attention::{AttentionOut as Expected, sparse_mla};
use ndarray::Array2;
use std::collections::BTreeMap;

/// Which form of [`mla`] a kernel is.
#[derive(Clone, Copy)]
pub(super) struct Of {
    /// Whether keys are listed, or in a range.
    pub listed: bool,
    /// Whether they are records, or rows of elements.
    pub records: bool,
}

/// V3.2's token of the fp8 cache.
pub(super) const RECORD: KvRecord =
    KvRecord { kv_lora_rank: v32::KV_LORA_RANK, rope_dim: v32::ROPE_DIM };

/// Columns of a row that are its value: those of the latent unless the case says otherwise.
fn d_v(case: &Case) -> Result<usize, CaseError> {
    match case.scalars.contains_key("d_v") {
        false if case.scalars.contains_key("kv_lora_rank") => case.scalar("kv_lora_rank"),
        _ => case.scalar("d_v"),
    }
}

fn optional(device: &Device, case: &Case, name: &str) -> Result<Option<Tensor>, CaseError> {
    case.tensors.contains_key(name).then(|| case.upload(device, name)).transpose()
}

pub(super) fn run(device: &Device, case: &Case, of: Of) -> Result<Outputs, CaseError> {
    let q = case.upload_rows(device, "q")?;
    let rows = case.upload_rows(device, if of.records { "cache" } else { "kv" })?;
    let kv = if of.records {
        let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
        let d_qk = q.shape().last().copied().unwrap_or(0);
        let record = KvRecord { kv_lora_rank, rope_dim: d_qk.saturating_sub(kv_lora_rank) };
        Kv::Records { cache: &rows, page_size: case.scalar("page_size")?, record }
    } else {
        Kv::Rows(&rows)
    };
    let splits = case.scalars.contains_key("splits").then(|| case.scalar("splits")).transpose()?;
    let attn_sink = optional(device, case, "attn_sink")?;
    let args = AttentionArgs::new(case.scalar("softmax_scale")?, d_v(case)?);
    let args = AttentionArgs { attn_sink, splits, ..args };
    download(&if of.listed {
        let indices = &case.upload_rows(device, "indices")?;
        let topk_length = optional(device, case, "topk_length")?;
        mla(&q, &kv, &Keys::Listed { indices, topk_length: topk_length.as_ref() }, &args)?
    } else {
        let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
        mla(&q, &kv, &Keys::Range(KeyRange { ks: &ks, ke: &ke }), &args)?
    })
}

pub(super) fn download(a: &AttentionOut) -> Result<Outputs, CaseError> {
    let [out, lse, max_logits] = [&a.out, &a.lse, &a.max_logits].map(HostTensor::download);
    Ok(outputs([("out", out?), ("lse", lse?), ("max_logits", max_logits?)]))
}

pub(super) fn of_reference(case: &Case, a: Expected) -> Result<Outputs, CaseError> {
    Ok(outputs([
        ("out", HostTensor::of(&a.out).cast(case.tensor("q")?.dtype)),
        ("lse", HostTensor::of(&a.lse)),
        ("max_logits", HostTensor::of(&a.max_logits)),
    ]))
}

pub(super) fn reference(case: &Case, of: Of) -> Result<Outputs, CaseError> {
    let q: Cuboid = case.array("q")?;
    let kv = if of.records { records(case)? } else { rows(case)? }; // [s_kv, d_qk]
    let (scale, d_v) = (case.scalar("softmax_scale")?, d_v(case)?);
    let sink = case.tensors.get("attn_sink").map(HostTensor::to_f32);
    let length = case.tensors.get("topk_length").map(HostTensor::to_i32);
    let lists = if of.listed {
        case.array_i32("indices")?
    } else {
        let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
        if sink.is_none() {
            return of_reference(case, dense_mla(q.view(), kv.view(), &ks, &ke, scale, d_v)?);
        }
        // A sink is known to lists alone: those of all rows, of which the range's count.
        Array2::from_shape_fn((ks.len(), kv.nrows()), |(t, n)| {
            let n = n as i32;
            if ks[t] <= n && n < ke[t] { n } else { -1 }
        })
    };
    let (length, sink) = (length.as_deref(), sink.as_deref());
    of_reference(case, sparse_mla(q.view(), kv.view(), lists.view(), scale, d_v, length, sink)?)
}

/// The rows, out of their pages.
fn rows(case: &Case) -> Result<Matrix, CaseError> {
    let kv = case.tensor("kv")?;
    let d_qk = kv.shape.last().copied().unwrap_or(0);
    let rows = kv.shape.iter().product::<usize>() / d_qk.max(1);
    let flat = HostTensor { shape: vec![rows, d_qk], ..kv.clone() };
    Case::new("").with("kv", flat).array("kv")
}

/// The records, dequantised. FlashMLA's contract: to rows of the type of q.
fn records(case: &Case) -> Result<Matrix, CaseError> {
    let (q, cache) = (case.tensor("q")?, case.tensor("cache")?);
    let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
    let d_qk = q.shape.last().copied().unwrap_or(0);
    let rope_dim = d_qk.saturating_sub(kv_lora_rank);
    let record = reference::cache_write::KvRecord { kv_lora_rank, rope_dim };
    let slots = cache.bytes.len() / record.bytes().max(1);
    let flat = HostTensor::u8(&[slots, record.bytes()], cache.bytes.clone());
    let records = Case::new("").with("records", flat).array_u8("records")?;
    let mut kv = record.dequantise_kv(records.view());
    kv.mapv_inplace(|x| q.dtype.decode(&q.dtype.encode(&[x])).first().copied().unwrap_or(x));
    Ok(kv)
}

/// The code of the form `of`.
pub(super) fn all(device: &Device, of: Of) -> Vec<&'static str> {
    let mut all = paths::joined(&[paths::FLOATS, &["one split", "splits"], SINKS]);
    all.extend_from_slice(if of.records { RECORDS } else { paths::LOADS });
    if of.listed {
        all.extend_from_slice(LENGTHS);
    }
    if !of.records {
        all.extend_from_slice(&["rows", "pages"]);
    }
    if paths::is_plain(device) {
        all.extend_from_slice(HEAD_TILES);
    }
    all
}

const SINKS: &[&str] = &["no sink", "sink in the kernel", "sink in the merge"];
const LENGTHS: &[&str] = &["lengths", "whole lists"];
const RECORDS: &[&str] = &["records by vectors", "records by bytes"];
const HEAD_TILES: &[&str] = &["4 heads", "8 heads", "16 heads", "32 heads"];

/// The code that a case of the form `of` runs.
pub(super) fn runs(case: &Case, device: &Device, of: Of) -> Vec<&'static str> {
    let dtype = paths::dtype(case, "q");
    let mut runs = vec![dtype.name()];
    let heads = paths::shape(case, "q")[1].next_power_of_two().clamp(4, 32);
    if paths::is_plain(device) {
        runs.push(HEAD_TILES[heads.ilog2() as usize - 2]);
    }
    // Without the scalar the launcher chooses by the device's cores.
    let one = paths::word(case, "splits").map(|splits| splits == "1");
    runs.extend(one.map(|one| paths::either(one, "one split", "splits")));
    match one {
        _ if !case.tensors.contains_key("attn_sink") => runs.push(SINKS[0]),
        Some(one) => runs.push(paths::either(one, SINKS[1], SINKS[2])),
        None => {}
    }
    if of.listed {
        let lengths = case.tensors.contains_key("topk_length");
        runs.push(paths::either(lengths, LENGTHS[0], LENGTHS[1]));
    }
    if !of.records {
        let machine = sparse_attention::machine(device, dtype);
        runs.push(paths::loads(case, machine, &["q", "kv"]));
        runs.push(paths::either(paths::shape(case, "kv").len() == 3, "pages", "rows"));
        return runs;
    }
    let rank: usize = case.scalar("kv_lora_rank").unwrap_or(1);
    let page: usize = case.scalar("page_size").unwrap_or(1);
    let record = paths::shape(case, "cache")[1] / page.max(1);
    let rope_at = rank + 4 * rank.div_ceil(128);
    let rope = record.saturating_sub(rope_at) / 2;
    let whole = [rank, rope_at, record, rope].iter().all(|n| n % 8 == 0);
    let whole = whole && paths::in_vectors(case, "cache", 8);
    runs.push(paths::either(whole, RECORDS[0], RECORDS[1]));
    runs
}

/// At V3.2's dimensions: prefill, where each token is one program's, and decode, where programs share one token's keys.
pub(super) fn production(kernel: &str, keys: impl Fn(Case, usize) -> Case) -> Vec<Case> {
    let case = |s: usize, splits: usize| {
        let q = zeros(DType::Bf16, &[s, v32::HEADS, v32::D_QK]);
        let case = Case::new(kernel).with("q", q).set("softmax_scale", v32::SOFTMAX_SCALE);
        keys(case, s).set("splits", splits)
    };
    vec![case(2, 1), case(1, 8)]
}

/// Widths of a small case: of a row, and of its value.
pub(super) const SMALL: (usize, usize) = (24, 16);

/// The queries of a small case: two tokens of four heads.
pub(super) fn small(kernel: &str) -> Case {
    Case::new(kernel).with("q", floats(1, &[2, 4, SMALL.0])).set("softmax_scale", 0.2)
}

/// `case` with records in three pages of three.
pub(super) fn with_records(case: Case) -> Case {
    let (d_qk, rank) = SMALL;
    let rng = &mut Rng::new(1);
    let mut array = |cols: usize| Array2::from_shape_fn((9, cols), |_| rng.normal());
    let (c, k_pe) = (array(rank), array(d_qk - rank));
    let record = reference::cache_write::KvRecord { kv_lora_rank: rank, rope_dim: d_qk - rank };
    let records = record.quantise_kv(c.view(), k_pe.view()).iter().copied().collect();
    case.with("cache", HostTensor::u8(&[3, 3 * record.bytes()], records))
        .set("kv_lora_rank", rank)
        .set("page_size", 3)
        .set("splits", 1)
}

/// `case` with lists of five entries.
pub(super) fn with_lists(case: Case) -> Case {
    case.with("indices", HostTensor::i32(&[2, 5], &[0, 5, 8, -1, 2, 1, 2, 3, 4, 9]))
}

/// `case` with a range for each of its two tokens.
pub(super) fn with_ranges(case: Case) -> Case {
    case.with("ks", vector(&[0, 0])).with("ke", vector(&[8, 9]))
}

/// Ascending index lists spread evenly over the context, each a little shifted.
pub(super) fn spread_lists(rows: usize, topk: usize, context: usize) -> Vec<i32> {
    let step = (context / topk).max(1);
    let index = |t: usize, j: usize| if j < context { (j * step + t % step) as i32 } else { -1 };
    (0..rows).flat_map(|t| (0..topk).map(move |j| index(t, j))).collect()
}

/// A measured call's arguments.
pub(super) fn args() -> AttentionArgs {
    AttentionArgs::new(v32::SOFTMAX_SCALE, v32::KV_LORA_RANK)
}

/// Its outputs.
pub(super) fn named(a: AttentionOut) -> Named {
    vec![("out", a.out), ("lse", a.lse), ("max_logits", a.max_logits)]
}

/// The rows of `keys` `[n, width]` that `indices` lists, and the lists of where they are now: the reference reads
/// no others.
pub(super) fn listed(keys: HostTensor, indices: HostTensor) -> (HostTensor, HostTensor) {
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

/// A small case of a measured kernel, without its rows.
pub(super) fn gate_case(kernel: &str, rng: &mut Rng, axes: &Axes) -> Case {
    Case::new(kernel)
        .with("q", tensor(rng, axes.dtype, &[2, axes.heads, v32::D_QK], Fill::Normal))
        .set("softmax_scale", v32::SOFTMAX_SCALE)
}

/// Bytes of the queries of `rows` tokens, with `topk` indices each; and of the outputs of `width` columns.
pub(super) fn room_of_queries(axes: &Axes, rows: usize, topk: usize) -> u128 {
    bytes_of(&[rows, axes.heads, v32::D_QK, axes.dtype.size()]) + bytes_of(&[4, rows, topk])
}

/// See [`room_of_queries`].
pub(super) fn room_of_outputs(axes: &Axes, rows: usize, width: usize) -> u128 {
    bytes_of(&[rows, axes.heads, width, axes.dtype.size()]) + bytes_of(&[8, rows, axes.heads])
}
