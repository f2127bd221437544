//! What the kernels of attention share: one launcher and one reference for rows or records that are listed or in a
//! range, and how their cases are drawn.

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

pub(super) const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];

/// One row is key and value: its infinities make its score one.
pub(super) const ANY_ROWS: extreme::Rows = extreme::Rows { scaled: true, special: true };

/// What may be given or left out, each a choice of code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    lengths: bool,
    sinks: bool,
    splits: Option<usize>,
    strided: &'static str,
}

fn one_in_three() -> impl Strategy<Value = bool> {
    proptest::sample::select(&[false, false, true][..])
}

fn splits() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (1usize..6).prop_map(Some)]
}

pub(super) fn options() -> impl Strategy<Value = Options> {
    (one_in_three(), one_in_three(), splits(), gap())
        .prop_map(|(lengths, sinks, splits, strided)| Options { lengths, sinks, splits, strided })
}

impl Options {
    /// `case` with these options, its lists, if it has any, being of `topk` entries.
    pub fn of(&self, mut case: Case, rng: &mut Rng, topk: Option<usize>) -> Case {
        let shape = paths::shape(&case, "q").to_vec();
        if let (true, Some(topk)) = (self.lengths, topk) {
            let lengths: Vec<i32> = (0..shape[0])
                .map(|_| match rng.below(8) {
                    0 => rng.choose(&[-1, i32::MIN, i32::MAX, 0]),
                    _ => rng.below(topk + 2) as i32,
                })
                .collect();
            case = case.with("topk_length", vector(&lengths));
        }
        if self.sinks {
            let sinks: Vec<f32> = (0..shape[1])
                .map(|_| match rng.below(4) {
                    0 => rng.choose(&[f32::INFINITY, f32::NEG_INFINITY]),
                    _ => rng.normal(),
                })
                .collect();
            case = case.with("attn_sink", HostTensor::new(DType::F32, &[shape[1]], &sinks));
        }
        let case = match self.splits {
            Some(splits) => case.set("splits", splits),
            None => case,
        };
        case.set("strided", self.strided)
    }
}

/// Entries of a model's list: now and then all that there are, which takes the reference a second.
pub(super) fn topk() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 33usize..200, 1 => Exactly(v32::TOPK)]
}

/// Rows of elements, in one piece or in pages.
#[derive(Clone, Debug)]
pub(super) struct OfRows {
    pub s: usize,
    pub heads: usize,
    pub s_kv: usize,
    /// Entries of a list, where keys are listed.
    pub topk: usize,
    pub d_qk: usize,
    pub d_v: usize,
    pub dtype: DType,
    /// Whether the rows are in pages of three, if they divide.
    pub pages: bool,
    pub options: Options,
}

/// Forms of rows of elements, whose small `sizes` are `(s, heads, s_kv, topk)`.
pub(super) fn forms_of_rows<S>(kernel: &'static str, of: Of, sizes: S, d: usize) -> Forms
where
    S: Strategy<Value = (usize, usize, usize, usize)> + 'static,
{
    let form =
        |((s, heads, s_kv, topk), d_qk, d_v, dtype, pages, options): (_, usize, usize, _, _, _)| {
            OfRows { s, heads, s_kv, topk, d_qk, d_v: d_v.min(d_qk), dtype, pages, options }
        };
    let random = (sizes, 1usize..100, 1usize..=d, float(), any::<bool>(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), 33usize..200, topk());
        let (d_qk, d_v) = (Exactly(v32::D_QK), Exactly(v32::KV_LORA_RANK));
        (sizes, d_qk, d_v, float(), any::<bool>(), options()).prop_map(form)
    };
    Forms::new(random, production, move |form: &OfRows, rng| case_of_rows(kernel, of, form, rng))
}

fn case_of_rows(kernel: &str, of: Of, form: &OfRows, rng: &mut Rng) -> Case {
    let (s, s_kv, d_qk) = (form.s, form.s_kv, form.d_qk);
    let fill = rng.choose(&FILLS);
    let (case, used) = keys(Case::new(kernel), of, rng, [s, form.topk, s_kv]);
    let mut kv = tensor(rng, form.dtype, &[s_kv, d_qk], fill);
    let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], fill);
    if rng.one_in(4) {
        q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
        kv = extreme::keys(rng, form.dtype, &[s_kv, d_qk], ANY_ROWS);
    }
    poison_unused(&mut kv, d_qk, &used);
    if form.pages && s_kv.is_multiple_of(3) {
        kv.shape = vec![s_kv / 3, 3, d_qk];
    }
    let case = case
        .with("q", q)
        .with("kv", kv)
        .set("d_v", form.d_v)
        .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
    form.options.of(case, rng, of.listed.then_some(form.topk))
}

