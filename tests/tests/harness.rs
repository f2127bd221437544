//! The harness itself: kernels that cheat must be caught, and what it says about them must be usable.
//!
//! A cheat spoils the reference's own outputs, so nothing else can be what it is caught for.

use crate::support::{device, has};
use dsa_tests::gate::{GateFailure, Run, gate, gate_of, judge};
use dsa_tests::kernels::{Kernel, find};
use dsa_tests::{Case, CaseError, HostTensor, Outputs};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CASES: u32 = 64;
const SEED: u64 = 7;

/// Cheats of one kernel may fall on the same case, hence write and remove the same file.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn honest(case: &Case) -> Result<Outputs, CaseError> {
    (find(&case.kernel)?.reference)(case)
}

/// The gate's verdict on a cheat of `kernel`, after a check that the case it saved shows the same.
#[track_caller]
fn caught(kernel: &str, cheat: &Run) -> Box<GateFailure> {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let kernel = find(kernel).unwrap();
    let Err(failure) = gate_of(kernel, cheat, "nowhere", CASES, SEED) else {
        panic!("a cheat of {} passed the gate", kernel.name);
    };
    let saved = Case::load(Path::new(&failure.file)).unwrap();
    std::fs::remove_file(&failure.file).unwrap();
    assert_eq!(format!("{saved:?}"), failure.case, "the file holds the case that fell");
    assert_eq!(judge(kernel, cheat, &saved).unwrap_err(), failure.reason, "and it falls again");
    assert!(judge(kernel, &honest, &saved).is_ok(), "but not for an honest kernel");
    failure
}

/// A cheat that changes the outputs of the honest kernel.
fn spoiled(kernel: &str, spoil: impl Fn(&Case, &mut Outputs)) -> Box<GateFailure> {
    let cheat = |case: &Case| {
        let mut outputs = honest(case)?;
        spoil(case, &mut outputs);
        Ok(outputs)
    };
    caught(kernel, &cheat)
}

/// A cheat that runs the honest kernel on other inputs.
fn misled(kernel: &str, mislead: impl Fn(&Case) -> Case) -> Box<GateFailure> {
    caught(kernel, &|case| honest(&mislead(case)))
}

/// `case` with tensor `name`, if it has it, mapped as i32.
fn with_ints(case: &Case, name: &str, f: impl Fn(i32) -> i32) -> Case {
    let tensor = &case.tensors[name];
    let values: Vec<i32> = tensor.to_i32().into_iter().map(f).collect();
    case.clone().with(name, HostTensor::i32(&tensor.shape, &values))
}

fn with_floats(tensor: &HostTensor, f: impl Fn(f32) -> f32) -> HostTensor {
    let values: Vec<f32> = tensor.to_f32().into_iter().map(f).collect();
    HostTensor::new(tensor.dtype, &tensor.shape, &values)
}

#[test]
fn an_honest_kernel_passes_on_the_device() {
    for kernel in ["fold_scales", "act_quant"] {
        let report = gate(find(kernel).unwrap(), &device(), CASES, SEED).unwrap();
        assert_eq!((report.cases, report.seed), (CASES, SEED));
        assert!(report.worst_error() <= 1.0);
        assert!(report.to_string().starts_with(&format!("{kernel}: {CASES} cases passed")));
    }
}

#[test]
fn zeros_are_caught() {
    let kernels = ["act_quant", "hadamard", "rope", "layer_norm", "gemm", "indexer_logits"];
    let attention = ["top_k", "sparse_mla", "sparse_mla_paged", "dense_mha", "dense_mla"];
    for kernel in kernels.into_iter().chain(attention) {
        spoiled(kernel, |_, outputs| {
            outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0));
        });
    }
}

#[test]
fn outputs_that_were_never_written_are_caught() {
    for kernel in ["store_kv", "store_index_keys", "round_trip", "rms_norm", "fold_scales"] {
        spoiled(kernel, |_, outputs| {
            outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0xa5));
        });
    }
}

