//! The gate's own promises: whose dimensions come first, what a failure shrinks to, what it prints, and what fell
//! before.

use crate::harness::honest;
use crate::samples::sample;
use crate::support::*;
use dsa_gate::gate::{GateFailure, gate, gate_of, judge, keep, replay};
use dsa_gate::generate::Model;
use dsa_gate::kernels::{ALL, Kernel, find};
use dsa_gate::{Case, CaseError, Outputs, paths};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::path::Path;
use std::path::PathBuf;

/// What a kernel that refuses everything is told to compute, and what is said of it.
fn seen_by_a_refusal(kernel: &str) -> (Vec<Case>, Box<GateFailure>) {
    let seen = RefCell::new(Vec::new());
    let refuses = |case: &Case| -> Result<Outputs, CaseError> {
        seen.borrow_mut().push(case.clone());
        Err(CaseError::UnknownKernel("refused".to_string()))
    };
    let failure = gate_of(find(kernel).unwrap(), &refuses, "nowhere", 128, 7).unwrap_err();
    let _ = std::fs::remove_file(&failure.file);
    (seen.into_inner(), failure)
}

#[test]
fn the_first_case_has_the_dimensions_of_deepseek_v3_2() {
    let first = |kernel| seen_by_a_refusal(kernel).0.remove(0);
    let shape = |case: &Case, name: &str| case.tensors[name].shape[1..].to_vec();
    let case = first("sparse_mla_paged");
    assert_eq!(shape(&case, "q"), [128, 576]);
    assert_eq!(shape(&case, "cache"), [64 * 656]);
    assert_eq!(shape(&first("indexer_logits"), "q"), [64, 128]);
    let case = first("dense_mha");
    assert_eq!((shape(&case, "k"), shape(&case, "v")), (vec![128, 192], vec![128, 128]));
    let case = first("sparse_mla");
    assert_eq!((shape(&case, "q"), case.scalars["d_v"].as_str()), (vec![128, 576], "512"));
    assert_eq!(first("top_k").scalars["topk"], "2048");
    assert_eq!(shape(&first("rms_norm"), "x"), [7168]);
}

#[test]
fn what_falls_at_a_models_dimensions_shrinks_to_the_smallest_case_there_is() {
    let (_, failure) = seen_by_a_refusal("dense_mha");
    let text = failure.to_string();
    assert!(text.contains("after 0 cases that passed, at DeepSeek-V3.2's dimensions"), "{text}");
    for part in [r#""k": f32[1, 1, 1]"#, r#""v": f32[1, 1, 1]"#, r#""strided": "false""#] {
        assert!(failure.case.contains(part), "{part} is not in {}", failure.case);
    }
    let (_, failure) = seen_by_a_refusal("sparse_mla_paged");
    assert!(failure.case.contains("f32[1, 1, "), "{}", failure.case);
}

