//! The sum over a token's experts.

use super::dispatch::indices;
use super::gemm::{OUTS, out_dtype};
use super::*;
use dsa_kernels::combine::{self, COMBINE};
use dsa_kernels::dispatch::dispatch;
use dsa_kernels::router::Routing;

pub(super) const KERNEL: Kernel = Kernel {
    name: COMBINE.name,
    // A case holds the indices; the launcher takes what dispatch makes of them, too.
    contract: Contract {
        name: "combine, of indices",
        tensors: &[COMBINE.tensors[0], COMBINE.tensors[3], COMBINE.tensors[4], COMBINE.tensors[5]],
        scalars: &["experts: integer 1 to 512", COMBINE.scalars[0]],
        sizes: &[COMBINE.sizes[0]],
        ..COMBINE
    },
    file: "combine.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "4 * (n * top_k + experts)",
    work: "n * top_k * (d + experts)",
    tolerance: tolerance::rounded,
    machine: combine::machine,
    launch: run,
    compute: reference,
    reference: ("combine", "reference/src/combine.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS, &paths::words(OUTS), SHARED]),
        of: runs,
        first: "y",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

const SHARED: &[&str] = &["shared", "no shared"];

fn runs(case: &Case, _: &Device) -> Vec<&'static str> {
    let mut runs = paths::rows(case, &["y"]);
    let out = out_dtype(case).unwrap_or(DType::F32);
    runs.extend(OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path));
    runs.push(paths::either(case.tensors.contains_key("shared"), SHARED[0], SHARED[1]));
    runs
}

/// The rows of y lie in the order that `dispatch` gives the indices.
fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let y = case.upload_rows(device, "y")?;
    let (indices, weights) = (case.upload(device, "indices")?, case.upload(device, "weights")?);
    let shared = match case.tensors.contains_key("shared") {
        true => Some(case.upload_rows(device, "shared")?),
        false => None,
    };
    let dispatch = dispatch(&indices, case.scalar("experts")?)?;
    let routing = Routing { indices, weights };
    let out = combine::combine(&y, &dispatch, &routing, shared.as_ref(), out_dtype(case)?)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (y, weights): (Matrix, Matrix) = (case.array("y")?, case.array("weights")?);
    let shared: Option<Matrix> = match case.tensors.contains_key("shared") {
        true => Some(case.array("shared")?),
        false => None,
    };
    let indices = case.array_i32("indices")?;
    let dispatch = reference::dispatch::dispatch(indices.view(), case.scalar("experts")?);
    let routing = reference::router::Routing { indices, weights };
    let shared = shared.as_ref().map(|shared| shared.view());
    let out = reference::combine::combine(y.view(), &dispatch, &routing, shared, &unrounded())?;
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

#[derive(Clone, Debug)]
struct Combine {
    n: usize,
    top_k: usize,
    experts: usize,
    d: usize,
    dtype: DType,
    out: DType,
    shared: bool,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |((n, top_k, experts), d, dtype, out, shared, strided)| Combine {
        n,
        top_k,
        experts,
        d,
        dtype,
        out,
        shared,
        strided,
    };
    let experts = prop_oneof![1usize..20, Just(2), Just(512)];
    let sizes = (0usize..9, 1usize..9, experts);
    let random = (sizes, 1usize..100, float(), float(), any::<bool>(), gap()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..4, Just(v32::EXPERTS_PER_TOKEN), Just(v32::EXPERTS));
        let hidden = Exactly(model.hidden());
        (sizes, hidden, float(), float(), Just(true), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Combine, rng| {
        let pairs = form.n * form.top_k;
        let kind = rng.below(3);
        let indices = indices(rng, form.n, form.top_k, form.experts);
        let far =
            if kind == 0 { far(rng, form.dtype, &indices, form.experts) } else { vec![0.0; pairs] };
        let mut rows = |far: &[f32]| {
            let of = far.iter().flat_map(|far| std::iter::repeat_n(*far, form.d));
            let values: Vec<f32> = of.map(|far| value(rng, kind, far)).collect();
            HostTensor::new(form.dtype, &[far.len(), form.d], &values)
        };
        let (y, shared) = (rows(&far), rows(&vec![0.0; form.n]));
        let weights: Vec<f32> = (0..pairs).map(|_| weight(rng, kind)).collect();
        let case = Case::new(KERNEL.name)
            .with("y", y)
            .with("weights", HostTensor::new(DType::F32, &[form.n, form.top_k], &weights))
            .set("out", form.out)
            .set("strided", form.strided);
        let case = case.with("indices", indices).set("experts", form.experts);
        if form.shared { case.with("shared", shared) } else { case }
    })
}

/// For each row of y 0, or what is in all of its columns: of a token's pairs one has a number beside which f32 loses
/// small ones, and another has its negative. So it is a matter of the order which of the others are left.
fn far(rng: &mut Rng, dtype: DType, indices: &HostTensor, experts: usize) -> Vec<f32> {
    let (n, top_k) = (indices.shape[0], indices.shape[1]);
    // The largest power of two that an f16 holds: f32 loses nothing beside it, but the sum cancels.
    let far = if dtype == DType::F16 { 2f32.powi(15) } else { 2f32.powi(30) };
    let mut of_pair = vec![0.0; n * top_k];
    for of_token in of_pair.chunks_mut(top_k).filter(|_| top_k > 1) {
        let first = rng.below(top_k);
        let second = (first + 1 + rng.below(top_k - 1)) % top_k;
        (of_token[first], of_token[second]) = (far, -far);
    }
    // Rows are in the order of the experts.
    let expert = |index: i32| usize::try_from(index).unwrap_or(experts).min(experts);
    let of: Vec<usize> = indices.to_i32().into_iter().map(expert).collect();
    let mut order: Vec<usize> = (0..of.len()).collect();
    order.sort_by_key(|pair| of[*pair]);
    order.into_iter().map(|pair| of_pair[pair]).collect()
}

