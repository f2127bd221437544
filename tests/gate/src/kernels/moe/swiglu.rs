//! SwiGLU.

use super::*;
use crate::generate::{Exactly, extreme};
use dsa_kernels::swiglu::{self, SWIGLU};

pub(super) const MOE: Moe = Moe {
    kernel: Kernel {
        name: SWIGLU.name,
        file: "swiglu.rs",
        tensors: &["gate: [n, dim] f32|bf16|f16", "up: [n, dim] as gate"],
        scalars: &[STRIDED],
        sizes: &[],
        outputs: &["out: [n, dim] as gate"],
        scratch: "0",
        work: "n * dim",
        machine: swiglu::machine,
        launch: run,
        compute: reference,
    },
    forms,
    production,
    sample,
    paths: &[FLOATS, LOADS],
    paths_of: |case| rows_by(case, "gate", &["gate", "up"]),
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (gate, up) = (case.upload_rows(device, "gate")?, case.upload_rows(device, "up")?);
    Ok(outputs([("out", HostTensor::download(&swiglu::swiglu(&gate, &up)?)?)]))
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (gate, up): (Matrix, Matrix) = (case.array("gate")?, case.array("up")?);
    let out = reference::swiglu::swiglu(gate.view(), up.view(), &exact())?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("gate")?.dtype))]))
}

#[derive(Clone, Debug)]
struct Swiglu {
    n: usize,
    dim: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, dim, dtype, strided)| Swiglu { n, dim, dtype, strided };
    let random = (0usize..9, 1usize..300, float(), gap()).prop_map(form);
    let production =
        move |_: Model| (1usize..4, Exactly(INTERMEDIATE), float(), gap()).prop_map(form);
    Forms::new(random, production, |form: &Swiglu, rng| {
        let (shape, dtype) = ([form.n, form.dim], form.dtype);
        // Products that neither leave the type's normal numbers nor cancel: what is lost below them is a matter of
        // how often one rounds.
        let within = if dtype == DType::F16 { 6 } else { 40 };
        let (gate, up) = match rng.below(4) {
            0 => {
                let gate = extreme::rows_within(rng, dtype, &shape, within);
                (gate, extreme::rows_within(rng, dtype, &shape, within))
            }
            // Gates of any size, also those whose silu is next to nothing.
            1 => {
                let values: Vec<f32> =
                    (0..form.n * form.dim).map(|_| 60.0 * rng.normal()).collect();
                let gate = HostTensor::new(dtype, &shape, &values);
                (gate, tensor(rng, dtype, &shape, Fill::Special))
            }
            2 => {
                let gate = tensor(rng, dtype, &shape, Fill::Extreme);
                (gate, tensor(rng, dtype, &shape, Fill::Normal))
            }
            _ => {
                let gate = tensor(rng, dtype, &shape, Fill::Normal);
                (gate, tensor(rng, dtype, &shape, Fill::Outliers))
            }
        };
        Case::new(SWIGLU.name).with("gate", gate).with("up", up).set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let rows = || zeros(DType::Bf16, &[FEW, INTERMEDIATE]);
    vec![Case::new(SWIGLU.name).with("gate", rows()).with("up", rows())]
}

fn sample() -> Case {
    Case::new(SWIGLU.name).with("gate", floats(1, &[3, 20])).with("up", floats(2, &[3, 20]))
}
