//! Attention, sparse and dense.

use super::*;

/// The optional arguments of attention.
fn attention_args(device: &Device, case: &Case, d_v: usize) -> Result<AttentionArgs, CaseError> {
    let splits = match case.scalars.get("splits") {
        Some(_) => Some(case.scalar("splits")?),
        None => None,
    };
    let attn_sink = optional(device, case, "attn_sink")?;
    let args = AttentionArgs::new(case.scalar("softmax_scale")?, d_v);
    Ok(AttentionArgs { attn_sink, splits, ..args })
}

fn optional(device: &Device, case: &Case, name: &str) -> Result<Option<Tensor>, CaseError> {
    case.tensors.contains_key(name).then(|| case.upload(device, name)).transpose()
}

fn download_attention(a: &AttentionOut) -> Result<Outputs, CaseError> {
    Ok(outputs([
        ("out", HostTensor::download(&a.out)?),
        ("lse", HostTensor::download(&a.lse)?),
        ("max_logits", HostTensor::download(&a.max_logits)?),
    ]))
}

fn reference_attention(
    case: &Case,
    a: reference::sparse_attention::AttentionOut,
) -> Result<Outputs, CaseError> {
    Ok(outputs([
        ("out", HostTensor::of(&a.out).cast(case.tensor("q")?.dtype)),
        ("lse", HostTensor::of(&a.lse)),
        ("max_logits", HostTensor::of(&a.max_logits)),
    ]))
}

pub(super) fn run_sparse_mla(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv) = (case.upload_rows(device, "q")?, case.upload_rows(device, "kv")?);
    let indices = case.upload_rows(device, "indices")?;
    let args = attention_args(device, case, case.scalar("d_v")?)?;
    let topk_length = optional(device, case, "topk_length")?;
    let keys = Keys::Listed { indices: &indices, topk_length: topk_length.as_ref() };
    let a = sparse_attention::mla(&q, &Kv::Rows(&kv), &keys, &args)?;
    download_attention(&a)
}

/// The optional lengths and sinks, for the reference.
fn lengths_and_sinks(case: &Case) -> (Option<Vec<i32>>, Option<Vec<f32>>) {
    (
        case.tensors.get("topk_length").map(HostTensor::to_i32),
        case.tensors.get("attn_sink").map(HostTensor::to_f32),
    )
}

pub(super) fn reference_sparse_mla(case: &Case) -> Result<Outputs, CaseError> {
    let q: Cuboid = case.array("q")?;
    let kv = case.tensor("kv")?;
    let d_qk = kv.shape.last().copied().unwrap_or(0);
    let rows = kv.shape.iter().product::<usize>() / d_qk.max(1);
    let flat = HostTensor { shape: vec![rows, d_qk], ..kv.clone() };
    let kv: Matrix = Case::new("").with("kv", flat).array("kv")?;
    let (length, sink) = lengths_and_sinks(case);
    let a = reference::sparse_attention::sparse_mla(
        q.view(),
        kv.view(),
        case.array_i32("indices")?.view(),
        case.scalar("softmax_scale")?,
        case.scalar("d_v")?,
        length.as_deref(),
        sink.as_deref(),
    )?;
    reference_attention(case, a)
}

pub(super) fn run_sparse_mla_paged(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let q = case.upload_rows(device, "q")?;
    let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
    let d_qk = q.shape().last().copied().unwrap_or(0);
    let record =
        cache_write::KvRecord { kv_lora_rank, rope_dim: d_qk.saturating_sub(kv_lora_rank) };
    let cache = case.upload_rows(device, "cache")?;
    let kv = Kv::Records { cache: &cache, page_size: case.scalar("page_size")?, record };
    let indices = case.upload_rows(device, "indices")?;
    let topk_length = optional(device, case, "topk_length")?;
    let keys = Keys::Listed { indices: &indices, topk_length: topk_length.as_ref() };
    let args = attention_args(device, case, kv_lora_rank)?;
    let a = sparse_attention::mla(&q, &kv, &keys, &args)?;
    download_attention(&a)
}

pub(super) fn reference_sparse_mla_paged(case: &Case) -> Result<Outputs, CaseError> {
    let q: Cuboid = case.array("q")?;
    let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
    let rope_dim = q.dim().2.saturating_sub(kv_lora_rank);
    let record = reference::cache_write::KvRecord { kv_lora_rank, rope_dim };
    let cache = case.tensor("cache")?;
    let slots = cache.bytes.len() / record.bytes().max(1);
    let flat = HostTensor::u8(&[slots, record.bytes()], cache.bytes.clone());
    let records = Case::new("").with("records", flat).array_u8("records")?;
    let (length, sink) = lengths_and_sinks(case);
    // FlashMLA's contract: the dequantised rows are of the type of q.
    let dtype = case.tensor("q")?.dtype;
    let mut kv = record.dequantise_kv(records.view());
    kv.mapv_inplace(|x| dtype.decode(&dtype.encode(&[x])).first().copied().unwrap_or(x));
    let a = reference::sparse_attention::sparse_mla(
        q.view(),
        kv.view(),
        case.array_i32("indices")?.view(),
        case.scalar("softmax_scale")?,
        kv_lora_rank,
        length.as_deref(),
        sink.as_deref(),
    )?;
    reference_attention(case, a)
}

pub(super) fn run_dense_mha(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let v = case.upload_rows(device, "v")?;
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = dense_attention::dense_mha(&q, &k, &v, &KeyRange { ks: &ks, ke: &ke }, scale)?;
    download_attention(&a)
}

pub(super) fn reference_dense_mha(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Cuboid) = (case.array("q")?, case.array("k")?);
    let v: Cuboid = case.array("v")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = reference::dense_attention::dense_mha(q.view(), k.view(), v.view(), &ks, &ke, scale)?;
    reference_attention(case, a)
}

pub(super) fn run_dense_mla(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv) = (case.upload_rows(device, "q")?, case.upload_rows(device, "kv")?);
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let args = attention_args(device, case, case.scalar("d_v")?)?;
    let a = sparse_attention::mla(&q, &Kv::Rows(&kv), &Keys::range(&ks, &ke), &args)?;
    download_attention(&a)
}

pub(super) fn reference_dense_mla(case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv): (Cuboid, Matrix) = (case.array("q")?, case.array("kv")?);
    let a = reference::dense_attention::dense_mla(
        q.view(),
        kv.view(),
        &case.vec_i32("ks")?,
        &case.vec_i32("ke")?,
        case.scalar("softmax_scale")?,
        case.scalar("d_v")?,
    )?;
    reference_attention(case, a)
}
