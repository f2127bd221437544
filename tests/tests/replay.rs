//! A case and its outputs survive the way through a file, and a kernel found by its name runs from there.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::case::save_outputs;
use dsa_gate::gate::judge_on;
use dsa_gate::kernels::{ALL, find};
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[test]
fn a_case_of_every_type_and_rank_comes_back_from_its_file_as_it_was() {
    let bytes: Vec<u8> = (0..=255).collect();
    let of = |dtype: DType| HostTensor {
        dtype,
        shape: vec![256 / dtype.size() / 4, 4],
        bytes: bytes.clone(),
    };
    let case = Case::new("nothing")
        .with("f32", of(DType::F32))
        .with("bf16", of(DType::Bf16))
        .with("f16", of(DType::F16))
        .with("e4m3", of(DType::E4m3))
        .with("i32", of(DType::I32))
        .with("u8", of(DType::U8))
        .with("empty", f32s(&[3, 0, 2], &[]))
        .with("scalar", f32s(&[], &[f32::NAN]))
        .with("long", f32s(&[1, 1, 1, 2], &[-0.0, f32::INFINITY]))
        .set("number", 0.1f32)
        .set("word", "half_split")
        .set("quotes", "\"\\\n\u{1f600}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/new/folder/case.safetensors");
    case.save(&path).unwrap();
    let loaded = Case::load(&path).unwrap();
    assert!(loaded == case, "{loaded:?}");
    assert_eq!(loaded.scalar::<f32>("number").unwrap(), 0.1);
}

#[test]
fn saving_again_replaces_the_file_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.safetensors");
    sample("gemm").save(&path).unwrap();
    sample("rope").save(&path).unwrap();
    assert_eq!(Case::load(&path).unwrap().kernel, "rope");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn many_threads_may_save_one_case_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.safetensors");
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| (0..50).for_each(|_| sample("gemm").save(&path).unwrap()));
        }
    });
    assert!(Case::load(&path).unwrap() == sample("gemm"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_case_cannot_be_saved_where_there_is_no_folder_to_make() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let path = file.join("case.safetensors");
    let error = sample("gemm").save(&path).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[test]
fn every_kernel_replays_its_generated_case_from_a_file_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for kernel in ALL {
        let mut runner = TestRunner::deterministic();
        // The first case with something to compute.
        let case = (0..20)
            .map(|_| kernel.cases().new_tree(&mut runner).unwrap().current())
            .find(|case| expected(case).values().all(|output| !output.bytes.is_empty()))
            .unwrap();
        let path = folder.path().join(format!("{}.safetensors", kernel.name));
        case.save(&path).unwrap();
        let loaded = Case::load(&path).unwrap();
        assert!(loaded == case, "{loaded:?} is not {case:?}");
        let found = find(&loaded.kernel).unwrap();
        let device = device();
        let unit = (found.machine)(&device).matrix;
        judge_on(unit, found, &|case| found.run(&device, case), &loaded).unwrap();

        // Its outputs, saved, load as tensors of the same bits.
        let outputs = run(&loaded);
        let path = folder.path().join("outputs");
        save_outputs(&path, &outputs).unwrap();
        let read = Case::load(&path).unwrap().tensors;
        assert_eq!(read.len(), outputs.len());
        for (name, tensor) in &outputs {
            assert!(read[*name] == *tensor, "{name} of {}", kernel.name);
        }
    }
}

#[test]
fn every_kernel_is_found_by_its_own_name_and_lists_what_its_cases_hold() {
    for kernel in ALL {
        assert_eq!(find(kernel.name).unwrap().name, kernel.name);
        let case = sample(kernel.name);
        let (tensors, scalars) = (kernel.tensor_lines().unwrap(), kernel.scalar_lines().unwrap());
        for name in case.tensors.keys() {
            assert!(
                tensors.iter().any(|line| line.name == name),
                "tensor {name} of {}",
                kernel.name
            );
        }
        for name in case.scalars.keys() {
            assert!(
                scalars.iter().any(|line| line.name == name),
                "scalar {name} of {}",
                kernel.name
            );
        }
    }
}
