//! The sum over a token's experts.

use super::dispatch::indices;
use super::gemm::{OUTS, out_dtype};
use super::*;
use dsa_kernels::combine::{self, COMBINE};
use dsa_kernels::dispatch::Dispatch;
use dsa_kernels::router::Routing;

pub(super) const KERNEL: Kernel = Kernel {
    name: COMBINE.name,
    contract: COMBINE,
    file: "combine.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * top_k * d",
    tolerance: tolerance::rounded,
    machine: combine::machine,
    launch: run,
    compute: reference,
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS, &paths::words(OUTS), SHARED]),
        of: runs,
        first: "y",
    },
    production,
    sample,
    bench: &[],
};

const SHARED: &[&str] = &["shared", "no shared"];

fn runs(case: &Case, _: &Device) -> Vec<&'static str> {
    let mut runs = paths::rows(case, &["y"]);
    let out = out_dtype(case).unwrap_or(DType::F32);
    runs.extend(OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path));
    runs.push(paths::either(case.tensors.contains_key("shared"), SHARED[0], SHARED[1]));
    runs
}

/// `case` with the order and the ends that [`dispatch`](reference::dispatch) gives its indices.
fn dispatched(case: Case, indices: HostTensor, experts: usize) -> Case {
    let (shape, values) = ([indices.shape[0], indices.shape[1]], indices.to_i32());
    let given = ndarray::Array2::from_shape_fn(shape, |(t, j)| values[t * shape[1] + j]);
    let lists = reference::dispatch::dispatch(given.view(), experts);
    case.with("indices", indices)
        .with("order", vector(&lists.order))
        .with("ends", vector(&lists.ends))
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let y = case.upload_rows(device, "y")?;
    let (indices, weights) = (case.upload(device, "indices")?, case.upload(device, "weights")?);
    let shared = match case.tensors.contains_key("shared") {
        true => Some(case.upload_rows(device, "shared")?),
        false => None,
    };
    let dispatch =
        Dispatch { order: case.upload(device, "order")?, ends: case.upload(device, "ends")? };
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
    let (order, ends) = (case.vec_i32("order")?, case.vec_i32("ends")?);
    let dispatch = reference::dispatch::Dispatch { order, ends };
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
        let case = dispatched(case, indices, form.experts);
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
        let case = dispatched(case, ints(&[v32::FEW, v32::EXPERTS_PER_TOKEN]), v32::EXPERTS);
        if shared { case.with("shared", zeros(dtype, &[v32::FEW, v32::HIDDEN])) } else { case }
    };
    vec![case(DType::Bf16, true), case(DType::F32, true), case(DType::Bf16, false)]
}

fn sample() -> Case {
    let case = Case::new(KERNEL.name)
        .with("y", floats(1, &[6, 20]))
        .with("weights", floats(2, &[3, 2]))
        .set("out", "f32");
    dispatched(case, HostTensor::i32(&[3, 2], &[4, 0, 2, 4, -1, 0]), 5)
}
