//! Quantisation of activations in blocks of 128.

use super::*;
use dsa_kernels::quant::{self, ScaleFmt};
use dsa_reference::quant as expected;

pub(super) const KERNEL: Kernel = Kernel {
    name: quant::ACT_QUANT.name,
    contract: quant::ACT_QUANT,
    file: "quant.rs",
    beside,
    made: &[],
    scratch: "0",
    work: "rows * cols",
    tolerance: tolerance::exact,
    machine: quant::machine,
    launch: run,
    compute: reference,
    reference: ("act_quant", "reference/src/quant.rs"),
    forms: || forms(KERNEL.name),
    paths: PATHS,
    production: || vec![case(zeros(DType::Bf16, &[v32::FEW, v32::HIDDEN]))],
    sample: || case(floats(1, &[3, 130])),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

pub(super) const PATHS: Paths = Paths {
    all: |_| paths::joined(&[paths::FLOATS, &paths::words(ScaleFmt::ALL)]),
    of: |case, _| vec![paths::type_of(case, "x"), paths::chosen(case, "fmt", ScaleFmt::ALL)],
    first: "x",
};

pub(super) fn beside() -> Vec<ScalarLine> {
    vec![ScalarLine::choice("fmt", ScaleFmt::ALL), strided()]
}

fn case(x: HostTensor) -> Case {
    Case::new(KERNEL.name).with("x", x).set("fmt", "ue8m0")
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let fmt = choice(case, "fmt", ScaleFmt::ALL)?;
    let q = quant::act_quant(&case.upload_rows(device, "x")?, fmt)?;
    let [codes, scale] = [&q.codes, &q.scale].map(HostTensor::download);
    Ok(outputs([("codes", codes?), ("scale", scale?)]))
}

/// The blocks of the case's `x`, quantised by the reference.
pub(super) fn quantised(case: &Case) -> Result<expected::Quantised, CaseError> {
    let fmt = choice(case, "fmt", expected::ScaleFmt::ALL)?;
    let x: Matrix = case.array("x")?;
    Ok(expected::act_quant(x.view(), quant::BLOCK, fmt)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let q = quantised(case)?;
    let codes = HostTensor {
        dtype: DType::E4m3,
        shape: q.codes.shape().to_vec(),
        bytes: q.codes.iter().copied().collect(),
    };
    Ok(outputs([("codes", codes), ("scale", HostTensor::of(&q.scale))]))
}

#[derive(Clone, Debug)]
struct ActQuant {
    rows: usize,
    cols: usize,
    dtype: DType,
    fmt: &'static str,
    strided: &'static str,
}

pub(super) fn forms(kernel: &'static str) -> Forms {
    let form = |(rows, cols, dtype, fmt, strided)| ActQuant { rows, cols, dtype, fmt, strided };
    let fmt = || word_of(ScaleFmt::ALL);
    let random = (0usize..5, 1usize..300, float(), fmt(), gap()).prop_map(form);
    let production = move |model: Model| {
        let cols = if kernel != KERNEL.name { v32::KV_LORA_RANK } else { model.hidden() };
        (1usize..4, Exactly(cols), float(), fmt(), gap()).prop_map(form)
    };
    Forms::new(random, production, move |form: &ActQuant, rng| {
        const FILLS: [Fill; 7] = [
            Fill::Normal,
            Fill::Ties,
            Fill::Zeros,
            Fill::Wide,
            Fill::Outliers,
            Fill::Extreme,
            Fill::Extreme,
        ];
        let shape = [form.rows, form.cols];
        let fill = rng.choose(&FILLS);
        let mut x = tensor(rng, DType::F32, &shape, fill).to_f32();
        // The scale's own steps: powers of two times 448, and their neighbours.
        for v in x.iter_mut() {
            if rng.one_in(30) {
                *v = f32::from_bits((448.0 * 2f32.powi(rng.below(9) as i32 - 6)).to_bits() + 1);
            }
            if rng.one_in(200) {
                *v = f32::NAN;
            }
        }
        Case::new(kernel)
            .with("x", HostTensor::new(form.dtype, &shape, &x))
            .set("fmt", form.fmt)
            .set("strided", form.strided)
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let of = OfRows::new(device, axes, seed)?;
    let (x, cut_x) = (of.x.clone(), of.x.clone());
    Ok(of.spec(
        KERNEL.name,
        (3 * of.elements(), of.bytes() + of.elements()),
        case(of.small.clone()),
        Box::new(move || {
            let q = quant::act_quant(&x, ScaleFmt::Ue8m0)?;
            Ok(vec![("codes", q.codes), ("scale", q.scale)])
        }),
        Box::new(move |at, out| Ok((case(at.rows(&cut_x)?), at.outputs(out)?))),
    ))
}
