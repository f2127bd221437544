//! The residual's addition and the norm behind it.

use super::rms_norm::EPS;
use super::*;
use dsa_kernels::add_norm::{self, ADD_RMS_NORM};

pub(super) const KERNEL: Kernel = Kernel {
    name: ADD_RMS_NORM.name,
    contract: ADD_RMS_NORM,
    file: "add_norm.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * d",
    tolerance,
    machine: add_norm::machine,
    launch: run,
    compute: reference,
    reference: ("add_rms_norm", "reference/src/add_norm.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS]),
        of: |case, _| paths::rows(case, &["x", "residual"]),
        first: "x",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

/// A sum of two is rounded once.
fn tolerance(unit: MatrixUnit, output: &str, dtype: DType) -> Tolerance {
    let kind = if output == "new_residual" { tolerance::exact } else { tolerance::rounded };
    kind(unit, output, dtype)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, residual) = (case.upload_rows(device, "x")?, case.upload_rows(device, "residual")?);
    let weight = case.upload(device, "weight")?;
    let (y, new) = add_norm::add_rms_norm(&x, &residual, &weight, case.scalar("eps")?)?;
    let (y, new) = (HostTensor::download(&y)?, HostTensor::download(&new)?);
    Ok(outputs([("y", y), ("new_residual", new)]))
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, residual): (Matrix, Matrix) = (case.array("x")?, case.array("residual")?);
    let (weight, eps): (Vector, f32) = (case.array("weight")?, case.scalar("eps")?);
    let (y, new) = reference::add_norm::add_rms_norm(
        x.view(),
        residual.view(),
        weight.view(),
        eps.into(),
        &unrounded(),
    )?;
    let dtype = case.tensor("x")?.dtype;
    let (y, new) = (HostTensor::of(&y).cast(dtype), HostTensor::of(&new).cast(dtype));
    Ok(outputs([("y", y), ("new_residual", new)]))
}

#[derive(Clone, Debug)]
struct AddNorm {
    n: usize,
    d: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, d, dtype, strided)| AddNorm { n, d, dtype, strided };
    let random = (0usize..9, 1usize..300, float(), gap()).prop_map(form);
    let production =
        move |model: Model| (1usize..4, Exactly(model.hidden()), float(), gap()).prop_map(form);
    Forms::new(random, production, |form: &AddNorm, rng| {
        let (shape, dtype) = ([form.n, form.d], form.dtype);
        let fill = rng.choose(&[Fill::Normal, Fill::Tenth, Fill::Outliers, Fill::Extreme]);
        let mut x = tensor(rng, dtype, &shape, fill);
        let mut residual = tensor(rng, dtype, &shape, fill);
        let mut eps = rng.choose(&[1e-6, 1e-5, 1e-2]);
        let mut weight = tensor(rng, DType::F32, &[form.d], Fill::Normal);
        match fill {
            Fill::Extreme => {
                eps = rng.choose(&[1e-6, 1e-30, 0.0]);
                weight = crate::generate::extreme::even(rng, DType::F32, &[form.d]);
            }
            // Sums that f16 does not hold, and the norm of which is ordinary.
            Fill::Outliers if dtype == DType::F16 => {
                let mut far = || 33_000.0 + 1_000.0 * rng.unit();
                let values: Vec<f32> = (0..form.n * form.d).map(|_| far()).collect();
                x = HostTensor::new(dtype, &shape, &values);
                residual = x.clone();
            }
            _ => {}
        }
        Case::new(KERNEL.name)
            .with("x", x)
            .with("residual", residual)
            .with("weight", weight)
            .set("eps", eps)
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let rows = || zeros(DType::Bf16, &[v32::FEW, v32::HIDDEN]);
    let case = Case::new(KERNEL.name).with("x", rows()).with("residual", rows());
    vec![case.with("weight", zeros(DType::F32, &[v32::HIDDEN])).set("eps", EPS)]
}

fn sample() -> Case {
    Case::new(KERNEL.name)
        .with("x", floats(1, &[3, 20]))
        .with("residual", floats(2, &[3, 20]))
        .with("weight", floats(3, &[20]))
        .set("eps", EPS)
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, d, dtype) = (axes.s_q, v32::HIDDEN, axes.dtype);
    let rng = &mut Rng::new(seed);
    let [x, residual] =
        [random(device, dtype, &[n, d], seed)?, random(device, dtype, &[n, d], seed + 1)?];
    let weight = random(device, DType::F32, &[d], seed + 2)?;
    let gate = Case::new(KERNEL.name)
        .with("x", tensor(rng, dtype, &[3, d], Fill::Normal))
        .with("residual", tensor(rng, dtype, &[3, d], Fill::Normal))
        .with("weight", floats(seed, &[d]))
        .set("eps", EPS);
    let inputs = [x.clone(), residual.clone(), weight.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("d", d)]),
        dtype: dtype.to_string(),
        flop: (6 * n * d) as u64,
        bytes: (4 * n * d * dtype.size() + 4 * d) as u64,
        gate,
        work: Box::new(move || {
            let (y, new_residual) = add_norm::add_rms_norm(&x, &residual, &weight, EPS)?;
            Ok(vec![("y", y), ("new_residual", new_residual)])
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: d,
            cut: Box::new(move |at, out| {
                let [x, residual, weight] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("x", at.rows(x)?)
                    .with("residual", at.rows(residual)?)
                    .with("weight", at.whole(weight)?)
                    .set("eps", EPS);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