#[test]
fn one_case_in_four_has_a_models_dimensions_and_four_cases_share_a_form() {
    let report = gate(find("fold_scales").unwrap(), &device(), 128, 7).unwrap();
    assert_eq!((report.cases, report.forms), (128, 32));
    assert_eq!(report.of_models, [(Model::DeepSeekV32, 16), (Model::Glm5, 16)]);
    let text = report.to_string();
    for part in
        ["16 cases at DeepSeek-V3.2's", "16 cases at GLM-5's", "paths of this device: 1 of 1"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // Fewer than a form has inputs.
    let report = gate(find("fold_scales").unwrap(), &device(), 6, 7).unwrap();
    assert_eq!((report.cases, report.forms), (6, 2));
}

#[test]
fn nothing_checked_is_no_pass() {
    let failure = gate(find("fold_scales").unwrap(), &device(), 0, 7).unwrap_err();
    assert!(failure.reason.contains("0 cases"), "{failure}");
}

#[test]
fn inputs_of_one_form_have_its_sizes_and_other_values() {
    for kernel in ALL {
        let forms = (kernel.forms)();
        let mut runner = TestRunner::deterministic();
        for strategy in forms.production.iter().chain([&forms.random]) {
            let form = strategy.new_tree(&mut runner).unwrap().current();
            let (a, b) = (form.case(1), form.case(2));
            assert!(a == form.case(1), "{form:?} is no function of its seed");
            assert!(format!("{:?}", a.tensors) == format!("{:?}", b.tensors), "{a:?} and {b:?}");
            let empty = a.tensors.values().any(|tensor| tensor.bytes.is_empty());
            assert!(a != b || empty, "{a:?}");
        }
    }
}

#[test]
fn the_reader_of_a_record_is_told_from_the_other_one() {
    let forms = (find("sparse_mla_paged").unwrap().forms)();
    let mut runner = TestRunner::deterministic();
    let case = forms.production[0].new_tree(&mut runner).unwrap().current().case(1);
    let runs = |strided: &str| paths::of(&case.clone().set("strided", strided), &device());
    for (strided, by) in [
        ("false", "records by vectors"),
        ("wide", "records by vectors"),
        ("true", "records by bytes"),
    ] {
        assert!(runs(strided).contains(&by), "{strided}: {:?}", runs(strided));
    }
}

#[test]
fn every_path_a_case_runs_is_in_the_kernels_list() {
    for kernel in ALL {
        let (all, forms) = ((kernel.paths.all)(&device()), (kernel.forms)());
        let mut runner = TestRunner::deterministic();
        for strategy in forms.production.iter().chain([&forms.random; 6]) {
            let case = strategy.new_tree(&mut runner).unwrap().current().case(1);
            for path in paths::of(&case, &device()) {
                assert!(all.contains(&path), "{path} of {}: {all:?}", kernel.name);
            }
        }
    }
}

#[test]
fn gaps_behind_rows_are_of_three_elements_of_sixteen_bytes_and_of_128_elements() {
    use dsa_kernels::DType::{Bf16, F32, U8};
    let case = |strided: &str| Case::new("gemm").set("strided", strided);
    assert_eq!(Case::new("gemm").gap(F32).unwrap(), 0);
    assert_eq!(case("false").gap(F32).unwrap(), 0);
    assert_eq!(case("true").gap(F32).unwrap(), 3);
    assert_eq!([F32, Bf16, U8].map(|dtype| case("aligned").gap(dtype).unwrap()), [4, 8, 16]);
    assert_eq!(case("wide").gap(F32).unwrap(), 128);
    assert!(case("yes").gap(F32).unwrap_err().to_string().contains("aligned"));
}

#[test]
fn the_commands_of_a_failure_run_as_printed() {
    let spoils = |case: &Case| {
        let mut outputs = honest(case)?;
        outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0x3f));
        Ok(outputs)
    };
    let kernel = find("fold_scales").unwrap();
    let named = device().kind().to_string();
    let failure = gate_of(kernel, &spoils, &named, 8, 7).unwrap_err();
    let text = failure.to_string();
    let folder = tempfile::tempdir().unwrap();
    let commands: Vec<&str> =
        text.lines().filter(|line| line.contains(" run fold_scales ")).collect();
    assert_eq!(commands.len(), 2, "{text}");
    for command in commands {
        // Behind the program's name, as a shell would split it: the path holds no space.
        let (program, arguments) = command.split_once(" run fold_scales ").unwrap();
        assert!(program.ends_with("cargo run --release --bin dsa --"), "{program}");
        let out = folder.path().join("out");
        let mut arguments: Vec<_> = arguments.split(' ').map(str::to_string).collect();
        *arguments.last_mut().unwrap() = out.display().to_string();
        let arguments =
            ["dsa", "run", "fold_scales"].map(str::to_string).into_iter().chain(arguments);
        dsa_cli::run(arguments.map(Into::into), &mut Vec::new()).unwrap();
        assert!(Case::load(&out).is_ok());
        std::fs::remove_file(&out).unwrap();
    }
    std::fs::remove_file(&failure.file).unwrap();
}

/// `fold_scales` with a reference that is wrong.
fn broken() -> Kernel {
    fn wrong(case: &Case) -> Result<Outputs, CaseError> {
        let mut outputs = honest(case)?;
        outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0x3f));
        Ok(outputs)
    }
    let found = find("fold_scales").unwrap();
    Kernel { compute: wrong, ..*found }
}

#[test]
fn what_fell_is_replayed_and_told_from_what_is_no_case() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = find("fold_scales").unwrap();
    let nowhere = folder.path().join("none");
    assert_eq!(replay(kernel, &device(), &nowhere).unwrap().cases, 0);
    sample("fold_scales").save(&folder.path().join("fold_scales-1.safetensors")).unwrap();
    sample("gemm").save(&folder.path().join("gemm-1.safetensors")).unwrap();
    let replayed = replay(kernel, &device(), folder.path()).unwrap();
    assert_eq!((replayed.cases, replayed.fallen.len(), replayed.unread.len()), (1, 0, 0));
    let replayed = replay(&broken(), &device(), folder.path()).unwrap();
    assert_eq!((replayed.cases, replayed.fallen.len()), (1, 1));
    std::fs::write(folder.path().join("fold_scales-2.safetensors"), b"no case").unwrap();
    sample("gemm").save(&folder.path().join("fold_scales-3.safetensors")).unwrap();
    assert_eq!(replay(kernel, &device(), folder.path()).unwrap().unread.len(), 2);
}

