//! Rotary embedding.

use super::*;
use dsa_kernels::rope::{self, Pairing};
use dsa_reference::rope as expected;

pub(super) const KERNEL: Kernel = Kernel {
    name: rope::ROPE.name,
    contract: rope::ROPE,
    file: "rope.rs",
    beside: || vec![ScalarLine::choice("pairing", Pairing::ALL), strided()],
    made: &["out"],
    scratch: "0",
    work: "n * heads * dim",
    tolerance: tolerance::rounded,
    machine: rope::machine,
    launch: run,
    compute: reference,
    reference: ("rope", "reference/src/rope.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, &paths::words(Pairing::ALL)]),
        of: |case, _| vec![paths::type_of(case, "x"), paths::chosen(case, "pairing", Pairing::ALL)],
        first: "x",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let pairing = choice(case, "pairing", Pairing::ALL)?;
    let x = case.upload_rows(device, "x")?;
    let (cos, sin) = (case.upload(device, "cos")?, case.upload(device, "sin")?);
    let positions = case.upload(device, "positions")?;
    let out = out_like(device, case, &x)?;
    rope::rope(&x, &cos, &sin, &positions, &out, pairing)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let pairing = choice(case, "pairing", expected::Pairing::ALL)?;
    let x: Cuboid = case.array("x")?;
    let (cos, sin): (Matrix, Matrix) = (case.array("cos")?, case.array("sin")?);
    // A position that the tables have no line of makes its row NaN.
    let positions = case.vec_i32("positions")?;
    let lines = |table: &Matrix| {
        Matrix::from_shape_fn((positions.len(), table.ncols()), |(t, i)| {
            let line = usize::try_from(positions[t]).ok();
            line.and_then(|line| table.get((line, i))).copied().unwrap_or(f32::NAN)
        })
    };
    let (cos, sin) = (lines(&cos), lines(&sin));
    let out = HostTensor::of(&expected::rope(x.view(), cos.view(), sin.view(), pairing));
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

#[derive(Clone, Debug)]
struct Rope {
    n: usize,
    heads: usize,
    half: usize,
    table: usize,
    dtype: DType,
    pairing: &'static str,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, heads, half, table, dtype, pairing, strided)| Rope {
        n,
        heads,
        half,
        table,
        dtype,
        pairing,
        strided,
    };
    let pairing = || word_of(Pairing::ALL);
    let random =
        (0usize..5, 1usize..5, 1usize..40, 1usize..9, float(), pairing(), gap()).prop_map(form);
    let production = move |model: Model| {
        let heads = prop_oneof![Exactly(model.heads()), Exactly(model.index_heads())];
        (1usize..4, heads, Exactly(v32::ROPE_DIM / 2), 1usize..9, float(), pairing(), gap())
            .prop_map(form)
    };
    Forms::new(random, production, |form: &Rope, rng| {
        let (n, half, table) = (form.n, form.half, form.table);
        let angles: Vec<f32> = (0..table * half).map(|_| rng.normal() * 50.0).collect();
        // YaRN may stretch the tables.
        let factor = rng.choose(&[1.0, 1.0, 1.5]);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() * factor).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() * factor).collect();
        let fill = rng.choose(&[Fill::Normal, Fill::Normal, Fill::Extreme]);
        let positions: Vec<i32> = (0..n).map(|_| rng.below(table + 2) as i32 - 1).collect();
        Case::new(KERNEL.name)
            .with("x", tensor(rng, form.dtype, &[n, form.heads, 2 * half], fill))
            .with("cos", HostTensor::new(DType::F32, &[table, half], &cos))
            .with("sin", HostTensor::new(DType::F32, &[table, half], &sin))
            .with("positions", HostTensor::i32(&[n], &positions))
            .set("pairing", form.pairing)
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    [(v32::HEADS, "interleaved"), (v32::INDEX_HEADS, "half_split")]
        .map(|(heads, pairing)| {
            Case::new(KERNEL.name)
                .with("x", zeros(DType::Bf16, &[v32::FEW, heads, v32::ROPE_DIM]))
                .with("cos", zeros(DType::F32, &[v32::FEW, v32::ROPE_DIM / 2]))
                .with("sin", zeros(DType::F32, &[v32::FEW, v32::ROPE_DIM / 2]))
                .with("positions", ints(&[v32::FEW]))
                .set("pairing", pairing)
        })
        .into()
}

fn sample() -> Case {
    Case::new(KERNEL.name)
        .with("x", floats(1, &[3, 2, 8]))
        .with("cos", floats(2, &[5, 4]))
        .with("sin", floats(3, &[5, 4]))
        .with("positions", vector(&[4, 0, 2]))
        .set("pairing", "interleaved")
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    let (n, heads, dtype) = (axes.s_q, axes.index_heads, axes.dtype);
    let x = random(device, dtype, &[n, heads, v32::ROPE_DIM], seed)?;
    let out = device.empty(&[n, heads, v32::ROPE_DIM], dtype)?;
    let cos = random(device, DType::F32, &[n, v32::ROPE_DIM / 2], 2)?;
    let sin = random(device, DType::F32, &[n, v32::ROPE_DIM / 2], 3)?;
    let positions = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let table = tensor(rng, DType::F32, &[2, v32::ROPE_DIM / 2], Fill::Tenth);
    let gate = Case::new(KERNEL.name)
        .with("x", tensor(rng, dtype, &[2, 2, v32::ROPE_DIM], Fill::Normal))
        .with("cos", table.clone())
        .with("sin", table)
        .with("positions", HostTensor::i32(&[2], &[1, 0]))
        .set("pairing", "half_split");
    let elements = n * heads * v32::ROPE_DIM;
    let inputs = [x.clone(), cos.clone(), sin.clone(), positions.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n), ("heads", heads), ("dim", v32::ROPE_DIM)]),
        dtype: dtype.to_string(),
        flop: 3 * elements as u64,
        bytes: (2 * elements * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            rope::rope(&x, &cos, &sin, &positions, &out, Pairing::HalfSplit)?;
            Ok(one("out", out.clone()))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: heads * v32::ROPE_DIM,
            cut: Box::new(move |at, out| {
                let [x, cos, sin, positions] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("x", at.rows(x)?)
                    .with("cos", at.whole(cos)?)
                    .with("sin", at.whole(sin)?)
                    .with("positions", at.rows(positions)?)
                    .set("pairing", "half_split");
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
