//! The embedding.

use super::*;
use crate::generate::Exactly;
use dsa_kernels::embedding::{self, EMBEDDING};

pub(super) const MOE: Moe = Moe {
    kernel: Kernel {
        name: EMBEDDING.name,
        file: "embedding.rs",
        tensors: &["table: [V, hidden] f32|bf16|f16", "ids: [n] i32"],
        scalars: &[STRIDED],
        sizes: &[],
        outputs: &["out: [n, hidden] as table"],
        scratch: "0",
        work: "n * hidden",
        machine: embedding::machine,
        launch: run,
        compute: reference,
    },
    forms,
    production,
    sample,
    paths: &[FLOATS, LOADS],
    paths_of: |case| rows_by(case, "table", &["table"]),
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (table, ids) = (case.upload_rows(device, "table")?, case.upload(device, "ids")?);
    let out = embedding::embedding(&table, &ids)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
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
        Case::new(EMBEDDING.name)
            .with("table", tensor(rng, form.dtype, &[rows, form.hidden], Fill::Special))
            .with("ids", HostTensor::i32(&[form.n], &ids))
            .set("strided", form.strided)
    })
}

fn production() -> Vec<Case> {
    let case = Case::new(EMBEDDING.name).with("ids", zeros(DType::I32, &[FEW]));
    vec![case.with("table", zeros(DType::Bf16, &[FEW, HIDDEN]))]
}

fn sample() -> Case {
    Case::new(EMBEDDING.name)
        .with("table", floats(1, &[5, 12]))
        .with("ids", HostTensor::i32(&[3], &[4, -1, 0]))
}
