//! SwiGLU.

use super::*;
use dsa_kernels::swiglu::{self, SWIGLU};

pub(super) const KERNEL: Kernel = Kernel {
    name: SWIGLU.name,
    contract: SWIGLU,
    file: "swiglu.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * dim",
    tolerance: tolerance::rounded,
    machine: swiglu::machine,
    launch: run,
    compute: reference,
    reference: ("swiglu", "reference/src/swiglu.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS]),
        of: |case, _| paths::rows(case, &["gate", "up"]),
        first: "gate",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (gate, up) = (case.upload_rows(device, "gate")?, case.upload_rows(device, "up")?);
    only("out", &swiglu::swiglu(&gate, &up)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (gate, up): (Matrix, Matrix) = (case.array("gate")?, case.array("up")?);
    let out = reference::swiglu::swiglu(gate.view(), up.view(), &unrounded())?;
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
        move |_: Model| (1usize..4, Exactly(v32::INTERMEDIATE), float(), gap()).prop_map(form);
    Forms::new(random, production, |form: &Swiglu, rng| {
        let (shape, dtype) = ([form.n, form.dim], form.dtype);
        // Products that neither leave the type's normal numbers nor cancel: what is lost below them is a matter of
        // how often one rounds.
        let within = if dtype == DType::F16 { 6 } else { 40 };
        let (gate, up) = match rng.below(4) {
            0 => {
                let gate = crate::generate::extreme::rows_within(rng, dtype, &shape, within);
                (gate, crate::generate::extreme::rows_within(rng, dtype, &shape, within))
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
        Case::new(KERNEL.name).with("gate", gate).with("up", up).set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let rows = || zeros(DType::Bf16, &[v32::FEW, v32::INTERMEDIATE]);
    vec![Case::new(KERNEL.name).with("gate", rows()).with("up", rows())]
}

fn sample() -> Case {
    Case::new(KERNEL.name).with("gate", floats(1, &[3, 20])).with("up", floats(2, &[3, 20]))
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, dim, dtype) = (axes.s_q, v32::INTERMEDIATE, axes.dtype);
    let rng = &mut Rng::new(seed);
    let gates = random(device, dtype, &[n, dim], seed)?;
    let up = random(device, dtype, &[n, dim], seed + 1)?;
    let gate = Case::new(KERNEL.name)
        .with("gate", tensor(rng, dtype, &[3, dim], Fill::Normal))
        .with("up", tensor(rng, dtype, &[3, dim], Fill::Normal));
    let inputs = [gates.clone(), up.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("dim", dim)]),
        dtype: dtype.to_string(),
        flop: (20 * n * dim) as u64,
        bytes: (3 * n * dim * dtype.size()) as u64,
        gate,
        work: Box::new(move || Ok(one("out", swiglu::swiglu(&gates, &up)?))),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: dim,
            cut: Box::new(move |at, out| {
                let [gate, up] = &inputs;
                let case = Case::new(KERNEL.name).with("gate", at.rows(gate)?);
                Ok((case.with("up", at.rows(up)?), at.outputs(out)?))
            }),
        },
    })
}
