//! RMS norm.

use super::*;
use dsa_kernels::norm;

pub(super) const KERNEL: Kernel = Kernel {
    name: norm::RMS_NORM.name,
    contract: norm::RMS_NORM,
    file: "norm.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "rows * cols",
    tolerance: tolerance::rounded,
    machine: norm::machine,
    launch: run,
    compute: reference,
    reference: ("rms_norm", "reference/src/norm.rs"),
    forms: || forms(KERNEL.name, Model::hidden, false),
    paths: PATHS,
    production: || {
        let x = zeros(DType::Bf16, &[v32::FEW, v32::HIDDEN]);
        vec![case(x, zeros(DType::F32, &[v32::HIDDEN]))]
    },
    sample: || case(floats(1, &[3, 20]), floats(2, &[20])),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

pub(super) const PATHS: Paths = Paths {
    all: |_| paths::FLOATS.to_vec(),
    of: |case, _| vec![paths::type_of(case, "x")],
    first: "x",
};

/// Factor of the normalised rows' mean square.
pub(super) const EPS: f32 = 1e-6;

fn case(x: HostTensor, weight: HostTensor) -> Case {
    Case::new(KERNEL.name).with("x", x).with("weight", weight).set("eps", EPS)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let out = norm::rms_norm(&x, &weight, case.scalar("eps")?)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let out = reference::norm::rms_norm(x.view(), weight.view(), case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

#[derive(Clone, Debug)]
struct Norm {
    rows: usize,
    cols: usize,
    dtype: DType,
    strided: &'static str,
}

/// Forms of a norm, with `cols` columns for each model, with a bias or without.
pub(super) fn forms(kernel: &'static str, cols: fn(Model) -> usize, bias: bool) -> Forms {
    let form = |(rows, cols, dtype, strided)| Norm { rows, cols, dtype, strided };
    let random = (0usize..5, 1usize..300, float(), gap()).prop_map(form);
    let production =
        move |model: Model| (1usize..4, Exactly(cols(model)), float(), gap()).prop_map(form);
    Forms::new(random, production, move |form: &Norm, rng| {
        const FILLS: [Fill; 5] =
            [Fill::Normal, Fill::Tenth, Fill::Outliers, Fill::Extreme, Fill::Extreme];
        let fill = rng.choose(&FILLS);
        // DeepSeek's eps; GLM's; one that is not small beside the squares of Fill::Tenth; and none, or next to
        // none, so that a row of tiny numbers is normalised too.
        let eps = match fill {
            Fill::Extreme => rng.choose(&[1e-6, 1e-30, 0.0]),
            _ => rng.choose(&[1e-6, 1e-5, 1e-2]),
        };
        let weight = match fill {
            Fill::Extreme => crate::generate::extreme::even(rng, DType::F32, &[form.cols]),
            _ => tensor(rng, DType::F32, &[form.cols], Fill::Normal),
        };
        let case = Case::new(kernel)
            .with("x", tensor(rng, form.dtype, &[form.rows, form.cols], fill))
            .with("weight", weight)
            .set("eps", eps)
            .set("strided", form.strided);
        if bias {
            let bias = match fill {
                Fill::Extreme => crate::generate::extreme::even(rng, DType::F32, &[form.cols]),
                _ => tensor(rng, DType::F32, &[form.cols], Fill::Normal),
            };
            case.with("bias", bias)
        } else {
            case
        }
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let of = OfRows::new(device, axes, seed)?;
    let (x, cut_x) = (of.x.clone(), of.x.clone());
    let weight = random(device, DType::F32, &[v32::INDEX_DIM], 1)?;
    let cut_weight = weight.clone();
    Ok(of.spec(
        KERNEL.name,
        (4 * of.elements(), 2 * of.bytes()),
        case(of.small.clone(), floats(seed, &[v32::INDEX_DIM])),
        Box::new(move || Ok(one("out", norm::rms_norm(&x, &weight, EPS)?))),
        Box::new(move |at, out| {
            Ok((case(at.rows(&cut_x)?, at.whole(&cut_weight)?), at.outputs(out)?))
        }),
    ))
}
