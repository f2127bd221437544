//! The Walsh-Hadamard rotation of rows.

use super::*;
use dsa_kernels::hadamard;

pub(super) const KERNEL: Kernel = Kernel {
    name: hadamard::HADAMARD.name,
    contract: hadamard::HADAMARD,
    file: "hadamard.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "rows * n * n",
    tolerance: tolerance::rounded,
    machine: hadamard::machine,
    launch: run,
    compute: reference,
    reference: ("hadamard", "reference/src/hadamard.rs"),
    forms,
    paths: Paths {
        all: |_| paths::FLOATS.to_vec(),
        of: |case, _| vec![paths::type_of(case, "x")],
        first: "x",
    },
    production: || vec![case(zeros(DType::Bf16, &[v32::FEW * v32::INDEX_HEADS, v32::INDEX_DIM]))],
    sample: || case(floats(1, &[3, 32])),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case(x: HostTensor) -> Case {
    Case::new(KERNEL.name).with("x", x)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    only("out", &hadamard::hadamard(&case.upload_rows(device, "x")?)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let out = HostTensor::of(&reference::hadamard::hadamard(x.view())?);
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

#[derive(Clone, Debug)]
struct Hadamard {
    rows: usize,
    log: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(rows, log, dtype, strided)| Hadamard { rows, log, dtype, strided };
    let random = (0usize..9, 0usize..9, float(), gap()).prop_map(form);
    let log = v32::INDEX_DIM.ilog2() as usize;
    let production = move |model: Model| {
        (Exactly(model.index_heads()), Exactly(log), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Hadamard, rng| {
        let fill = rng.choose(&ALL_FILLS);
        let x = tensor(rng, form.dtype, &[form.rows, 1 << form.log], fill);
        case(x).set("strided", form.strided)
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let of = OfRows::new(device, axes, seed)?;
    let (x, cut_x) = (of.x.clone(), of.x.clone());
    Ok(of.spec(
        KERNEL.name,
        (7 * of.elements(), 2 * of.bytes()),
        case(of.small.clone()),
        Box::new(move || Ok(one("out", hadamard::hadamard(&x)?))),
        Box::new(move |at, out| Ok((case(at.rows(&cut_x)?), at.outputs(out)?))),
    ))
}
