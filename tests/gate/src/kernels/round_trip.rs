//! Activations quantised and dequantised.

use super::act_quant::{PATHS, beside, forms, quantised};
use super::*;
use dsa_kernels::quant::{self, ScaleFmt};

pub(super) const KERNEL: Kernel = Kernel {
    name: quant::ROUND_TRIP.name,
    contract: quant::ROUND_TRIP,
    file: "quant.rs",
    beside,
    made: &["out"],
    scratch: "0",
    work: "rows * cols",
    tolerance: tolerance::exact,
    machine: quant::machine,
    launch: run,
    compute: reference,
    reference: ("act_quant", "reference/src/quant.rs"),
    forms: || forms(KERNEL.name),
    paths: PATHS,
    production: || vec![case(zeros(DType::Bf16, &[v32::FEW, v32::KV_LORA_RANK]))],
    sample: || case(floats(1, &[3, 130])),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case(x: HostTensor) -> Case {
    Case::new(KERNEL.name).with("x", x).set("fmt", "ue8m0")
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let fmt = choice(case, "fmt", ScaleFmt::ALL)?;
    let x = case.upload_rows(device, "x")?;
    let out = out_like(device, case, &x)?;
    quant::round_trip(&x, &out, fmt)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let out = HostTensor::of(&quantised(case)?.dequantise());
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let of = OfRows::new(device, axes, seed)?;
    let (x, cut_x) = (of.x.clone(), of.x.clone());
    let out = device.empty(x.shape(), x.dtype())?;
    Ok(of.spec(
        KERNEL.name,
        (4 * of.elements(), 2 * of.bytes()),
        case(of.small.clone()),
        Box::new(move || {
            quant::round_trip(&x, &out, ScaleFmt::Ue8m0)?;
            Ok(one("out", out.clone()))
        }),
        Box::new(move |at, out| Ok((case(at.rows(&cut_x)?), at.outputs(out)?))),
    ))
}