#[test]
fn the_outputs_of_the_call_before_are_caught() {
    for kernel in ["fold_scales", "top_k", "indexer_logits", "dense_mla"] {
        // A buffer that is reused: what the last call left, as long as this call's outputs.
        let last: RefCell<Option<Outputs>> = RefCell::new(None);
        let cheat = |case: &Case| {
            let honest = honest(case)?;
            let mut stale = honest.clone();
            if let Some(last) = last.replace(Some(honest)) {
                for (name, tensor) in &mut stale {
                    let left = last[name].bytes.iter().cycle();
                    tensor.bytes.iter_mut().zip(left).for_each(|(byte, left)| *byte = *left);
                }
            }
            Ok(stale)
        };
        let failure = gate_of(find(kernel).unwrap(), &cheat, "nowhere", CASES, SEED).unwrap_err();
        std::fs::remove_file(&failure.file).unwrap();
        assert!(failure.to_string().contains(kernel), "{failure}");
    }
}

#[test]
fn a_last_row_that_is_skipped_is_caught() {
    for kernel in ["act_quant", "gemm", "indexer_logits", "top_k", "sparse_mla", "dense_mha"] {
        spoiled(kernel, |_, outputs| {
            for tensor in outputs.values_mut().filter(|t| t.shape[0] > 0) {
                let row = tensor.bytes.len() / tensor.shape[0];
                let at = tensor.bytes.len() - row;
                tensor.bytes[at..].fill(0);
            }
        });
    }
}

#[test]
fn last_columns_that_are_skipped_are_caught() {
    for kernel in ["hadamard", "rms_norm", "gemm", "indexer_logits", "sparse_mla_paged"] {
        spoiled(kernel, |_, outputs| {
            for tensor in outputs.values_mut() {
                let (row, size) = (*tensor.shape.last().unwrap_or(&0), tensor.dtype.size());
                for row in tensor.bytes.chunks_mut((row * size).max(1)) {
                    let tail = row.len() / size / 4 * size;
                    let at = row.len() - tail;
                    row[at..].fill(0);
                }
            }
        });
    }
}

#[test]
fn a_tie_that_the_highest_index_wins_is_caught() {
    let failure = caught("top_k", &|case| {
        // The honest selection on mirrored columns, mirrored back.
        let logits = case.tensor("logits")?;
        let (rows, length) = (logits.shape[0], logits.shape[1] as i32);
        let mut mirrored = logits.to_f32();
        mirrored.chunks_mut(length.max(1) as usize).for_each(<[f32]>::reverse);
        let fixed = case.scalars.get("policy").is_none_or(|policy| policy == "fixed");
        if !fixed {
            return honest(case);
        }
        let mirror = |name: &str| with_ints(case, name, |n| length - n.clamp(0, length));
        let case = case
            .clone()
            .with("logits", HostTensor::new(logits.dtype, &logits.shape, &mirrored))
            .with("ks", mirror("ke").tensors["ke"].clone())
            .with("ke", mirror("ks").tensors["ks"].clone());
        let mut outputs = honest(&case)?;
        let indices = outputs.get_mut("indices").unwrap();
        let topk = indices.shape[1];
        let mut all = indices.to_i32();
        for list in all.chunks_mut(topk) {
            let taken = list.iter().filter(|n| **n >= 0).count();
            list[..taken].iter_mut().for_each(|n| *n = length - 1 - *n);
            list[..taken].reverse();
        }
        *indices = HostTensor::i32(&[rows, topk], &all);
        Ok(outputs)
    });
    assert!(failure.reason.contains("indices["), "{failure}");
}

#[test]
fn indices_in_descending_order_are_caught() {
    spoiled("top_k", |_, outputs| {
        let indices = outputs.get_mut("indices").unwrap();
        let (shape, mut all) = (indices.shape.clone(), indices.to_i32());
        for list in all.chunks_mut(shape[1]) {
            let taken = list.iter().filter(|n| **n >= 0).count();
            list[..taken].reverse();
        }
        *indices = HostTensor::i32(&shape, &all);
    });
}

