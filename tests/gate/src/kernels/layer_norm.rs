//! Layer norm.

use super::rms_norm::{EPS, PATHS, forms};
use super::*;
use dsa_kernels::norm;

pub(super) const KERNEL: Kernel = Kernel {
    name: norm::LAYER_NORM.name,
    contract: norm::LAYER_NORM,
    file: "norm.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "rows * cols",
    tolerance: tolerance::rounded,
    machine: norm::machine,
    launch: run,
    compute: reference,
    reference: ("layer_norm", "reference/src/norm.rs"),
    forms: || forms(KERNEL.name, |_| v32::INDEX_DIM, true),
    paths: PATHS,
    production: || {
        let x = zeros(DType::Bf16, &[v32::FEW, v32::INDEX_DIM]);
        vec![case(x, [zeros(DType::F32, &[v32::INDEX_DIM]), zeros(DType::F32, &[v32::INDEX_DIM])])]
    },
    sample: || case(floats(1, &[3, 20]), [floats(2, &[20]), floats(3, &[20])]),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case(x: HostTensor, [weight, bias]: [HostTensor; 2]) -> Case {
    Case::new(KERNEL.name).with("x", x).with("weight", weight).with("bias", bias).set("eps", EPS)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let bias = case.upload(device, "bias")?;
    let out = norm::layer_norm(&x, &weight, &bias, case.scalar("eps")?)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let bias: Vector = case.array("bias")?;
    let eps = case.scalar("eps")?;
    let out = reference::norm::layer_norm(x.view(), weight.view(), bias.view(), eps)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let of = OfRows::new(device, axes, seed)?;
    let (x, cut_x) = (of.x.clone(), of.x.clone());
    let of_cols = |seed| random(device, DType::F32, &[v32::INDEX_DIM], seed);
    let (weight, bias) = (of_cols(1)?, of_cols(2)?);
    let cut = [weight.clone(), bias.clone()];
    let small = [floats(seed, &[v32::INDEX_DIM]), floats(seed + 1, &[v32::INDEX_DIM])];
    Ok(of.spec(
        KERNEL.name,
        (6 * of.elements(), 2 * of.bytes()),
        case(of.small.clone(), small),
        Box::new(move || Ok(one("out", norm::layer_norm(&x, &weight, &bias, EPS)?))),
        Box::new(move |at, out| {
            let [weight, bias] = &cut;
            let of_cols = [at.whole(weight)?, at.whole(bias)?];
            Ok((case(at.rows(&cut_x)?, of_cols), at.outputs(out)?))
        }),
    ))
}
