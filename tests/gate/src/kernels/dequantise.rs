//! Weights in the type they are multiplied in.

use super::gemm::{OUTS, out_dtype};
use super::linear_fp8::{codes, scales, scales_of};
use super::*;
use dsa_kernels::dequantise::{self, DEQUANTISE};
use dsa_kernels::quant::BLOCK;

pub(super) const KERNEL: Kernel = Kernel {
    name: DEQUANTISE.name,
    contract: DEQUANTISE,
    file: "dequantise.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "rows * cols",
    tolerance: tolerance::exact,
    machine: dequantise::machine,
    launch: run,
    compute: reference,
    reference: ("dequantise", "reference/src/dequantise.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[STORED, SCALES, &paths::words(OUTS)]),
        of: |case, _| {
            let out = out_dtype(case).unwrap_or(DType::F32);
            let to = OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path);
            let scaled = case.tensors.contains_key("scale");
            let runs = [paths::type_of(case, "x"), paths::either(scaled, SCALES[0], SCALES[1])];
            runs.into_iter().chain(to).collect()
        },
        first: "x",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

const STORED: &[&str] = &["f32", "bf16", "f16", "e4m3"];
const SCALES: &[&str] = &["scales", "no scales"];

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let x = case.upload_rows(device, "x")?;
    let scale = match case.tensors.contains_key("scale") {
        true => Some(case.upload(device, "scale")?),
        false => None,
    };
    only("out", &dequantise::dequantise(&x, scale.as_ref(), out_dtype(case)?)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let scale: Option<Matrix> = match case.tensors.contains_key("scale") {
        true => Some(case.array("scale")?),
        false => None,
    };
    let scale = scale.as_ref().map(|scale| scale.view());
    let out = reference::dequantise::dequantise(x.view(), scale)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

#[derive(Clone, Debug)]
struct Dequantise {
    rows: usize,
    cols: usize,
    dtype: DType,
    scaled: bool,
    out: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(rows, cols, dtype, scaled, out, strided)| Dequantise {
        rows,
        cols,
        dtype,
        scaled,
        out,
        strided,
    };
    let stored = || prop_oneof![float(), Just(DType::E4m3)];
    let random = (0usize..150, 1usize..300, stored(), any::<bool>(), float(), gap()).prop_map(form);
    let production = move |model: Model| {
        let cols = Exactly(model.hidden());
        (1usize..4, cols, stored(), any::<bool>(), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Dequantise, rng| {
        let (rows, cols) = (form.rows, form.cols);
        let x = match form.dtype {
            DType::E4m3 => codes(rng, &[rows, cols]),
            dtype => tensor(rng, dtype, &[rows, cols], Fill::Special),
        };
        let case =
            Case::new(KERNEL.name).with("x", x).set("out", form.out).set("strided", form.strided);
        let blocks = [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
        if form.scaled { case.with("scale", scales(rng, &blocks, form.out)) } else { case }
    })
}

fn production() -> Vec<Case> {
    let case = Case::new(KERNEL.name).set("out", DType::Bf16);
    let case = case.with("x", zeros(DType::E4m3, &[v32::FEW, v32::HIDDEN]));
    vec![case.with("scale", zeros(DType::F32, &[1, v32::HIDDEN / BLOCK]))]
}

fn sample() -> Case {
    Case::new(KERNEL.name)
        .with("x", floats(1, &[130, 140]).cast(DType::E4m3))
        .with("scale", HostTensor::new(DType::F32, &[2, 2], &[1.0, 0.5, 3.0, 0.25]))
}

/// An expert's matrix, 2048 x 7168 in V3.2.
fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (rows, cols, dtype) = (32 * axes.index_heads, v32::HIDDEN, axes.dtype);
    let x = random(device, DType::E4m3, &[rows, cols], seed)?;
    let scale = scales_of(device, &[rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)])?;
    let rng = &mut Rng::new(seed);
    let gate = Case::new(KERNEL.name)
        .with("x", codes(rng, &[3, cols]))
        .with("scale", scales(rng, &[1, cols.div_ceil(BLOCK)], dtype))
        .set("out", dtype);
    let inputs = [x.clone(), scale.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("rows", rows), ("cols", cols)]),
        dtype: DType::E4m3.to_string(),
        flop: (rows * cols) as u64,
        bytes: (rows * cols * (1 + dtype.size())) as u64,
        gate,
        work: Box::new(move || Ok(one("out", dequantise::dequantise(&x, Some(&scale), dtype)?))),
        timed: Timed {
            // Drawn rows are no blocks: all of them are judged, in one row.
            rows: 1,
            heads: 1,
            cost: rows * cols,
            cut: Box::new(move |at, out| {
                let [x, scale] = &inputs;
                let case = Case::new(KERNEL.name).with("x", at.whole(x)?);
                let case = case.with("scale", at.whole(scale)?).set("out", dtype);
                let all = out.iter().map(|(name, tensor)| Ok((*name, at.whole(tensor)?)));
                Ok((case, all.collect::<Result<_, CaseError>>()?))
            }),
        },
    })
}
