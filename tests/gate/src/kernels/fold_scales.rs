//! The indexer's weights with the scales of its queries.

use super::*;
use dsa_kernels::fold_scales::{self, fold_scales};

pub(super) const KERNEL: Kernel = Kernel {
    name: fold_scales::FOLD_SCALES.name,
    contract: fold_scales::FOLD_SCALES,
    file: "fold_scales.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "s * H",
    tolerance: tolerance::rounded,
    machine: fold_scales::machine,
    launch: run,
    compute: reference,
    reference: ("reference", "tests/gate/src/kernels/fold_scales.rs"),
    forms,
    paths: Paths::one("weights"),
    production: || vec![case([(); 2].map(|()| zeros(DType::F32, &[v32::FEW, v32::INDEX_HEADS])))],
    sample: || case([floats(1, &[3, 4]), floats(2, &[3, 4])]),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case([weights, q_scale]: [HostTensor; 2]) -> Case {
    Case::new(KERNEL.name).with("weights", weights).with("q_scale", q_scale).set("factor", 0.25)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale) = (case.upload(device, "weights")?, case.upload(device, "q_scale")?);
    let out = fold_scales(&weights, &q_scale, case.scalar("factor")?)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale): (Matrix, Matrix) = (case.array("weights")?, case.array("q_scale")?);
    let factor: f32 = case.scalar("factor")?;
    // In f64: the product of two may leave f32's range where that of all three does not.
    let out = Matrix::from_shape_fn(weights.dim(), |at| {
        (f64::from(weights[at]) * f64::from(q_scale[at]) * f64::from(factor)) as f32
    });
    Ok(outputs([("out", HostTensor::of(&out))]))
}

fn forms() -> Forms {
    let production = |model: Model| (1usize..9, Exactly(model.index_heads()));
    Forms::new((0usize..9, 1usize..129), production, |(s, heads): &(usize, usize), rng| {
        let (fill, factors) = match rng.below(3) {
            0 => (Fill::Extreme, [0.011_048_543, 1e30, 1e-30]),
            _ => (Fill::Normal, [0.011_048_543; 3]),
        };
        let factor: f32 = rng.choose(&factors);
        Case::new(KERNEL.name)
            .with("weights", tensor(rng, DType::F32, &[*s, *heads], fill))
            .with("q_scale", tensor(rng, DType::F32, &[*s, *heads], fill))
            .set("factor", factor)
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    let (s, heads) = (axes.s_q, axes.index_heads);
    let weights = random(device, DType::F32, &[s, heads], 4)?;
    let q_scale = random(device, DType::F32, &[s, heads], 5)?;
    let folded = tensor(rng, DType::F32, &[3, heads], Fill::Normal);
    let (of_weights, of_scale) = (weights.clone(), q_scale.clone());
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", s), ("index_heads", heads)]),
        dtype: DType::F32.to_string(),
        flop: (2 * s * heads) as u64,
        bytes: (12 * s * heads) as u64,
        gate: Case::new(KERNEL.name)
            .with("weights", folded.clone())
            .with("q_scale", folded)
            .set("factor", 0.5),
        work: Box::new(move || Ok(one("out", fold_scales(&weights, &q_scale, 0.5)?))),
        timed: Timed {
            rows: s,
            heads: 1,
            cost: heads,
            cut: Box::new(move |at, out| {
                let case = Case::new(KERNEL.name).with("weights", at.rows(&of_weights)?);
                let case = case.with("q_scale", at.rows(&of_scale)?).set("factor", 0.5);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
