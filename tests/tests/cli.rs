//! The command line, called in process (another binary would link LLVM once more).

use dsa_gate::case::{Case, save_outputs};
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::kernels::{ALL, find};
use dsa_kernels::random::Rng;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The golden model: a tiny random checkpoint with outputs of two other implementations.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

/// Runs `dsa` with `args`; what it prints and whether it succeeded, or what it says of its error.
pub fn dsa(args: &[&str]) -> Result<(String, bool), String> {
    let mut out = Vec::new();
    let all = std::iter::once("dsa").chain(args.iter().copied()).map(Into::into);
    let code = dsa_cli::run(all, &mut anstream::StripStream::new(&mut out))
        .map_err(|error| dsa_cli::report(&error).0)?;
    Ok((String::from_utf8(out).unwrap(), code == ExitCode::SUCCESS))
}

fn small_case() -> Case {
    let mut rng = Rng::new(5);
    Case::new("hadamard")
        .with("x", tensor(&mut rng, dsa_kernels::DType::F32, &[3, 32], Fill::Normal))
}

#[test]
fn doctor_names_the_devices_and_every_kernels_lowering() {
    let (text, ok) = dsa(&["doctor"]).unwrap();
    assert!(ok);
    for word in ["LLVM linked: ", "cuda", "hip", "cpu: ", "plane size", "shared memory", "fp8"] {
        assert!(text.contains(word), "{word:?} is missing in\n{text}");
    }
    for kernel in ALL {
        assert!(text.contains(kernel.name), "{} is missing in\n{text}", kernel.name);
    }
}

#[test]
fn check_takes_kernels_and_files_and_says_how_close_they_are() {
    let (text, ok) = dsa(&["check", "hadamard", "--cases", "3"]).unwrap();
    assert!(
        ok && text.contains("PASS hadamard: 3 cases") && text.contains("% of the tolerance"),
        "{text}"
    );
    let error = dsa(&["check", "no_such_kernel"]).unwrap_err();
    assert!(error.contains("no_such_kernel") && error.contains("sparse_mla"), "{error}");
    let error = dsa(&["check", "hadamard", "--device", "abacus"]).unwrap_err();
    assert!(error.contains("abacus") && error.contains("cpu"), "{error}");
}

#[test]
fn a_mistyped_name_is_answered_with_the_one_that_was_meant() {
    for (typed, meant) in [("topk", "top_k"), ("kernels/src/indexr.rs", "indexer")] {
        let error = dsa(&["check", typed]).unwrap_err();
        assert!(error.contains(&format!("did you mean {meant}?")), "{error}");
    }
}

#[test]
fn check_judges_one_case_and_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    small_case().save(&file).unwrap();
    let file = file.to_str().unwrap();
    let (text, ok) = dsa(&["check", "--case", file]).unwrap();
    assert!(ok && text.starts_with("PASS hadamard {\"x\": f32[3, 32]}"), "{text}");
    assert!(text.contains("× the tolerance"), "{text}");
    let (text, ok) = dsa(&["check", "--case", file, "--json"]).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok && line["passed"] == true && line["kernel"] == "hadamard", "{text}");
    assert!(dsa(&["check", "--case", "/no/such/file"]).unwrap_err().contains("/no/such/file"));
    assert!(dsa(&["check", "hadamard", "--case", file]).unwrap_err().contains("cannot be used"));
    for flags in [["--case", file, "--seed", "3"], ["--keep", file, "--cases", "3"]] {
        let error = dsa(&[&["check"], &flags[..]].concat()).unwrap_err();
        assert!(error.contains("it draws no cases"), "{error}");
    }
}

#[test]
fn check_speaks_json_a_line_a_kernel() {
    let arguments = ["check", "hadamard", "swiglu", "--cases", "2", "--seed", "5", "--json"];
    let (text, ok) = dsa(&arguments).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(ok && lines.len() == 2, "{text}");
    for (line, kernel) in lines.iter().zip(["hadamard", "swiglu"]) {
        assert_eq!((&line["kernel"], &line["passed"]), (&kernel.into(), &true.into()));
        assert_eq!((&line["cases"], &line["seed"]), (&2.into(), &5.into()));
        let error = line["outputs"][0]["error_of_tolerance"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&error), "{line}");
        assert!(line["compiled"].as_array().unwrap().len() > 1, "{line}");
    }
}

