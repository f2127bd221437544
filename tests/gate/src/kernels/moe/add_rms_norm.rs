//! The residual's addition and the norm behind it.

use super::*;
use crate::generate::{Exactly, extreme};
use dsa_kernels::add_norm::{self, ADD_RMS_NORM};

pub(super) const MOE: Moe = Moe {
    kernel: Kernel {
        name: ADD_RMS_NORM.name,
        file: "add_norm.rs",
        tensors: &["x: [n, d] f32|bf16|f16", "residual: [n, d] as x", "weight: [d] f32"],
        scalars: &["eps: number at least 0", STRIDED],
        sizes: &[],
        outputs: &["y: [n, d] as x", "new_residual: [n, d] as x"],
        scratch: "0",
        work: "n * d",
        machine: add_norm::machine,
        launch: run,
        compute: reference,
    },
    forms,
    production,
    sample,
    paths: &[FLOATS, LOADS],
    paths_of: |case| rows_by(case, "x", &["x", "residual"]),
};

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
        &exact(),
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
                weight = extreme::even(rng, DType::F32, &[form.d]);
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
        Case::new(ADD_RMS_NORM.name)
            .with("x", x)
            .with("residual", residual)
            .with("weight", weight)
            .set("eps", eps)
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let rows = || zeros(DType::Bf16, &[FEW, HIDDEN]);
    let case = Case::new(ADD_RMS_NORM.name).with("x", rows()).with("residual", rows());
    vec![case.with("weight", zeros(DType::F32, &[HIDDEN])).set("eps", 1e-6)]
}

fn sample() -> Case {
    Case::new(ADD_RMS_NORM.name)
        .with("x", floats(1, &[3, 20]))
        .with("residual", floats(2, &[3, 20]))
        .with("weight", floats(3, &[20]))
        .set("eps", 1e-6)
}
