use super::*;
use crate::args::KernelArgs;
use crate::peaks::Ceilings;
use crate::session::{Effort, Session};
use crate::specs;
use clap::Parser;
use dsa_figures::Gate;
use dsa_gate::bench::{Axes, BUDGET, MOST_ROWS, Spec};
use dsa_gate::kernels::{ALL, find};
use dsa_kernels::Tensor;

/// Sizes that fit no tile and no page, with more heads than one timing judges.
fn axes() -> Axes {
    Axes {
        contexts: vec![333],
        s_q: 71,
        batch: 3,
        heads: 6,
        index_heads: 5,
        topk: 40,
        dtype: DType::Bf16,
    }
}

fn passed() -> PassedGate {
    Gate::judge("the gate before it", 0.5, 1.0, "a small case", 3).unwrap()
}

fn judged(device: &Device, spec: &Spec, outputs: &Named) -> anyhow::Result<PassedGate> {
    judge(find(spec.kernel).unwrap(), device, &spec.timed, outputs, 7, &passed())
}

/// `tensor` with one bit of its last row's first element turned over: the last row is always drawn.
fn wrong(device: &Device, tensor: &Tensor, timed: &Timed) -> Tensor {
    let mut bytes = tensor.download().unwrap();
    let (row, size) = (bytes.len() / timed.rows, tensor.dtype().size());
    // The highest bit of a float's exponent, or of an integer; any bit of a byte.
    let heads = timed.heads.max(1);
    for head in 0..heads {
        bytes[(timed.rows - 1) * row + head * (row / heads) + size - 1] ^= 0x40;
    }
    device.upload(&bytes, tensor.shape(), tensor.dtype()).unwrap()
}

#[test]
fn what_every_spec_computes_passes_and_one_wrong_element_of_any_output_is_caught() {
    let device = Device::named("cpu").unwrap();
    let specs = specs::all(&device, &axes(), 7, "").unwrap();
    for kernel in ALL {
        assert!(
            specs.iter().any(|spec| spec.kernel == kernel.name),
            "{} is not timed",
            kernel.name
        );
    }
    for spec in &specs {
        let outputs = (spec.work)().unwrap();
        let gate =
            judged(&device, spec, &outputs).unwrap_or_else(|e| panic!("{}: {e:#}", spec.kernel));
        assert_eq!(gate.cases(), 4, "{}", spec.kernel);
        for (i, (name, output)) in outputs.iter().enumerate() {
            let mut planted = outputs.clone();
            planted[i].1 = wrong(&device, output, &spec.timed);
            let error =
                judged(&device, spec, &planted).map(|_| format!("{name} passed")).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("fell after it was timed, rows ["), "{error}");
            assert!(error.contains(&format!("{name}[")), "{error}");
        }
    }
}

#[test]
fn a_wrong_row_is_caught_wherever_the_seed_draws_it() {
    let device = Device::named("cpu").unwrap();
    let specs = specs::all(&device, &axes(), 7, "sparse_mla").unwrap();
    let spec = &specs[0];
    let outputs = (spec.work)().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        seen.extend(spec.timed.draw(&device, seed).rows);
    }
    assert!(seen.len() > 60 && seen.contains(&70), "{seen:?}");
    // A whole row of zeros in the middle falls with a seed that draws it.
    let kernel = find(spec.kernel).unwrap();
    let row = *spec.timed.draw(&device, 7).rows.first().unwrap();
    let mut bytes = outputs[0].1.download().unwrap();
    let width = bytes.len() / spec.timed.rows;
    bytes[row * width..(row + 1) * width].fill(0);
    let mut planted = outputs.clone();
    planted[0].1 = device.upload(&bytes, outputs[0].1.shape(), outputs[0].1.dtype()).unwrap();
    assert!(judge(kernel, &device, &spec.timed, &planted, 7, &passed()).is_err());
}

#[test]
fn few_rows_and_heads_are_drawn_where_the_reference_is_dear_and_the_last_row_always() {
    let device = Device::named("cpu").unwrap();
    let timed =
        |rows, heads, cost| Timed { rows, heads, cost, cut: Box::new(|_, _| unreachable!()) };
    for seed in 0..50 {
        let drawn = timed(1000, 128, BUDGET).draw(&device, seed);
        assert_eq!((drawn.rows, drawn.heads.len()), (vec![999], 1));
        let drawn = timed(1000, 128, BUDGET / 20).draw(&device, seed);
        assert_eq!((drawn.rows.len(), drawn.heads.len()), (MOST_ROWS, 2));
        assert!(drawn.rows.is_sorted() && drawn.rows.contains(&999) && drawn.heads.end <= 128);
        let drawn = timed(3, 4, 1).draw(&device, seed);
        assert_eq!((drawn.rows, drawn.heads), (vec![0, 1, 2], 0..4));
    }
}

#[test]
fn no_row_is_written_of_a_timing_whose_output_is_wrong() {
    let device = Device::named("cpu").unwrap();
    let folder = std::env::temp_dir().join(format!("dsa-timed-{}", std::process::id()));
    let rows = folder.join("rows.jsonl");
    let (to, pictures) = (rows.display().to_string(), folder.display().to_string());
    let args = KernelArgs::parse_from(["kernels", "--rows", &to, "--figures", &pictures]).common;
    let mut specs = specs::all(&device, &axes(), 7, "hadamard").unwrap();
    for spec in &mut specs {
        let x = device.upload_f32(&[1.0; 128], &[1, 128], DType::Bf16).unwrap();
        let shape = [axes().s_q * axes().index_heads, 128];
        spec.work = Box::new(move || {
            dsa_kernels::hadamard::hadamard(&x)?;
            let device = x.device();
            Ok(vec![("out", device.upload_f32(&vec![0.5; shape[0] * 128], &shape, DType::Bf16)?)])
        });
    }
    let ceilings = Ceilings::of_test();
    let mut session = Session::open("kernels", "cargo bench".into(), args, device).unwrap();
    let effort = Effort { seconds: 0.01, gate_cases: 1 };
    let error = session.kernels(specs, effort, &ceilings).unwrap_err();
    assert!(format!("{error:#}").contains("hadamard fell after it was timed"), "{error:#}");
    let written = std::fs::read_to_string(&rows).unwrap_or_default();
    let _ = std::fs::remove_dir_all(&folder);
    assert_eq!(written, "");
}
