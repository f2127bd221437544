//! Rows of heads to their places in a cache.

use super::*;
use dsa_kernels::copy::{self, place_rows};

pub(super) const KERNEL: Kernel = Kernel {
    name: copy::PLACE_ROWS.name,
    contract: copy::PLACE_ROWS,
    file: "copy.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * h * d",
    tolerance: tolerance::exact,
    machine: copy::machine,
    launch: run,
    compute: reference,
    reference: ("reference", "tests/gate/src/kernels/place_rows.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, HEADS]),
        of: |case, _| {
            let repeated = paths::shape(case, "x")[1] == 1;
            vec![paths::type_of(case, "x"), paths::either(repeated, HEADS[1], HEADS[0])]
        },
        first: "x",
    },
    production,
    sample: || {
        Case::new(KERNEL.name)
            .with("x", floats(1, &[3, 2, 5]))
            .with("slots", vector(&[3, -1, 0]))
            .with("out", floats(2, &[4, 2, 5]))
    },
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

const HEADS: &[&str] = &["a head each", "one head for all"];

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, slots) = (case.upload_rows(device, "x")?, case.upload(device, "slots")?);
    let out = case.upload(device, "out")?;
    place_rows(&x, &slots, &out)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, mut out): (Cuboid, Cuboid) = (case.array("x")?, case.array("out")?);
    let rows = out.dim().0;
    for (t, slot) in case.vec_i32("slots")?.into_iter().enumerate().take(x.dim().0) {
        if let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < rows) {
            // One head is repeated for all; anything else must fit.
            let (mut to, from) = (out.index_axis_mut(Axis(0), slot), x.index_axis(Axis(0), t));
            let from = from.broadcast(to.dim()).ok_or_else(|| CaseError::Tensor {
                name: "x".to_string(),
                got: format!("{:?}", x.shape()),
                expected: format!("heads and width of out, or one head: {:?}", to.shape()),
            })?;
            to.assign(&from);
        }
    }
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("out")?.dtype))]))
}

#[derive(Clone, Debug)]
struct PlaceRows {
    n: usize,
    heads: usize,
    dim: usize,
    rows: usize,
    dtype: DType,
    /// Whether x has one head for all.
    repeated: bool,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |((n, heads, dim, rows), dtype, repeated, strided)| PlaceRows {
        n,
        heads,
        dim,
        rows,
        dtype,
        repeated,
        strided,
    };
    let sizes = (0usize..9, 1usize..6, 1usize..100, 1usize..20);
    let random = (sizes, float(), any::<bool>(), gap()).prop_map(form);
    // Keys of every head, and the latent with its rope part.
    let production = move |model: Model| {
        let (heads, d_qk) = (model.heads(), model.expanded().0);
        let rows = || (1usize..4, 1usize..9);
        let sizes = prop_oneof![
            (rows(), Exactly(heads), Exactly(d_qk)).boxed(),
            (rows(), Exactly(1), Exactly(v32::D_QK)).boxed(),
        ]
        .prop_map(|((n, rows), heads, dim)| (n, heads, dim, rows));
        (sizes, float(), any::<bool>(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &PlaceRows, rng| {
        let of_x = if form.repeated { 1 } else { form.heads };
        let out = [form.rows, form.heads, form.dim];
        Case::new(KERNEL.name)
            .with("x", tensor(rng, form.dtype, &[form.n, of_x, form.dim], Fill::Special))
            .with("slots", slots(rng, form.n, form.rows))
            .with("out", tensor(rng, form.dtype, &out, Fill::Normal))
            .set("strided", form.strided)
    })
}

/// Keys of every head, and the latent with its rope part.
fn production() -> Vec<Case> {
    [(v32::HEADS, v32::EXPANDED.0), (1, v32::D_QK)]
        .map(|(heads, width)| {
            Case::new(KERNEL.name)
                .with("x", zeros(DType::Bf16, &[v32::FEW, heads, width]))
                .with("slots", ints(&[v32::FEW]))
                .with("out", zeros(DType::Bf16, &[2 * v32::FEW, heads, width]))
        })
        .into()
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    // The expanded keys of a chunk, each token's to a place of its own, in reverse.
    let (n, heads, dtype) = (axes.s_q, axes.heads, axes.dtype);
    let x = random(device, dtype, &[n, heads, v32::EXPANDED.0], seed)?;
    let slots = vec_i32(device, &(0..n as i32).rev().collect::<Vec<_>>())?;
    let out = device.upload(&vec![0; x.len() * dtype.size()], x.shape(), dtype)?;
    let gate = Case::new(KERNEL.name)
        .with("x", tensor(rng, dtype, &[2, heads, v32::EXPANDED.0], Fill::Normal))
        .with("slots", HostTensor::i32(&[2], &[2, 0]))
        .with("out", tensor(rng, dtype, &[3, heads, v32::EXPANDED.0], Fill::Normal));
    let inputs = [x.clone(), slots.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n), ("heads", heads), ("dim", v32::EXPANDED.0)]),
        dtype: dtype.to_string(),
        flop: 0,
        bytes: (2 * n * heads * v32::EXPANDED.0 * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            place_rows(&x, &slots, &out)?;
            Ok(one("out", out.clone()))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: heads * v32::EXPANDED.0,
            cut: Box::new(move |at, out| {
                // Row i of the output is row n - 1 - i of x: the case is that of the drawn places.
                let [x, slots] = &inputs;
                let slots = at.whole(slots)?.to_i32();
                let from =
                    at.rows.iter().filter_map(|row| slots.iter().position(|s| *s == *row as i32));
                let from = Drawn { device: at.device, rows: from.collect(), heads: 0..1 };
                let x = from.rows(x)?;
                let places: Vec<i32> = (0..at.rows.len() as i32).collect();
                let got = at.outputs(out)?;
                let empty = HostTensor { bytes: vec![0; x.bytes.len()], ..x.clone() };
                let case = Case::new(KERNEL.name).with("x", x).with("out", empty);
                Ok((case.with("slots", HostTensor::i32(&[places.len()], &places)), got))
            }),
        },
    })
}
