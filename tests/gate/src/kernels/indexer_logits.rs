//! The indexer's scores of keys in rows.

use super::*;
use dsa_kernels::indexer::{self, IndexKeys, ScoreFn, logits};
use dsa_kernels::seen::{KeyRange, Seen};
use dsa_reference::indexer as expected;

pub(super) const KERNEL: Kernel = Kernel {
    name: indexer::LOGITS.name,
    contract: indexer::LOGITS,
    file: "indexer.rs",
    beside,
    made: &[],
    scratch: "0",
    work: "s * s_kv * H * D",
    tolerance: tolerance::scores,
    machine: |d| indexer::machine(d, DType::E4m3),
    launch: run,
    compute: reference,
    reference: ("indexer_logits", "reference/src/indexer.rs"),
    forms,
    paths: Paths {
        all: |_| {
            let scores = paths::words(ScoreFn::ALL);
            paths::joined(&[&["e4m3"], paths::FLOATS, paths::LOADS, &scores, GAPS, SEEN])
        },
        of: runs,
        first: "q",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: Some(room), spec }],
};

const GAPS: &[&str] = &["keys without gaps", "keys with gaps"];

pub(super) fn beside() -> Vec<ScalarLine> {
    vec![ScalarLine::choice("score_fn", ScoreFn::ALL), strided()]
}

fn runs(case: &Case, device: &Device) -> Vec<&'static str> {
    let dtype = paths::dtype(case, "q");
    vec![
        dtype.name(),
        paths::loads(case, indexer::machine(device, dtype), &["q", "k"]),
        paths::chosen(case, "score_fn", ScoreFn::ALL),
        paths::either(paths::gap(case, dtype) == 0, GAPS[0], GAPS[1]),
        paths::either(case.tensors.contains_key("ks"), SEEN[0], SEEN[1]),
    ]
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let (k_scale, weights) =
        (case.upload(device, "k_scale")?, case.upload_rows(device, "weights")?);
    let score_fn = choice(case, "score_fn", ScoreFn::ALL)?;
    let keys = IndexKeys::Rows { k: &k, k_scale: &k_scale };
    let by_context = case.tensors.contains_key("context_lens");
    with_seen(device, case, by_context, |seen| logits(&q, &weights, &keys, seen, score_fn))
}

/// The keys that each of the case's queries sees, `next_n` of each request: its range, or all of its request's context
/// but for its successors.
pub(super) fn seen(case: &Case, next_n: usize) -> Result<(Vec<i32>, Vec<i32>), CaseError> {
    let Some(lens) = case.tensors.get("context_lens") else {
        return Ok((case.vec_i32("ks")?, case.vec_i32("ke")?));
    };
    let ends: Vec<i32> = lens
        .to_i32()
        .iter()
        .flat_map(|len| (0..next_n).map(|i| (*len).max(0) - next_n as i32 + i as i32 + 1))
        .collect();
    Ok((vec![0; ends.len()], ends))
}

/// Runs `logits` with the keys that the case says are seen.
pub(super) fn with_seen(
    device: &Device,
    case: &Case,
    by_context: bool,
    logits: impl Fn(&Seen) -> dsa_kernels::Result<Tensor>,
) -> Result<Outputs, CaseError> {
    if by_context {
        return only("logits", &logits(&Seen::Context(&case.upload(device, "context_lens")?))?);
    }
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    only("logits", &logits(&Seen::Range(KeyRange { ks: &ks, ke: &ke }))?)
}

/// How a case says which keys are seen.
pub(super) const SEEN: &[&str] = &["ranges", "contexts"];

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Matrix) = (case.array("q")?, case.array("k")?);
    let (k_scale, weights): (Vector, Matrix) = (case.array("k_scale")?, case.array("weights")?);
    let (ks, ke) = seen(case, q.dim().0)?;
    let logits = expected::indexer_logits(
        q.view(),
        k.view(),
        k_scale.view(),
        weights.view(),
        &ks,
        &ke,
        choice(case, "score_fn", expected::ScoreFn::ALL)?,
    )?;
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

