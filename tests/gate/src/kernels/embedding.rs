//! The embedding.

use super::*;
use dsa_kernels::embedding::{self, EMBEDDING};
use std::collections::BTreeSet;

pub(super) const KERNEL: Kernel = Kernel {
    name: EMBEDDING.name,
    contract: EMBEDDING,
    file: "embedding.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * hidden",
    tolerance: tolerance::exact,
    machine: embedding::machine,
    launch: run,
    compute: reference,
    reference: ("embedding", "reference/src/embedding.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS]),
        of: |case, _| paths::rows(case, &["table"]),
        first: "ids",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (table, ids) = (case.upload_rows(device, "table")?, case.upload(device, "ids")?);
    let out = embedding::embedding(&table, &ids)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    // On a device an id that names no row gives NaN: a row more of the table.
    let mut table: Matrix = case.array("table")?;
    let rows = table.nrows();
    table = ndarray::concatenate![Axis(0), table, Matrix::from_elem((1, table.ncols()), f32::NAN)];
    let known = |id: i32| usize::try_from(id).is_ok_and(|id| id < rows);
    let ids: Vec<i32> = case.vec_i32("ids")?;
    let ids: Vec<i32> = ids.iter().map(|&id| if known(id) { id } else { rows as i32 }).collect();
    let out = reference::embedding::embedding(&ids, table.view())?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("table")?.dtype))]))
}

#[derive(Clone, Debug)]
struct Embedding {
    n: usize,
    rows: usize,
    hidden: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |(n, rows, hidden, dtype, strided)| Embedding { n, rows, hidden, dtype, strided };
    let random = (0usize..9, 1usize..20, 1usize..100, float(), gap()).prop_map(form);
    let production = move |model: Model| {
        (1usize..5, 1usize..9, Exactly(model.hidden()), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Embedding, rng| {
        let rows = form.rows;
        let bad = [-1, i32::MIN, i32::MAX, rows as i32];
        let mut id = || if rng.one_in(5) { rng.choose(&bad) } else { rng.below(rows) as i32 };
        let ids: Vec<i32> = (0..form.n).map(|_| id()).collect();
        Case::new(KERNEL.name)
            .with("table", tensor(rng, form.dtype, &[rows, form.hidden], Fill::Special))
            .with("ids", HostTensor::i32(&[form.n], &ids))
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let case = Case::new(KERNEL.name).with("ids", zeros(DType::I32, &[v32::FEW]));
    vec![case.with("table", zeros(DType::Bf16, &[v32::FEW, v32::HIDDEN]))]
}

fn sample() -> Case {
    Case::new(KERNEL.name).with("table", floats(1, &[5, 12])).with("ids", vector(&[4, -1, 0]))
}

/// Rows of the table that is measured.
const ROWS: usize = 1024;

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, hidden, dtype) = (axes.s_q, v32::HIDDEN, axes.dtype);
    let rng = &mut Rng::new(seed);
    let table = random(device, dtype, &[ROWS, hidden], seed)?;
    let of: Vec<usize> = (0..n).map(|_| rng.below(ROWS)).collect();
    let distinct = of.iter().collect::<BTreeSet<_>>().len();
    let ids = vec_i32(device, &of.iter().map(|id| *id as i32).collect::<Vec<_>>())?;
    let gate = Case::new(KERNEL.name)
        .with("table", tensor(rng, dtype, &[3, hidden], Fill::Normal))
        .with("ids", vector(&[2, 0, 3]));
    let input = table.clone();
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("hidden", hidden)]),
        dtype: dtype.to_string(),
        flop: 0,
        // A row that several tokens name is read once.
        bytes: ((distinct + n) * hidden * dtype.size() + 4 * n) as u64,
        gate,
        work: Box::new(move || Ok(one("out", embedding::embedding(&table, &ids)?))),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: hidden,
            cut: Box::new(move |at, out| {
                let named = at.rows.iter().map(|row| of[*row]).collect();
                let table = Drawn { device: at.device, rows: named, heads: 0..1 }.rows(&input)?;
                let ids: Vec<i32> = (0..at.rows.len() as i32).collect();
                let case = Case::new(KERNEL.name).with("table", table).with("ids", vector(&ids));
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