#[test]
fn a_range_that_ends_one_key_late_or_early_is_caught() {
    for kernel in ["indexer_logits", "top_k", "dense_mha", "dense_mla"] {
        misled(kernel, |case| with_ints(case, "ke", |ke| ke.saturating_add(1)));
        misled(kernel, |case| with_ints(case, "ke", |ke| ke.saturating_sub(1)));
        misled(kernel, |case| with_ints(case, "ks", |ks| ks.saturating_add(1)));
    }
    misled("indexer_logits_paged", |case| with_ints(case, "context_lens", |len| len - 1));
}

#[test]
fn a_last_listed_key_that_is_dropped_is_caught() {
    for kernel in ["sparse_mla", "sparse_mla_paged"] {
        misled(kernel, |case| {
            let (s, topk) = (case.tensors["indices"].shape[0], case.tensors["indices"].shape[1]);
            let all = HostTensor::i32(&[s], &vec![topk as i32; s]);
            let lengths = case.tensors.get("topk_length").cloned().unwrap_or(all);
            let case = case.clone().with("topk_length", lengths);
            with_ints(&case, "topk_length", |n| n.clamp(0, topk as i32) - 1)
        });
    }
}

#[test]
fn an_index_of_minus_one_taken_for_row_zero_is_caught() {
    misled("sparse_mla", |case| with_ints(case, "indices", |n| if n == -1 { 0 } else { n }));
}

#[test]
fn a_rotation_the_wrong_way_is_caught() {
    misled("rope", |case| case.clone().with("sin", with_floats(&case.tensors["sin"], |sin| -sin)));
    misled("rope", |case| {
        let other =
            if case.scalars["pairing"] == "interleaved" { "half_split" } else { "interleaved" };
        case.clone().set("pairing", other)
    });
}

#[test]
fn an_lse_in_base_two_is_caught() {
    for kernel in ["sparse_mla", "dense_mha", "dense_mla"] {
        let failure = spoiled(kernel, |_, outputs| {
            let lse = outputs.get_mut("lse").unwrap();
            *lse = with_floats(lse, |lse| lse / std::f32::consts::LN_2);
        });
        assert!(failure.reason.starts_with("lse["), "{failure}");
    }
}

#[test]
fn a_nan_in_place_of_zero_for_a_row_without_a_key_is_caught() {
    for kernel in ["sparse_mla", "sparse_mla_paged", "dense_mha", "dense_mla"] {
        let failure = spoiled(kernel, |_, outputs| {
            let lse = outputs["lse"].to_f32();
            let out = outputs.get_mut("out").unwrap();
            let d_v = *out.shape.last().unwrap();
            let mut values = out.to_f32();
            for (row, _) in lse.iter().enumerate().filter(|(_, lse)| **lse == f32::INFINITY) {
                values[row * d_v..(row + 1) * d_v].fill(f32::NAN);
            }
            *out = HostTensor::new(out.dtype, &out.shape, &values);
        });
        assert!(failure.reason.contains("is NaN where 0 is expected"), "{failure}");
    }
}

#[test]
fn an_lse_of_minus_infinity_for_a_row_without_a_key_is_caught() {
    let failure = spoiled("sparse_mla", |_, outputs| {
        let lse = outputs.get_mut("lse").unwrap();
        *lse = with_floats(lse, |lse| if lse == f32::INFINITY { -lse } else { lse });
    });
    assert!(failure.reason.contains("is -inf where inf is expected"), "{failure}");
}

#[test]
fn a_softmax_scale_or_a_weight_off_by_a_hundredth_is_caught() {
    for kernel in ["sparse_mla", "dense_mha"] {
        misled(kernel, |case| {
            let scale: f32 = case.scalar("softmax_scale").unwrap();
            case.clone().set("softmax_scale", scale * 1.01)
        });
    }
    misled("indexer_logits", |case| {
        case.clone().with("weights", with_floats(&case.tensors["weights"], |w| w * 1.01))
    });
}

