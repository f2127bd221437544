//! A case comes from a file that anyone may have written: a damaged one is refused with one clear error.

use crate::samples::sample;
use dsa_gate::Case;
use dsa_gate::kernels::find;
use proptest::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with the file of `bytes`.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The bytes of a saved sample.
fn saved(kernel: &str) -> Vec<u8> {
    let (_folder, path) = file(&[]);
    sample(kernel).save(&path).unwrap();
    std::fs::read(&path).unwrap()
}

/// Refused, by an error of one line that names the file.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    let error = Case::load(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// A file of this header and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn a_file_that_is_not_there_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing.safetensors");
    let error = Case::load(&path).unwrap_err().to_string();
    assert!(error.contains("nothing.safetensors"), "{error}");
    assert!(Case::load(folder.path()).is_err(), "a folder is no case");
}

#[test]
fn bytes_that_are_no_safetensors_file_are_refused() {
    refused(b"");
    refused(b"1234567");
    refused(b"PK\x03\x04 a zip archive, as torch.save writes it, with a pickle in it");
    refused(&u64::MAX.to_le_bytes());
    refused(&[0xff; 4_096]);
    refused(&with_header("not json", 0));
    refused(&with_header("[1, 2, 3]", 0));
}

#[test]
fn a_header_that_lies_about_its_tensors_is_refused() {
    let tensor = |shape: &str, offsets: &str| {
        with_header(
            &format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#),
            16,
        )
    };
    let (_folder, path) = file(&tensor("[2, 2]", "[0, 16]"));
    assert_eq!(Case::load(&path).unwrap().tensors["x"].shape, [2, 2], "an honest header is taken");
    refused(&tensor("[2, 3]", "[0, 16]"));
    refused(&tensor("[2, 2]", "[0, 17]"));
    refused(&tensor("[2, 2]", "[4, 20]"));
    refused(&tensor("[2, 2]", "[16, 0]"));
    refused(&tensor("[-2, 2]", "[0, 16]"));
    refused(&tensor("[4294967296, 4294967296]", "[0, 16]"));
    refused(&tensor("[9223372036854775808, 8]", "[0, 0]"));
    refused(&tensor("[2, 2]", "[0, 18446744073709551615]"));
}

#[test]
fn an_element_type_that_no_kernel_takes_is_refused_by_the_tensors_name() {
    let header = r#"{"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}"#;
    let (_folder, path) = file(&with_header(header, 16));
    let error = Case::load(&path).unwrap_err().to_string();
    assert_eq!(error, "tensor x is F64[2], expected F32, BF16, F16, F8_E4M3, I32 or U8");
}

#[test]
fn an_axis_of_any_length_without_elements_is_refused() {
    // A loop over its rows would not end, though the file is 100 bytes long.
    for shape in ["[1152921504606846976,0]", "[0,2147483648]"] {
        let header = format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        let (_folder, path) = file(&with_header(&header, 0));
        let error = Case::load(&path).unwrap_err().to_string();
        assert!(error.starts_with("tensor x is F32[") && error.contains("2^31"), "{error}");
    }
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    let x = r#""x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let error = refused(&with_header(&format!("{{{x},{x}}}"), 0));
    assert!(error.contains("header: \"x\" is there twice"), "{error}");
    let metadata = r#""__metadata__":{"topk":"1","topk":"2"}"#;
    let error = refused(&with_header(&format!("{{{x},{metadata}}}"), 0));
    assert!(error.contains("header: \"topk\" is there twice"), "{error}");
}

#[test]
fn a_header_longer_than_any_cases_is_refused_unread() {
    let tensor = |n: usize| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let many: Vec<String> = (0..30_000).map(tensor).collect();
    let error = refused(&with_header(&format!("{{{}}}", many.join(",")), 0));
    assert!(error.contains("expected at most the 1048576 of a case"), "{error}");
}

#[test]
fn a_tensor_of_more_axes_than_any_kernels_is_refused() {
    let axes = vec!["1"; 10_000].join(",");
    let header = format!(r#"{{"x":{{"dtype":"U8","shape":[{axes}],"data_offsets":[0,1]}}}}"#);
    let (_folder, path) = file(&with_header(&header, 1));
    let error = Case::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("expected at most 8 axes") && error.len() < 300, "{error}");
}

#[test]
fn what_a_file_says_is_printed_short_and_without_what_a_terminal_acts_on() {
    for name in [r"\u001b[31mevil\u0007\nPASS".to_string(), "n".repeat(200_000)] {
        for (dtype, shape) in [("F64", "[2]"), ("F32", "[4294967296,0]"), (name.as_str(), "[2]")] {
            let tensor = format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,16]}}"#);
            let (_folder, path) = file(&with_header(&format!(r#"{{"{name}":{tensor}}}"#), 16));
            let error = Case::load(&path).unwrap_err().to_string();
            assert!(error.len() < 1_000 && error.chars().all(|c| !c.is_control()), "{error}");
        }
    }
}

#[test]
fn a_case_without_a_kernel_or_of_an_unknown_one_is_refused() {
    let header = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let (_folder, path) = file(&with_header(header, 4));
    let kernel = Case::load(&path).unwrap().kernel;
    assert!(find(&kernel).unwrap_err().to_string().contains("there is no kernel \"\""));
    assert!(find("top-k").unwrap_err().to_string().contains("there is no kernel \"top-k\""));
}

#[test]
fn every_truncation_of_a_small_case_is_refused() {
    let bytes = saved("fold_scales");
    for length in 0..bytes.len() {
        refused(&bytes[..length]);
    }
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let mut bytes = saved("fold_scales");
    bytes.push(0);
    refused(&bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_truncated_case_of_any_kernel_is_refused(
        kernel in 0..dsa_gate::kernels::ALL.len(),
        length in any::<prop::sample::Index>(),
    ) {
        let bytes = saved(dsa_gate::kernels::ALL[kernel].name);
        refused(&bytes[..length.index(bytes.len())]);
    }

    /// A flip may leave a file that is valid: then the case is refused, or runs, but does not panic.
    #[test]
    fn a_case_with_flipped_bytes_is_read_or_refused_and_never_panics(
        kernel in 0..dsa_gate::kernels::ALL.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
    ) {
        let mut bytes = saved(dsa_gate::kernels::ALL[kernel].name);
        // The header is what can mislead; the tensors behind it are numbers of any value.
        let header = 8 + bytes[..8].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
        for (at, flip) in flips {
            bytes[at.index(header)] ^= flip;
        }
        let (_folder, path) = file(&bytes);
        match Case::load(&path) {
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
            Ok(case) => {
                if let Ok(kernel) = find(&case.kernel) {
                    let _ = kernel.reference(&case);
                }
            }
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        refused(&bytes);
    }
}
