//! Index lists shifted to the rows of their request.

use super::*;
use dsa_kernels::top_k::{self, shift_indices};

pub(super) const KERNEL: Kernel = Kernel {
    name: top_k::SHIFT_INDICES.name,
    contract: top_k::SHIFT_INDICES,
    file: "top_k.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "n * topk",
    tolerance: tolerance::exact,
    machine: top_k::machine,
    launch: run,
    compute: reference,
    reference: ("reference", "tests/gate/src/kernels/shift_indices.rs"),
    forms,
    paths: Paths::one("indices"),
    production: || vec![case(ints(&[v32::FEW, v32::TOPK]), ints(&[v32::FEW]))],
    sample: || case(HostTensor::i32(&[2, 3], &[4, 0, -1, 7, -1, -1]), vector(&[10, 20])),
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

fn case(indices: HostTensor, first: HostTensor) -> Case {
    Case::new(KERNEL.name).with("indices", indices).with("first", first)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (indices, first) = (case.upload(device, "indices")?, case.upload(device, "first")?);
    let out = shift_indices(&indices, &first)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (mut indices, first) = (case.array_i32::<ndarray::Ix2>("indices")?, case.vec_i32("first")?);
    for (mut row, first) in indices.axis_iter_mut(Axis(0)).zip(first) {
        row.iter_mut().filter(|index| **index >= 0).for_each(|index| *index += first);
    }
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("out", HostTensor::i32(indices.shape(), &values))]))
}

fn forms() -> Forms {
    let production = |_: Model| (1usize..9, Exactly(v32::TOPK));
    Forms::new((1usize..9, 1usize..70), production, |(n, topk): &(usize, usize), rng: &mut Rng| {
        let indices: Vec<i32> = (0..n * topk)
            .map(|_| if rng.one_in(4) { -1 } else { rng.below(1 << 20) as i32 })
            .collect();
        let first: Vec<i32> = (0..*n).map(|_| rng.below(1 << 20) as i32).collect();
        Case::new(KERNEL.name)
            .with("indices", HostTensor::i32(&[*n, *topk], &indices))
            .with("first", HostTensor::i32(&[*n], &first))
    })
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, topk) = (axes.s_q, axes.topk);
    let mut rng = Rng::new(seed);
    // One entry in four is none.
    let listed: Vec<i32> = (0..n * topk).map(|_| rng.below(1 << 18) as i32).collect();
    let listed: Vec<i32> = listed.iter().map(|i| if i % 4 == 0 { -1 } else { *i }).collect();
    let first: Vec<i32> = (0..n).map(|_| rng.below(1 << 24) as i32).collect();
    let (indices, first) = (device.upload_i32(&listed, &[n, topk])?, vec_i32(device, &first)?);
    let gate = Case::new(KERNEL.name)
        .with("indices", HostTensor::i32(&[2, topk.min(7)], &listed[..2 * topk.min(7)]))
        .with("first", HostTensor::i32(&[2], &[3, 100]));
    let inputs = [indices.clone(), first.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("s_q", n), ("topk", topk)]),
        dtype: DType::I32.to_string(),
        flop: 0,
        bytes: (8 * n * topk) as u64,
        gate,
        work: Box::new(move || Ok(one("out", shift_indices(&indices, &first)?))),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: topk,
            cut: Box::new(move |at, out| {
                let [indices, first] = &inputs;
                let case = Case::new(KERNEL.name).with("indices", at.rows(indices)?);
                Ok((case.with("first", at.rows(first)?), at.outputs(out)?))
            }),
        },
    })
}
