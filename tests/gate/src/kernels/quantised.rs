//! Quantisation and the fp8 caches.

use super::*;

pub(super) fn run_act_quant(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use quant::ScaleFmt::{Plain, Ue8m0};
    let fmt = choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])?;
    let x = case.upload_rows(device, "x")?;
    let q = quant::act_quant(&x, fmt)?;
    Ok(outputs([
        ("codes", HostTensor::download(&q.codes)?),
        ("scale", HostTensor::download(&q.scale)?),
    ]))
}

fn reference_fmt(case: &Case) -> Result<reference::quant::ScaleFmt, CaseError> {
    use reference::quant::ScaleFmt::{Plain, Ue8m0};
    choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])
}

pub(super) fn reference_act_quant(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let q = reference::quant::act_quant(x.view(), quant::BLOCK, reference_fmt(case)?)?;
    let codes = HostTensor {
        dtype: DType::E4m3,
        shape: q.codes.shape().to_vec(),
        bytes: q.codes.iter().copied().collect(),
    };
    Ok(outputs([("codes", codes), ("scale", HostTensor::of(&q.scale))]))
}

pub(super) fn run_round_trip(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use quant::ScaleFmt::{Plain, Ue8m0};
    let fmt = choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])?;
    let x = case.upload_rows(device, "x")?;
    let out = device.empty(x.shape(), x.dtype())?;
    quant::round_trip(&x, &out, fmt)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_round_trip(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let q = reference::quant::act_quant(x.view(), quant::BLOCK, reference_fmt(case)?)?;
    let out = HostTensor::of(&q.dequantise()).cast(case.tensor("x")?.dtype);
    Ok(outputs([("out", out)]))
}

pub(super) fn run_store_kv(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe) = (case.upload_rows(device, "c")?, case.upload_rows(device, "k_pe")?);
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    cache_write::store_kv(&c, &k_pe, &slots, &cache, case.scalar("page_size")?)?;
    Ok(outputs([("cache", HostTensor::download(&cache)?)]))
}

pub(super) fn reference_store_kv(case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe): (Matrix, Matrix) = (case.array("c")?, case.array("k_pe")?);
    let record =
        reference::cache_write::KvRecord { kv_lora_rank: c.ncols(), rope_dim: k_pe.ncols() };
    let records = record.quantise_kv(c.view(), k_pe.view());
    let mut cache = case.tensor("cache")?.clone();
    let bytes = record.bytes();
    for (row, slot) in records.axis_iter(Axis(0)).zip(case.vec_i32("slots")?) {
        let at = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(bytes);
        if at < cache.bytes.len() {
            for (i, byte) in row.iter().enumerate() {
                cache.bytes[at + i] = *byte;
            }
        }
    }
    Ok(outputs([("cache", cache)]))
}

pub(super) fn run_store_index_keys(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let k = case.upload(device, "k")?;
    let keys = quant::act_quant(&k, quant::ScaleFmt::Ue8m0)?;
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    cache_write::store_index_keys(&keys, &slots, &cache, case.scalar("page_size")?)?;
    Ok(outputs([("cache", HostTensor::download(&cache)?)]))
}

pub(super) fn reference_store_index_keys(case: &Case) -> Result<Outputs, CaseError> {
    let k: Matrix = case.array("k")?;
    let fmt = reference::quant::ScaleFmt::Ue8m0;
    let q = reference::quant::act_quant(k.view(), quant::BLOCK, fmt)?;
    let (dim, page_size): (usize, usize) = (k.ncols(), case.scalar("page_size")?);
    let mut cache = case.tensor("cache")?.clone();
    let n_slots = cache.shape[0] * page_size;
    for (row, slot) in case.vec_i32("slots")?.into_iter().enumerate() {
        let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < n_slots) else {
            continue;
        };
        let page = slot / page_size * page_size * (dim + 4);
        for i in 0..dim {
            cache.bytes[page + slot % page_size * dim + i] = q.codes[(row, i)];
        }
        let at = page + page_size * dim + slot % page_size * 4;
        cache.bytes[at..at + 4].copy_from_slice(&q.scale[(row, 0)].to_le_bytes());
    }
    Ok(outputs([("cache", cache)]))
}
