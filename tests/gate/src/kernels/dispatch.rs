//! Pairs of tokens and experts by expert.

use super::*;
use dsa_kernels::dispatch::{self, DISPATCH};

pub(super) const KERNEL: Kernel = Kernel {
    name: DISPATCH.name,
    contract: DISPATCH,
    file: "dispatch.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "n * top_k * experts",
    tolerance: tolerance::exact,
    machine: dispatch::machine,
    launch: run,
    compute: reference,
    reference: ("dispatch", "reference/src/dispatch.rs"),
    forms,
    paths: Paths::one("indices"),
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
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
    Ok(outputs([("order", vector(&dispatch.order)), ("ends", vector(&dispatch.ends))]))
}

/// Experts of `n` tokens, `top_k` each, of so many: anywhere, different ones, all the same one, in order, or with some
/// that there are not.
pub(super) fn indices(rng: &mut Rng, n: usize, top_k: usize, experts: usize) -> HostTensor {
    let kind = rng.below(8);
    let one = rng.below(experts) as i32;
    let none = [-1, i32::MIN, i32::MAX, experts as i32];
    let mut of_token = |t: usize, j: usize| match kind {
        0 => one,
        1 => (t as i32 * 7 + j as i32 * 3 + one) % experts as i32,
        2 => (one + j as i32).min(experts as i32 - 1),
        3 | 4 if rng.one_in(6) => rng.choose(&none),
        _ => rng.below(experts) as i32,
    };
    let values: Vec<i32> =
        (0..n * top_k).map(|pair| of_token(pair / top_k, pair % top_k)).collect();
    HostTensor::i32(&[n, top_k], &values)
}

fn forms() -> Forms {
    let experts = prop_oneof![1usize..20, Just(2), Just(256), Just(512)];
    // Pairs of one run of a GPU's unit, and of several.
    let n = prop_oneof![0usize..20, 200usize..900];
    let random = (n, 1usize..9, experts);
    let production = |_: Model| (1usize..65, Just(v32::EXPERTS_PER_TOKEN), Just(v32::EXPERTS));
    Forms::new(random, production, |(n, top_k, experts): &(usize, usize, usize), rng| {
        Case::new(KERNEL.name)
            .with("indices", indices(rng, *n, *top_k, *experts))
            .set("experts", experts)
    })
}

fn production() -> Vec<Case> {
    let case = Case::new(KERNEL.name)
        .with("indices", zeros(DType::I32, &[v32::FEW, v32::EXPERTS_PER_TOKEN]));
    vec![case.set("experts", v32::EXPERTS)]
}

fn sample() -> Case {
    let indices = HostTensor::i32(&[3, 2], &[4, 0, 2, 4, -1, 0]);
    Case::new(KERNEL.name).with("indices", indices).set("experts", 5)
}

/// All of it at once: which pairs come before one is a matter of every other.
fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, top_k, experts) = (axes.s_q, v32::EXPERTS_PER_TOKEN, v32::EXPERTS);
    let rng = &mut Rng::new(seed);
    let listed: Vec<i32> = (0..n * top_k).map(|_| rng.below(experts) as i32).collect();
    let indices = device.upload_i32(&listed, &[n, top_k])?;
    let case = move |listed: &[i32]| {
        Case::new(KERNEL.name)
            .with("indices", HostTensor::i32(&[listed.len() / top_k, top_k], listed))
            .set("experts", experts)
    };
    let gate = case(&listed[..top_k * n.min(4)]);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("top_k", top_k), ("experts", experts)]),
        dtype: DType::I32.to_string(),
        flop: 0,
        bytes: (8 * n * top_k + 4 * experts) as u64,
        gate,
        work: Box::new(move || {
            let dispatch = dispatch::dispatch(&indices, experts)?;
            Ok(vec![("order", dispatch.order), ("ends", dispatch.ends)])
        }),
        timed: Timed {
            rows: 1,
            heads: 1,
            cost: n * top_k * experts,
            cut: Box::new(move |at, out| {
                let got = out.iter().map(|(name, out)| Ok((*name, at.whole(out)?)));
                Ok((case(&listed), got.collect::<Result<_, CaseError>>()?))
            }),
        },
    })
}
