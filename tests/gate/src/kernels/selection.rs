//! Index logits and what is selected by them.

use super::*;

fn score_fn(case: &Case) -> Result<indexer::ScoreFn, CaseError> {
    use indexer::ScoreFn::{ReluWeighted, SigmoidWeighted};
    choice(case, "score_fn", &[("relu", ReluWeighted), ("sigmoid", SigmoidWeighted)])
}

fn reference_score_fn(case: &Case) -> Result<reference::indexer::ScoreFn, CaseError> {
    use reference::indexer::ScoreFn::{ReluWeighted, SigmoidWeighted};
    choice(case, "score_fn", &[("relu", ReluWeighted), ("sigmoid", SigmoidWeighted)])
}

pub(super) fn run_indexer_logits(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let (k_scale, weights) =
        (case.upload(device, "k_scale")?, case.upload_rows(device, "weights")?);
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let score = score_fn(case)?;
    let keys = IndexKeys::Rows { k: &k, k_scale: &k_scale };
    let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
    let logits = indexer::logits(&q, &weights, &keys, &seen, score)?;
    Ok(outputs([("logits", HostTensor::download(&logits)?)]))
}

pub(super) fn reference_indexer_logits(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Matrix) = (case.array("q")?, case.array("k")?);
    let (k_scale, weights): (Vector, Matrix) = (case.array("k_scale")?, case.array("weights")?);
    let logits = reference::indexer::indexer_logits(
        q.view(),
        k.view(),
        k_scale.view(),
        weights.view(),
        &case.vec_i32("ks")?,
        &case.vec_i32("ke")?,
        reference_score_fn(case)?,
    )?;
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

pub(super) fn run_indexer_logits_paged(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, weights) = (case.upload(device, "q")?, case.upload_rows(device, "weights")?);
    let keys = IndexKeys::Paged {
        cache: &case.upload_rows(device, "cache")?,
        page_size: case.scalar("page_size")?,
        block_table: &case.upload(device, "block_table")?,
        max_context: case.scalar("max_context")?,
    };
    let lens = case.upload(device, "context_lens")?;
    let logits = indexer::logits(&q, &weights, &keys, &Seen::Context(&lens), score_fn(case)?)?;
    Ok(outputs([("logits", HostTensor::download(&logits)?)]))
}

pub(super) fn reference_indexer_logits_paged(case: &Case) -> Result<Outputs, CaseError> {
    let q: Array4<f32> = case.array("q")?;
    let weights: Matrix = case.array("weights")?;
    let logits = reference::indexer::indexer_logits_paged(
        q.view(),
        case.array_u8("cache")?.view(),
        case.scalar("page_size")?,
        weights.view(),
        &case.vec_i32("context_lens")?,
        case.array_i32("block_table")?.view(),
        case.scalar("max_context")?,
        reference_score_fn(case)?,
    )?;
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

pub(super) fn run_top_k(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use top_k::Policy;
    let policy = match case.scalars.get("policy").map(String::as_str) {
        Some("fraction") => {
            Policy::Fraction { per_mille: case.scalar("per_mille")?, min: case.scalar("min")? }
        }
        Some("window") => {
            Policy::Window { window: case.scalar("window")?, sinks: case.scalar("sinks")? }
        }
        _ => Policy::Fixed,
    };
    let logits = case.upload_rows(device, "logits")?;
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let topk = case.scalar("topk")?;
    let pieces = match case.scalars.get("pieces") {
        Some(_) => Some(case.scalar("pieces")?),
        None => None,
    };
    let indices =
        top_k::top_k_in_pieces(&logits, &KeyRange { ks: &ks, ke: &ke }, topk, policy, pieces)?;
    Ok(outputs([("indices", HostTensor::download(&indices)?)]))
}

pub(super) fn reference_top_k(case: &Case) -> Result<Outputs, CaseError> {
    use reference::top_k::Policy;
    let policy = match case.scalars.get("policy").map(String::as_str) {
        Some("fraction") => {
            Policy::Fraction { per_mille: case.scalar("per_mille")?, min: case.scalar("min")? }
        }
        Some("window") => {
            Policy::Window { window: case.scalar("window")?, sinks: case.scalar("sinks")? }
        }
        _ => Policy::Fixed,
    };
    let logits: Matrix = case.array("logits")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let topk = case.scalar("topk")?;
    let indices = reference::top_k::top_k(logits.view(), &ks, &ke, topk, policy);
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("indices", HostTensor::i32(indices.shape(), &values))]))
}

pub(super) fn run_shift_indices(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (indices, first) = (case.upload(device, "indices")?, case.upload(device, "first")?);
    let out = top_k::shift_indices(&indices, &first)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_shift_indices(case: &Case) -> Result<Outputs, CaseError> {
    let (mut indices, first) = (case.array_i32("indices")?, case.vec_i32("first")?);
    for (mut row, first) in indices.axis_iter_mut(Axis(0)).zip(first) {
        row.iter_mut().filter(|index| **index >= 0).for_each(|index| *index += first);
    }
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("out", HostTensor::i32(indices.shape(), &values))]))
}