#[test]
fn a_shell_is_told_what_the_command_line_takes() {
    let (script, ok) = dsa(&["completions", "bash"]).unwrap();
    assert!(ok && script.contains("complete -F") && script.contains("verify"), "{script}");
}

#[test]
fn run_and_its_reference_agree_on_a_case_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let case = small_case();
    case.save(&path("case.safetensors")).unwrap();
    let inputs = path("case.safetensors");
    let mut outputs = Vec::new();
    for reference in [false, true] {
        let to = path(if reference { "reference" } else { "kernel" });
        let mut args = vec![
            "run",
            "hadamard",
            "--inputs",
            inputs.to_str().unwrap(),
            "--out",
            to.to_str().unwrap(),
        ];
        if reference {
            args.push("--reference");
        }
        let (text, ok) = dsa(&args).unwrap();
        assert!(ok && text.contains("out: f32[3, 32]"), "{text}");
        outputs.push(Case::load(&to).unwrap().tensors["out"].clone());
    }
    let named = |i: usize| [("out", outputs[i].clone())].into();
    dsa_gate::compare::compare("hadamard", &named(0), &named(1)).unwrap();
}

#[test]
fn run_refuses_a_case_of_another_kernel_a_bad_scalar_and_a_file_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("case.safetensors");
    small_case().save(&inputs).unwrap();
    let (inputs, out) = (inputs.to_str().unwrap(), folder.path().join("out"));
    let out = out.to_str().unwrap();
    let error = dsa(&["run", "rope", "--inputs", inputs, "--out", out]).unwrap_err();
    assert!(error.contains("hadamard") && error.contains("rope"), "{error}");
    let error =
        dsa(&["run", "hadamard", "--inputs", inputs, "--out", out, "--set", "x"]).unwrap_err();
    assert!(error.contains("NAME=VALUE"), "{error}");
    let error = dsa(&["run", "hadamard", "--inputs", "/nowhere", "--out", out]).unwrap_err();
    assert!(error.contains("/nowhere"), "{error}");
    assert!(!Path::new(out).exists(), "nothing is written when nothing ran");
}

#[test]
fn run_help_lists_every_kernels_tensors_scalars_and_outputs() {
    let (text, ok) = dsa(&["run", "--help"]).unwrap();
    assert!(ok);
    for kernel in ALL {
        let contract = &kernel.contract;
        let of_launcher = [contract.tensors, contract.sizes, contract.outputs].concat();
        let lines = kernel.lines().unwrap();
        for line in of_launcher.into_iter().chain(lines.iter().map(String::as_str)) {
            assert!(text.contains(line), "{}: {line:?} is missing", kernel.name);
        }
    }
}

#[test]
fn verify_finds_the_golden_models_keys_by_reference_and_kernels() {
    let (text, ok) = dsa(&["verify", "--checkpoint", golden().to_str().unwrap()]).unwrap();
    assert!(ok, "{text}");
    for side in ["layer 0, reference", "layer 0, kernels"] {
        assert!(text.contains(side), "{side:?} is missing in\n{text}");
    }
}

#[test]
fn verify_fails_on_a_checkpoint_whose_indexer_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "expected.safetensors"] {
        std::fs::copy(golden().join(file), folder.path().join(file)).unwrap();
    }
    // Negate the index keys' norm of layer 0: the stored sets are no longer what it selects.
    let mut model = Case::load(&golden().join("model.safetensors")).unwrap();
    let name = "model.layers.0.self_attn.indexer.k_norm.weight";
    let weight = model.tensors.get_mut(name).unwrap();
    let negated: Vec<f32> = weight.to_f32().iter().map(|w| -w).collect();
    *weight = dsa_gate::HostTensor::new(weight.dtype, &weight.shape.clone(), &negated);
    let names: Vec<&'static str> =
        model.tensors.keys().map(|name| &*Box::leak(name.clone().into_boxed_str())).collect();
    let outputs = names.iter().map(|name| (*name, model.tensors[*name].clone())).collect();
    save_outputs(&folder.path().join("model.safetensors"), &outputs).unwrap();
    let (text, ok) = dsa(&["verify", "--checkpoint", folder.path().to_str().unwrap()]).unwrap();
    assert!(!ok && text.contains("FAILED"), "{text}");
}

#[test]
fn every_kernel_of_the_list_has_a_reference_and_a_file_that_exists() {
    for kernel in ALL {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src").join(kernel.file);
        assert!(file.exists(), "{} names {}", kernel.name, kernel.file);
        assert_eq!(find(kernel.name).unwrap().file, kernel.file);
    }
}
