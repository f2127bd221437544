//! Pairs of tokens and experts by expert.

use super::*;
use dsa_kernels::dispatch::{self, DISPATCH};

pub(super) const MOE: Moe = Moe {
    kernel: Kernel {
        name: DISPATCH.name,
        file: "dispatch.rs",
        tensors: &["indices: [n, top_k] i32"],
        scalars: &["experts: integer 1 to 512"],
        sizes: &["top_k: 1 to 512"],
        outputs: &["order: [n * top_k] i32", "ends: [experts] i32"],
        scratch: "0",
        work: "n * top_k * experts",
        machine: dispatch::machine,
        launch: run,
        compute: reference,
    },
    forms,
    production,
    sample,
    paths: &[&["any"]],
    paths_of: |_| vec!["any"],
};

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let dispatch = dispatch::dispatch(&case.upload(device, "indices")?, case.scalar("experts")?)?;
    let (order, ends) =
        (HostTensor::download(&dispatch.order)?, HostTensor::download(&dispatch.ends)?);
    Ok(outputs([("order", order), ("ends", ends)]))
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let indices = case.array_i32("indices")?;
    let dispatch = reference::dispatch::dispatch(indices.view(), case.scalar("experts")?);
    let tensor = |values: &[i32]| HostTensor::i32(&[values.len()], values);
    Ok(outputs([("order", tensor(&dispatch.order)), ("ends", tensor(&dispatch.ends))]))
}

fn forms() -> Forms {
    let experts = prop_oneof![1usize..20, Just(2), Just(256), Just(512)];
    // Pairs of one run of a GPU's unit, and of several.
    let n = prop_oneof![0usize..20, 200usize..900];
    let random = (n, 1usize..9, experts);
    let production = |_: Model| (1usize..65, Just(TOP_K), Just(EXPERTS));
    Forms::new(random, production, |(n, top_k, experts): &(usize, usize, usize), rng| {
        Case::new(DISPATCH.name)
            .with("indices", indices(rng, *n, *top_k, *experts))
            .set("experts", experts)
    })
}

fn production() -> Vec<Case> {
    let case = Case::new(DISPATCH.name).with("indices", zeros(DType::I32, &[FEW, TOP_K]));
    vec![case.set("experts", EXPERTS)]
}

fn sample() -> Case {
    let indices = HostTensor::i32(&[3, 2], &[4, 0, 2, 4, -1, 0]);
    Case::new(DISPATCH.name).with("indices", indices).set("experts", 5)
}
