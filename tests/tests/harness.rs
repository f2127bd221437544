//! The harness itself: kernels that cheat must be caught, and what it says about them must be usable.
//!
//! A cheat spoils the reference's own outputs, so nothing else can be what it is caught for.

use crate::support::{device, has};
use dsa_gate::gate::{GateFailure, Run, gate, gate_of, judge};
use dsa_gate::kernels::{Kernel, find};
use dsa_gate::{Case, CaseError, HostTensor, Outputs};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CASES: u32 = 64;
const SEED: u64 = 7;

/// Cheats of one kernel may fall on the same case, hence write and remove the same file.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub fn honest(case: &Case) -> Result<Outputs, CaseError> {
    find(&case.kernel)?.reference(case)
}

/// The gate's verdict on a cheat of `kernel`, after a check that the case it saved shows the same.
#[track_caller]
pub fn caught(kernel: &str, cheat: &Run) -> Box<GateFailure> {
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
pub fn spoiled(kernel: &str, spoil: impl Fn(&Case, &mut Outputs)) -> Box<GateFailure> {
    let cheat = |case: &Case| {
        let mut outputs = honest(case)?;
        spoil(case, &mut outputs);
        Ok(outputs)
    };
    caught(kernel, &cheat)
}

/// A cheat that runs the honest kernel on other inputs.
pub fn misled(kernel: &str, mislead: impl Fn(&Case) -> Case) -> Box<GateFailure> {
    caught(kernel, &|case| honest(&mislead(case)))
}

/// `tensor` with each number changed, rounded to its type.
pub fn with_floats(tensor: &HostTensor, f: impl Fn(f32) -> f32) -> HostTensor {
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
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let failure = gate_of(find(kernel).unwrap(), &cheat, "nowhere", CASES, SEED).unwrap_err();
        std::fs::remove_file(&failure.file).unwrap();
        assert!(failure.to_string().contains(kernel), "{failure}");
    }
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
fn a_kernel_that_panics_is_caught_and_its_case_saved() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let panics = |_: &Case| -> Result<Outputs, CaseError> { panic!("out of registers") };
    let failure = gate_of(find("rope").unwrap(), &panics, "nowhere", CASES, SEED).unwrap_err();
    assert!(failure.reason.contains("out of registers"), "{failure}");
    assert_eq!(Case::load(Path::new(&failure.file)).unwrap().kernel, "rope");
    std::fs::remove_file(&failure.file).unwrap();
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
        "the tolerance there is 0",
        "out: 1 of 1 elements are wrong",
        "weights = [",
        "fell first: ",
        "so must `reference` in tests/gate/src/kernels/fold_scales.rs",
        &format!("saved to {}", failure.file),
        &format!("run fold_scales --inputs {} --device nowhere", failure.file),
        &format!("check --keep {}", failure.file),
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
        find(&case.kernel)?.reference(case)
    }
    let found = find("fold_scales").unwrap();
    let watched = Kernel { compute: reference, ..*found };
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
