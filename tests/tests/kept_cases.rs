//! Cases that once went wrong, kept in `tests/data/cases`: each agrees with the reference, and with the
//! right answer that is stored beside it.

use crate::support::{device, kernel_of, same};
use dsa_gate::{Case, Outputs};
use std::path::{Path, PathBuf};

/// The cases with a stored answer.
const ANSWERED: [&str; 4] = [
    "indexer_logits_infinite_key",
    "rms_norm_large_rows",
    "sparse_mla_sink",
    "store_kv_repeated_slots",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cases")
}

/// The kept case `name`.
fn kept(name: &str) -> Case {
    Case::load(&folder().join(format!("{name}.safetensors"))).unwrap()
}

/// The stored answer to the kept case `name`, which has the outputs that its kernel names.
fn answer(name: &str) -> Outputs {
    let case = kept(name);
    let stored = Case::load(&folder().join(format!("{name}.expected.safetensors"))).unwrap();
    let outputs =
        kernel_of(&case).contract.outputs.iter().filter_map(|line| line.split(':').next());
    let answer: Outputs =
        outputs.filter_map(|name| Some((name, stored.tensors.get(name)?.clone()))).collect();
    assert!(!answer.is_empty() && answer.len() == stored.tensors.len(), "{name}: {stored:?}");
    answer
}

/// The names of all kept cases.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name());
    let names = files.filter_map(|file| {
        let name = file.into_string().unwrap().strip_suffix(".safetensors")?.to_string();
        (!name.ends_with(".expected")).then_some(name)
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn every_kept_case_agrees_with_the_reference() {
    let names = names();
    assert!(names.len() >= ANSWERED.len());
    for name in names {
        println!("{name}");
        let case = kept(&name);
        let got = kernel_of(&case).run(&device(), &case).unwrap();
        same(&case.kernel, &got, &kernel_of(&case).reference(&case).unwrap());
    }
}

/// What the kernel and the reference give, against the stored answer.
#[track_caller]
fn holds_the_answer(name: &str) {
    let (case, answer) = (kept(name), answer(name));
    for outputs in [kernel_of(&case).reference(&case), kernel_of(&case).run(&device(), &case)] {
        same(&case.kernel, &outputs.unwrap(), &answer);
    }
}

#[test]
fn an_infinite_key_scores_what_the_formula_gives() {
    holds_the_answer("indexer_logits_infinite_key");
}

#[test]
fn rows_whose_squares_leave_f32s_range_are_normalised() {
    holds_the_answer("rms_norm_large_rows");
}

#[test]
fn the_last_of_the_tokens_for_one_slot_is_kept() {
    holds_the_answer("store_kv_repeated_slots");
}

#[test]
fn a_sink_counts_by_its_own_name_and_by_no_other() {
    holds_the_answer("sparse_mla_sink");
    let mut case = kept("sparse_mla_sink");
    let sink = case.tensors.remove("attn_sink").unwrap();
    let case = case.with("attn_sinks", sink);
    for result in [kernel_of(&case).reference(&case), kernel_of(&case).run(&device(), &case)] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("\"attn_sinks\"; did you mean attn_sink?"), "{error}");
    }
}

#[test]
fn every_stored_answer_has_a_test() {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name());
    let answers = files.filter(|file| file.to_string_lossy().ends_with(".expected.safetensors"));
    assert_eq!(answers.count(), ANSWERED.len());
    assert!(ANSWERED.iter().all(|name| !answer(name).is_empty()));
}
