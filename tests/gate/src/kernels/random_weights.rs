//! Made-up weights.

use super::*;
use dsa_kernels::random_weights::{self, RANDOM_WEIGHTS, RandomWeights, random_weights};

pub(super) const KERNEL: Kernel = Kernel {
    name: RANDOM_WEIGHTS.name,
    contract: RANDOM_WEIGHTS,
    file: "random_weights.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "n",
    tolerance: tolerance::exact,
    machine: random_weights::machine,
    launch: run,
    compute: reference,
    reference: ("random_weights", "reference/src/random_weights.rs"),
    forms,
    paths: Paths {
        all: |_| vec!["f32", "bf16", "f16", "e4m3"],
        of: |case, _| vec![paths::type_of(case, "out")],
        first: "out",
    },
    production: || vec![case(zeros(DType::E4m3, &[v32::FEW * v32::HIDDEN]), 1, 0, 0, CODE_STEP)],
    sample: || case(floats(1, &[70]), 0xfeed_0000_beef, 9, 1 << 19, 0.001),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

/// With it no number is beyond those of e4m3, and every one is exact before it is rounded.
const CODE_STEP: f32 = 1.0 / 256.0;

fn case(out: HostTensor, key: u64, first: u32, offset: u32, step: f32) -> Case {
    let case = Case::new(KERNEL.name).with("out", out).set("key", key).set("first", first);
    case.set("offset", offset).set("step", step)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let out = case.upload(device, "out")?;
    let of = RandomWeights {
        key: case.scalar("key")?,
        first: case.scalar("first")?,
        offset: case.scalar("offset")?,
        step: case.scalar("step")?,
    };
    random_weights(&out, of)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let out = case.tensor("out")?;
    let n = out.shape.iter().product();
    let (key, first) = (case.scalar("key")?, case.scalar("first")?);
    let (offset, step) = (case.scalar("offset")?, case.scalar("step")?);
    let values = reference::random_weights::random_weights(key, first, offset, step, n);
    Ok(outputs([("out", HostTensor::of(&values).cast(out.dtype))]))
}

fn forms() -> Forms {
    let stored = || prop_oneof![float(), Just(DType::E4m3)];
    let random = (prop_oneof![0usize..300, 4000usize..9000], stored());
    let production = move |model: Model| (Exactly(model.hidden()), stored());
    Forms::new(random, production, |(n, dtype): &(usize, DType), rng| {
        let (offset, step) = match dtype {
            DType::E4m3 => (0, CODE_STEP),
            DType::F16 => (rng.choose(&[0, 1 << 18]), 2f32.powi(-10) * (0.5 + rng.unit())),
            _ => (rng.choose(&[0, 1 << 19, 1 << 22]), 1e-6 + rng.unit()),
        };
        // Numbers of elements near 2^32 and keys near 2^64 among them.
        let key = if rng.one_in(4) { u64::MAX - rng.below(9) as u64 } else { rng.bits() };
        let far = u32::MAX - *n as u32;
        let first = rng.choose(&[0, rng.clone().bits() as u32 % far, far]);
        case(tensor(rng, *dtype, &[*n], Fill::Normal), key, first, offset, step)
    })
}

/// An expert's matrix, 2048 x 7168 in V3.2.
fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let n = 32 * axes.index_heads * v32::HIDDEN;
    let out = device.empty(&[n], DType::E4m3)?;
    let of = RandomWeights { key: seed, first: 0, offset: 0, step: CODE_STEP };
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n)]),
        dtype: DType::E4m3.to_string(),
        flop: n as u64,
        bytes: n as u64,
        gate: case(zeros(DType::E4m3, &[5000]), seed, 3, 0, CODE_STEP),
        work: Box::new(move || {
            random_weights(&out, of)?;
            Ok(one("out", out.clone()))
        }),
        timed: Timed {
            // One row, so that all of it is judged.
            rows: 1,
            heads: 1,
            cost: n,
            cut: Box::new(move |at, out| {
                let made = out.iter().map(|(name, tensor)| Ok((*name, at.whole(tensor)?)));
                let made: Outputs = made.collect::<Result<_, CaseError>>()?;
                Ok((case(zeros(DType::E4m3, &[n]), seed, 0, 0, CODE_STEP), made))
            }),
        },
    })
}