/// A term: in kind 0 `far`, or else a small whole number; otherwise positive numbers, which do not cancel, in kind 2
/// with specials.
fn value(rng: &mut Rng, kind: usize, far: f32) -> f32 {
    match kind {
        0 if far != 0.0 => far,
        0 => rng.below(5) as f32 - 2.0,
        2 if rng.one_in(12) => rng.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]),
        _ => 0.5 + rng.normal().abs(),
    }
}

/// A weight: in kind 0 one with which products are exact.
fn weight(rng: &mut Rng, kind: usize) -> f32 {
    match kind {
        0 => 1.0,
        2 if rng.one_in(8) => rng.choose(&[0.0, f32::NAN]),
        _ => rng.unit() * 2.5,
    }
}

fn production() -> Vec<Case> {
    let case = |dtype, shared| {
        let case = Case::new(KERNEL.name)
            .with("y", zeros(dtype, &[v32::FEW * v32::EXPERTS_PER_TOKEN, v32::HIDDEN]))
            .with("weights", zeros(DType::F32, &[v32::FEW, v32::EXPERTS_PER_TOKEN]))
            .set("out", DType::Bf16);
        let case = case
            .with("indices", ints(&[v32::FEW, v32::EXPERTS_PER_TOKEN]))
            .set("experts", v32::EXPERTS);
        if shared { case.with("shared", zeros(dtype, &[v32::FEW, v32::HIDDEN])) } else { case }
    };
    vec![case(DType::Bf16, true), case(DType::F32, true), case(DType::Bf16, false)]
}

fn sample() -> Case {
    Case::new(KERNEL.name)
        .with("y", floats(1, &[6, 20]))
        .with("indices", HostTensor::i32(&[3, 2], &[4, 0, 2, 4, -1, 0]))
        .with("weights", floats(2, &[3, 2]))
        .set("experts", 5)
        .set("out", "f32")
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, top_k, experts) = (axes.s_q, v32::EXPERTS_PER_TOKEN, v32::EXPERTS);
    let (d, dtype, rng) = (56 * axes.heads, axes.dtype, &mut Rng::new(seed));
    let y = random(device, dtype, &[n * top_k, d], seed)?;
    let shared = random(device, dtype, &[n, d], seed + 1)?;
    // Positive, so that few sums cancel.
    let weights: Vec<f32> = (0..n * top_k).map(|_| 0.1 + rng.unit()).collect();
    let weights = device.upload_f32(&weights, &[n, top_k], DType::F32)?;
    let listed: Vec<i32> = (0..n * top_k).map(|_| rng.below(experts) as i32).collect();
    let indices = device.upload_i32(&listed, &[n, top_k])?;
    let dispatch = dispatch(&indices, experts)?;
    let place = places(&listed);
    let gate = Case::new(KERNEL.name)
        .with("y", tensor(rng, dtype, &[2 * top_k, d], Fill::Normal))
        .with("indices", HostTensor::i32(&[2, top_k], &vec![3; 2 * top_k]))
        .with("weights", floats(seed, &[2, top_k]))
        .with("shared", tensor(rng, dtype, &[2, d], Fill::Normal))
        .set("experts", experts)
        .set("out", dtype);
    let routing = Routing { indices, weights };
    let inputs = [y.clone(), shared.clone(), routing.indices.clone(), routing.weights.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("top_k", top_k), ("d", d)]),
        dtype: dtype.to_string(),
        flop: (2 * n * top_k * d) as u64,
        bytes: ((n * top_k + 2 * n) * d * dtype.size() + 12 * n * top_k) as u64,
        gate,
        work: Box::new(move || {
            let out = combine::combine(&y, &dispatch, &routing, Some(&shared), dtype)?;
            Ok(one("out", out))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: top_k * d,
            cut: Box::new(move |at, out| {
                let [y, shared, indices, weights] = &inputs;
                // The rows of y that are the drawn tokens', in the order that a dispatch of these alone has.
                let pairs = at.rows.iter().flat_map(|token| token * top_k..(token + 1) * top_k);
                let mut rows: Vec<usize> = pairs.map(|pair| place[pair]).collect();
                rows.sort_unstable();
                let y = Drawn { device: at.device, rows, heads: 0..1 }.rows(y)?;
                let case = Case::new(KERNEL.name)
                    .with("y", y)
                    .with("indices", at.rows(indices)?)
                    .with("weights", at.rows(weights)?)
                    .with("shared", at.rows(shared)?)
                    .set("experts", experts)
                    .set("out", dtype);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

/// The place of each pair in the order of its experts.
fn places(experts: &[i32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..experts.len()).collect();
    order.sort_by_key(|pair| experts[*pair]);
    let mut places = vec![0; order.len()];
    for (place, pair) in order.into_iter().enumerate() {
        places[pair] = place;
    }
    places
}
