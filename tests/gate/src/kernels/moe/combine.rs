//! The sum over a token's experts.

use super::*;
use crate::generate::Exactly;
use dsa_kernels::combine::{self, COMBINE};
use dsa_kernels::dispatch::dispatch;
use dsa_kernels::router::Routing;

pub(super) const MOE: Moe = Moe {
    kernel: Kernel {
        name: COMBINE.name,
        file: "combine.rs",
        tensors: &[
            "y: [n * top_k, d] f32|bf16|f16",
            "indices: [n, top_k] i32",
            "weights: [n, top_k] f32",
            "shared: [n, d] as y (optional)",
        ],
        scalars: &["experts: integer 1 to 512", "out: f32|bf16|f16 (f32)", STRIDED],
        sizes: &["top_k: 1 to 512"],
        outputs: &["out: [n, d] as out"],
        scratch: "4 * (n * top_k + experts)",
        work: "n * top_k * (d + experts)",
        machine: combine::machine,
        launch: run,
        compute: reference,
    },
    forms,
    production,
    sample,
    paths: &[FLOATS, LOADS, &["to f32", "to bf16", "to f16"], &["shared", "no shared"]],
    paths_of: |case| {
        let mut paths = rows_by(case, "y", &["y"]);
        paths.push(match case.scalars.get("out").map(String::as_str) {
            Some("bf16") => "to bf16",
            Some("f16") => "to f16",
            _ => "to f32",
        });
        let shared = case.tensors.contains_key("shared");
        paths.push(if shared { "shared" } else { "no shared" });
        paths
    },
};

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
    Ok(outputs([("out", HostTensor::download(&out)?)]))
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
    let out = reference::combine::combine(y.view(), &dispatch, &routing, shared, &exact())?;
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
    let random = (sizes, 1usize..100, float(), float(), any::<bool>(), super::gap()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..4, Just(TOP_K), Just(EXPERTS));
        let hidden = Exactly(model.hidden());
        (sizes, hidden, float(), float(), Just(true), super::gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Combine, rng| {
        let pairs = form.n * form.top_k;
        let kind = rng.below(3);
        let mut rows = |n: usize| {
            let values: Vec<f32> = (0..n * form.d).map(|_| value(rng, kind, form.dtype)).collect();
            HostTensor::new(form.dtype, &[n, form.d], &values)
        };
        let (y, shared) = (rows(pairs), rows(form.n));
        let weights: Vec<f32> = (0..pairs).map(|_| weight(rng, kind)).collect();
        let case = Case::new(COMBINE.name)
            .with("y", y)
            .with("indices", indices(rng, form.n, form.top_k, form.experts))
            .with("weights", HostTensor::new(DType::F32, &[form.n, form.top_k], &weights))
            .set("experts", form.experts)
            .set("out", form.out)
            .set("strided", form.strided);
        if form.shared { case.with("shared", shared) } else { case }
    })
}

/// A term: in kind 0 whole numbers of which some are so large that f32 loses the others beside them, and whose
/// products with [`weight`] are exact, so that a sum is a matter of its order alone; otherwise positive numbers, which
/// do not cancel, in kind 2 with specials.
fn value(rng: &mut Rng, kind: usize, dtype: DType) -> f32 {
    let far = if dtype == DType::F16 { 4096.0 } else { 2f32.powi(26) };
    match kind {
        0 => (rng.below(5) as f32 - 2.0) * rng.choose(&[1.0, 1.0, far]),
        2 if rng.one_in(12) => rng.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]),
        _ => 0.5 + rng.normal().abs(),
    }
}

fn weight(rng: &mut Rng, kind: usize) -> f32 {
    match kind {
        0 => rng.choose(&[0.5, 1.0, 2.0]),
        2 if rng.one_in(8) => rng.choose(&[0.0, f32::NAN]),
        _ => rng.unit() * 2.5,
    }
}

fn production() -> Vec<Case> {
    let case = |dtype, shared| {
        let case = Case::new(COMBINE.name)
            .with("y", zeros(dtype, &[FEW * TOP_K, HIDDEN]))
            .with("indices", zeros(DType::I32, &[FEW, TOP_K]))
            .with("weights", zeros(DType::F32, &[FEW, TOP_K]))
            .set("experts", EXPERTS)
            .set("out", DType::Bf16);
        if shared { case.with("shared", zeros(dtype, &[FEW, HIDDEN])) } else { case }
    };
    vec![case(DType::Bf16, true), case(DType::F32, true), case(DType::Bf16, false)]
}

fn sample() -> Case {
    Case::new(COMBINE.name)
        .with("y", floats(1, &[6, 20]))
        .with("indices", HostTensor::i32(&[3, 2], &[4, 0, 2, 4, -1, 0]))
        .with("weights", floats(2, &[3, 2]))
        .with("shared", floats(3, &[3, 20]))
        .set("experts", 5)
        .set("out", "f32")
}