#[test]
fn a_case_is_kept_for_good_by_its_kernel_and_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (file, kept) = (folder.path().join("some file"), folder.path().join("kept"));
    sample("fold_scales").save(&file).unwrap();
    let path = keep(&file, &kept).unwrap();
    assert!(path.file_name().unwrap().to_str().unwrap().starts_with("fold_scales-"));
    assert!(Case::load(&path).unwrap() == sample("fold_scales"));
    assert_eq!(keep(&file, &kept).unwrap(), path, "and once");
    let kernel = find("fold_scales").unwrap();
    assert_eq!(replay(kernel, &device(), &kept).unwrap().cases, 1);
    assert!(judge(kernel, &honest, &Case::load(&path).unwrap()).is_ok());
    // What is no case of a kernel, or large, is not kept.
    Case::new("nothing").save(&file).unwrap();
    assert!(keep(&file, &kept).is_err());
    Case::new("fold_scales")
        .with("weights", f32s(&[1 << 20], &vec![0.0; 1 << 20]))
        .save(&file)
        .unwrap();
    assert!(keep(&file, &kept).unwrap_err().to_string().contains("as small as it shrank"));
    assert!(keep(Path::new("/no/such/file"), &kept).is_err());
}

/// What `dsa ARGUMENTS` prints, and whether it succeeds.
fn dsa(arguments: &[&str]) -> (String, bool) {
    let mut out = Vec::new();
    let arguments = ["dsa"].into_iter().chain(arguments.iter().copied());
    match dsa_cli::run(arguments.map(Into::into), &mut anstream::StripStream::new(&mut out)) {
        Ok(code) => (String::from_utf8(out).unwrap(), code == std::process::ExitCode::SUCCESS),
        Err(error) => (dsa_cli::report(&error).0, false),
    }
}

#[test]
fn check_prints_its_seed_first_and_draws_another_each_time() {
    let first = |arguments: &[&str]| {
        let (text, ok) = dsa(&[&["check", "fold_scales", "--cases", "4"], arguments].concat());
        assert!(ok, "{text}");
        text.lines().next().unwrap().to_string()
    };
    assert_eq!(first(&["--seed", "5"]), "seed 5 (DSA_SEED=5 draws the same cases again)");
    assert!(first(&[]).starts_with("seed "));
    // Unless the environment gives one.
    assert!(std::env::var_os("DSA_SEED").is_some() || first(&[]) != first(&[]));
}

#[test]
fn check_refuses_no_cases_and_a_seed_that_is_no_number() {
    for arguments in [["--cases", "0"], ["--cases", "x"], ["--seed", "abc"], ["--seed", "0x7"]] {
        let (text, ok) = dsa(&[&["check", "fold_scales"], &arguments[..]].concat());
        assert!(!ok && text.contains(arguments[1]), "{text}");
    }
}

/// The sources below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(sources(&path)),
            false => all.extend((path.extension() == Some("rs".as_ref())).then_some(path)),
        }
    }
    all
}

#[test]
fn the_gate_knows_a_kernel_in_its_own_file_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["tests/gate/src", "benches/src", "benches/benches", "model/cli/src"] {
        files.extend(sources(&root.join(folder)));
    }
    // The layer's verification runs kernels of its own choice; what is behind `cfg(test)` names samples.
    let layer = Path::new("gate").join("src").join("layer");
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        // A size may bear a kernel's name, `top_k` experts of a token, and so does a function of the reference.
        let code = &ALL.iter().fold(code.to_owned(), |code, kernel| {
            let size = format!("(\"{0}\", {0})", kernel.name);
            code.replace(&size, "").replace(&format!("reference: (\"{}\", ", kernel.name), "")
        });
        let file = path.file_stem().unwrap().to_str().unwrap();
        let is_layer = path.to_str().unwrap().contains(layer.to_str().unwrap());
        for kernel in ALL.iter().filter(|kernel| kernel.name != file && !is_layer) {
            let name = format!("\"{}\"", kernel.name);
            assert!(!code.contains(&name) || file == "tests", "{name} is in {}", path.display());
        }
    }
}