#[test]
fn an_output_of_another_type_is_caught() {
    use dsa_kernels::DType::{Bf16, F32};
    for kernel in ["gemm", "sparse_mla", "rms_norm", "indexer_logits"] {
        let failure = spoiled(kernel, |_, outputs| {
            for tensor in outputs.values_mut() {
                *tensor = tensor.cast(if tensor.dtype == F32 { Bf16 } else { F32 });
            }
        });
        assert!(
            failure.reason.contains(", expected f32[")
                || failure.reason.contains("expected bf16[")
                || failure.reason.contains("expected f16["),
            "{failure}"
        );
    }
}

#[test]
fn an_output_that_is_missing_is_caught_by_its_name() {
    for (kernel, output) in [("dense_mla", "lse"), ("act_quant", "scale"), ("gemm", "out")] {
        let failure = spoiled(kernel, |_, outputs| {
            outputs.remove(output);
        });
        assert!(failure.reason.starts_with(&format!("output {output} is missing")), "{failure}");
    }
}

#[test]
fn an_output_of_another_shape_is_caught() {
    let failure = spoiled("top_k", |_, outputs| {
        outputs.get_mut("indices").unwrap().shape.reverse();
    });
    assert!(failure.reason.starts_with("output indices is i32["), "{failure}");
}

#[test]
fn a_kernel_that_refuses_a_case_is_caught() {
    let failure = caught("rope", &|case| case.tensor("no such tensor").map(|_| Outputs::new()));
    assert!(failure.reason.contains("no such tensor"), "{failure}");
}

#[test]
fn a_failure_names_the_output_the_position_the_case_the_seed_and_the_file() {
    let failure = spoiled("fold_scales", |_, outputs| {
        let out = outputs.get_mut("out").unwrap();
        *out = with_floats(out, |value| value + 1.0);
    });
    let message = failure.to_string();
    // Shrunk to the smallest case there is: one row of one head.
    assert!(failure.reason.starts_with("out[0, 0] is "), "{message}");
    for part in [
        "fold_scales fell on nowhere",
        &format!("DSA_SEED={SEED}"),
        "fold_scales {\"q_scale\": f32[1, 1], \"weights\": f32[1, 1]}",
        "of what is allowed",
        &format!("saved to {}", failure.file),
        &format!("dsa run fold_scales --inputs {} --device nowhere", failure.file),
    ] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn the_kernel_runs_before_the_reference() {
    static CLOCK: AtomicUsize = AtomicUsize::new(0);
    static REFERENCE_AT: AtomicUsize = AtomicUsize::new(0);
    fn reference(case: &Case) -> Result<Outputs, CaseError> {
        REFERENCE_AT.store(CLOCK.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        (find(&case.kernel)?.reference)(case)
    }
    let found = find("fold_scales").unwrap();
    let watched = Kernel {
        name: found.name,
        file: found.file,
        tensors: found.tensors,
        scalars: found.scalars,
        outputs: found.outputs,
        machine: found.machine,
        run: found.run,
        reference,
    };
    let ran_at = RefCell::new(usize::MAX);
    let run = |case: &Case| {
        ran_at.replace(CLOCK.fetch_add(1, Ordering::SeqCst));
        honest(case)
    };
    let case = crate::samples::sample("fold_scales");
    judge(&watched, &run, &case).unwrap();
    assert_eq!((ran_at.take(), REFERENCE_AT.load(Ordering::SeqCst)), (0, 1));
}

#[test]
#[should_panic(expected = "out[0, 1]")]
fn a_test_that_expects_another_value_fails() {
    let case = crate::samples::sample("fold_scales");
    let got = honest(&case).unwrap();
    let mut values = got["out"].to_f32();
    values[1] += 1.0;
    has("fold_scales", &got, "out", &values);
}