#[derive(Clone, Debug)]
struct Rows {
    /// Whether its keys are those of a context, or of a range for each token.
    by_context: bool,
    s: usize,
    s_kv: usize,
    heads: usize,
    dim: usize,
    dtype: DType,
    score_fn: &'static str,
    strided: &'static str,
}

pub(super) fn one_in_four() -> impl Strategy<Value = bool> {
    proptest::sample::select(&[false, false, false, true][..])
}

/// A context whose last `s` tokens are the queries, and which has about `s_kv`.
fn context(rng: &mut Rng, s: usize, s_kv: usize) -> i32 {
    let any = rng.below(s_kv + s + 2) as i32;
    rng.choose(&[s_kv as i32, any, any, 0, -1, i32::MIN, i32::MAX])
}

fn forms() -> Forms {
    const TYPES: [DType; 4] = [DType::E4m3, DType::Bf16, DType::F16, DType::F32];
    let form = |((s, by_context), s_kv, heads, dim, dtype, score_fn, strided)| Rows {
        by_context,
        s,
        s_kv,
        heads,
        dim,
        dtype,
        score_fn,
        strided,
    };
    let dtype = || proptest::sample::select(&TYPES[..]);
    let sizes = (0usize..7, 0usize..90, 1usize..=128, 1usize..=160);
    let random = (
        (sizes.0, one_in_four()),
        sizes.1,
        sizes.2,
        sizes.3,
        dtype(),
        word_of(ScoreFn::ALL),
        gap(),
    )
        .prop_map(form);
    let production = move |model: Model| {
        let (heads, dim) = (Exactly(model.index_heads()), Exactly(v32::INDEX_DIM));
        ((1usize..5, one_in_four()), 1usize..200, heads, dim, dtype(), word_of(ScoreFn::ALL), gap())
            .prop_map(form)
    };
    Forms::new(random, production, |form: &Rows, rng| {
        const FILLS: [Fill; 4] = [Fill::Normal, Fill::Ties, Fill::Zeros, Fill::Outliers];
        let (s, s_kv, heads, dim, dtype) = (form.s, form.s_kv, form.heads, form.dim, form.dtype);
        let fill = rng.choose(&FILLS);
        let case = match form.by_context {
            true => Case::new(KERNEL.name).with("context_lens", vector(&[context(rng, s, s_kv)])),
            false => {
                let (ks, ke) = ranges(rng, s, s_kv);
                Case::new(KERNEL.name).with("ks", ks).with("ke", ke)
            }
        };
        let mut k_scale = tensor(rng, DType::F32, &[s_kv], Fill::Normal).to_f32();
        let mut k = tensor(rng, dtype, &[s_kv, dim], fill);
        // Keys beyond the union of the ranges must not be read, nor may their NaN show.
        let (starts, ends) = seen(&case, s).unwrap_or_default();
        let inside =
            |n: usize| starts.iter().zip(&ends).any(|(a, b)| *a <= n as i32 && (n as i32) < *b);
        for (n, scale) in k_scale.iter_mut().enumerate() {
            if !inside(n) {
                let bytes = dim * dtype.size();
                k.bytes[n * bytes..(n + 1) * bytes].fill(0xff);
                *scale = f32::NAN;
            } else if rng.one_in(60) {
                *scale = f32::NAN;
            }
        }
        let mut q = tensor(rng, dtype, &[s, heads, dim], fill);
        let mut weights = tensor(rng, DType::F32, &[s, heads], Fill::Normal);
        if rng.one_in(4) {
            // A sigmoid of a product far below 0 is 0 in f32 where it is not in f64: no infinity times that.
            weights = crate::generate::extreme::even(rng, DType::F16, &[s, heads]).cast(DType::F32);
            if form.score_fn == "relu" {
                weights = crate::generate::extreme::rows_within(rng, DType::F32, &[s, heads], 20);
                // Products of up to 2^40, and sums of their weighted heads of up to 2^70: in range in any order,
                // before the scale as after it.
                q = crate::generate::extreme::rows_within(rng, dtype, &[s, heads, dim], 20);
                let keys = crate::generate::extreme::rows_within(rng, dtype, &[s_kv, dim], 20);
                let bytes = dim * dtype.size();
                for n in (0..s_kv).filter(|n| inside(*n)) {
                    let row = n * bytes..(n + 1) * bytes;
                    k.bytes[row.clone()].copy_from_slice(&keys.bytes[row]);
                }
            }
        }
        case.with("q", q)
            .with("k", k)
            .with("k_scale", HostTensor::new(DType::F32, &[s_kv], &k_scale))
            .with("weights", weights)
            .set("score_fn", form.score_fn)
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    [DType::E4m3, DType::Bf16, DType::F16]
        .map(|dtype| {
            Case::new(KERNEL.name)
                .with("q", zeros(dtype, &[16, v32::INDEX_HEADS, v32::INDEX_DIM]))
                .with("k", zeros(dtype, &[256, v32::INDEX_DIM]))
                .with("k_scale", zeros(DType::F32, &[256]))
                .with("weights", zeros(DType::F32, &[16, v32::INDEX_HEADS]))
                .with("ks", ints(&[16]))
                .with("ke", ints(&[16]))
        })
        .into()
}

fn sample() -> Case {
    let rng = &mut Rng::new(1);
    Case::new(KERNEL.name)
        .with("q", tensor(rng, DType::E4m3, &[3, 4, 32], Fill::Normal))
        .with("k", tensor(rng, DType::E4m3, &[9, 32], Fill::Normal))
        .with("k_scale", floats(2, &[9]))
        .with("weights", floats(3, &[3, 4]))
        .with("ks", vector(&[0, 2, 3]))
        .with("ke", vector(&[9, 5, 3]))
        .set("score_fn", "relu")
}

/// Bytes of the queries of `rows` tokens.
pub(super) fn room_of_queries(axes: &Axes, rows: usize) -> u128 {
    bytes_of(&[rows, axes.index_heads, v32::INDEX_DIM + 4])
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let keys = bytes_of(&[context, v32::INDEX_DIM + 4]);
    (room_of_queries(axes, axes.s_q) + keys, bytes_of(&[4, axes.s_q, context]))
}

/// The scores of a chunk.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (s, heads, dtype) = (axes.s_q, axes.index_heads, DType::E4m3);
    let q = random(device, dtype, &[s, heads, v32::INDEX_DIM], seed)?;
    let k = random(device, dtype, &[context, v32::INDEX_DIM], seed + 1)?;
    let k_scale = random(device, DType::F32, &[context], seed + 2)?;
    let weights = random(device, DType::F32, &[s, heads], seed + 3)?;
    let (ks, ke) = (vec_i32(device, &vec![0; s])?, vec_i32(device, &vec![context as i32; s])?);
    let mut rng = Rng::new(seed);
    let gate = Case::new(KERNEL.name)
        .with("q", tensor(&mut rng, dtype, &[3, heads, v32::INDEX_DIM], Fill::Normal))
        .with("k", tensor(&mut rng, dtype, &[150, v32::INDEX_DIM], Fill::Normal))
        .with("k_scale", tensor(&mut rng, DType::F32, &[150], Fill::Normal))
        .with("weights", tensor(&mut rng, DType::F32, &[3, heads], Fill::Normal))
        .with("ks", HostTensor::i32(&[3], &[0, 3, 100]))
        .with("ke", HostTensor::i32(&[3], &[150, 140, 100]));
    let inputs = [&q, &k, &k_scale, &weights, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", s), ("s_kv", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * s * context * heads * v32::INDEX_DIM) as u64,
        bytes: (context * (v32::INDEX_DIM + 4) + s * heads * (v32::INDEX_DIM + 4) + 4 * s * context)
            as u64,
        gate,
        work: Box::new(move || {
            let keys = IndexKeys::Rows { k: &k, k_scale: &k_scale };
            let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
            Ok(one("logits", logits(&q, &weights, &keys, &seen, ScoreFn::default())?))
        }),
        timed: Timed {
            rows: s,
            heads: 1,
            cost: context * heads * v32::INDEX_DIM,
            cut: Box::new(move |at, out| {
                let [q, k, k_scale, weights, ks, ke] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows(q)?)
                    .with("k", at.whole(k)?)
                    .with("k_scale", at.whole(k_scale)?)
                    .with("weights", at.rows(weights)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