/// `case` with lists or ranges of `s` tokens, and the rows of `s_kv` that one of them names.
fn keys(case: Case, of: Of, rng: &mut Rng, [s, topk, s_kv]: [usize; 3]) -> (Case, Vec<i32>) {
    if of.listed {
        let indices = index_lists(rng, s, topk, s_kv);
        return (case.with("indices", HostTensor::i32(&[s, topk], &indices)), indices);
    }
    let (ks, ke) = ranges(rng, s, s_kv);
    let (starts, ends) = (ks.to_i32(), ke.to_i32());
    let seen = |n: &i32| starts.iter().zip(&ends).any(|(start, end)| start <= n && n < end);
    let used = (0..s_kv as i32).filter(seen).collect();
    (case.with("ks", ks).with("ke", ke), used)
}

#[derive(Clone, Debug)]
pub(super) struct OfRecords {
    s: usize,
    heads: usize,
    rank: usize,
    half_rope: usize,
    page_size: usize,
    n_pages: usize,
    /// Entries of a list, where keys are listed.
    topk: usize,
    /// Columns that are the value, if not those of the latent.
    d_v: Option<usize>,
    dtype: DType,
    options: Options,
}

/// Forms of records.
pub(super) fn forms_of_records(kernel: &'static str, of: Of) -> Forms {
    let form = |((s, heads, topk, d_v), rank, half_rope, (page_size, n_pages), dtype, options)| {
        OfRecords { s, heads, rank, half_rope, page_size, n_pages, topk, d_v, dtype, options }
    };
    let small = (proptest::sample::select(&[1usize, 2][..]), 1usize..41);
    let large = (proptest::sample::select(&[53usize, 61, 64, 69][..]), 1usize..3);
    // One latent in four is of whole vectors, and its rope part begins at one too: the record is read in
    // vectors then.
    let rank = prop_oneof![
        3 => 1usize..150,
        1 => proptest::sample::select(&[136usize, 144, 264][..]),
    ];
    let half_rope = prop_oneof![0usize..10, proptest::sample::select(&[4usize, 8][..])];
    let d_v = prop_oneof![2 => Just(None), 1 => (1usize..150).prop_map(Some)];
    let sizes = (0usize..3, 1usize..20, 1usize..100, d_v);
    let pages = prop_oneof![small, large];
    let random = (sizes, rank, half_rope, pages, float(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), topk(), Just(None));
        let (rank, half_rope) = (Exactly(v32::KV_LORA_RANK), Exactly(v32::ROPE_DIM / 2));
        let pages = (Exactly(v32::PAGE), 1usize..4);
        (sizes, rank, half_rope, pages, float(), options()).prop_map(form)
    };
    Forms::new(random, production, move |form: &OfRecords, rng| {
        case_of_records(kernel, of, form, rng)
    })
}

fn case_of_records(kernel: &str, of: Of, form: &OfRecords, rng: &mut Rng) -> Case {
    let (s, rank, rope_dim, topk) = (form.s, form.rank, 2 * form.half_rope, form.topk);
    let record = reference::cache_write::KvRecord { kv_lora_rank: rank, rope_dim };
    let n = form.n_pages * form.page_size;
    let array = |rng: &mut Rng, cols: usize| Array2::from_shape_fn((n, cols), |_| rng.normal());
    let (mut c, mut k_pe) = (array(rng, rank), array(rng, rope_dim));
    let d_qk = rank + rope_dim;
    let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], Fill::Normal);
    let far = rng.one_in(4);
    if far {
        // Whole numbers times a power of two are fp8 codes times a scale.
        q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
        let kv = extreme::keys(rng, form.dtype, &[n, d_qk], ANY_ROWS).to_f32();
        c = Array2::from_shape_fn((n, rank), |(row, i)| kv[row * d_qk + i]);
        k_pe = Array2::from_shape_fn((n, rope_dim), |(row, i)| kv[row * d_qk + rank + i]);
    }
    let records = record.quantise_kv(c.view(), k_pe.view());
    let (case, used) = keys(Case::new(kernel), of, rng, [s, topk, n]);
    let bytes: Vec<u8> = records.iter().copied().collect();
    let shape = [form.n_pages, form.page_size * record.bytes()];
    let mut cache = HostTensor::u8(&shape, bytes);
    poison_unused(&mut cache, record.bytes(), &used);
    // Scales that are no powers of two must be multiplied exactly too (FlashMLA #184), each block's own.
    if !far && rng.one_in(2) {
        for index in used.iter().filter(|i| **i >= 0 && (**i as usize) < n) {
            for block in 0..rank.div_ceil(128) {
                let at = *index as usize * record.bytes() + rank + 4 * block;
                let scale = 0.01 + 0.02 * rng.unit();
                cache.bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
    let case = case
        .with("q", q)
        .with("cache", cache)
        .set("kv_lora_rank", rank)
        .set("page_size", form.page_size)
        .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
    let case = match form.d_v {
        Some(d_v) => case.set("d_v", d_v.min(d_qk)),
        None => case,
    };
    form.options.of(case, rng, of.listed.then_some(topk))
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
