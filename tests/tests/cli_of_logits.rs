//! `dsa logits` on the tiny model.

use crate::cli::dsa;
use dsa_model::weights::Checkpoint;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::{Path, PathBuf};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `dsa logits` of the tiny model.
fn logits(inputs: &Path, out: &Path, more: &[&str]) -> Result<(String, bool), String> {
    let checkpoint = tiny();
    let args =
        ["logits", "--ckpt", text(&checkpoint), "--inputs", text(inputs), "--out", text(out)];
    dsa(&[&args, more].concat())
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let file = Checkpoint::open_files(vec![path.to_path_buf()]).unwrap();
    file.values(name, &[160, 320]).unwrap()
}

fn off(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A file with one tensor.
fn file(folder: &Path, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> PathBuf {
    let path = folder.join("ids.safetensors");
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    path
}

#[test]
fn its_logits_are_what_transformers_computes_and_the_file_says_how_they_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let (out, stored) = (folder.path().join("out"), tiny().join("expected.safetensors"));
    let more = ["--dtype", "f32", "--attention", "both", "--prefill-chunk", "50"];
    let more = [&more[..], &["--decode-from", "128", "--device", "cpu"]].concat();
    let (said, ok) = logits(&stored, &out, &more).unwrap();
    assert!(ok && said.starts_with("logits, dense.logits: f32[160, 320] in f32 on cpu"), "{said}");
    let (sparse, expected) = (floats(&out, "logits"), floats(&stored, "logits"));
    assert!(off(&sparse, &expected) < 1e-4);
    assert!(off(&floats(&out, "dense.logits"), &expected) > 0.1);
    let bytes = std::fs::read(&out).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let settings = header.metadata().as_ref().unwrap();
    for (name, value) in [("dtype", "f32"), ("attention", "both"), ("decode from", "128")] {
        assert_eq!(settings[name], value);
    }
    // All keys selected: what an override makes of sparse is said, and is dense.
    let more = ["--dtype", "f32", "--topk", "160", "--max-seq", "5000", "--device", "cpu"];
    let (said, _) = logits(&stored, &folder.path().join("all"), &more).unwrap();
    assert!(said.starts_with("warning: --max-seq is 5000, more than the 2560 positions"), "{said}");
    assert!(said.contains("index_topk is 160, not the file's 24\n"), "{said}");
    let all = floats(&folder.path().join("all"), "logits");
    assert!(off(&all, &floats(&out, "dense.logits")) < 1e-4);
}

#[test]
fn fp8_records_are_a_cache_that_can_be_asked_for_and_that_the_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let stored = tiny().join("expected.safetensors");
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let exact = ["--dtype", "f32", "--attention", "dense", "--device", "cpu"];
        logits(&stored, &out, &[&exact[..], more].concat()).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let kept = header.metadata().as_ref().unwrap()["kv cache"].clone();
        (floats(&out, "logits"), kept)
    };
    let ((rows, plain), (records, fp8)) = (run("rows", &[]), run("fp8", &["--kv-cache", "fp8"]));
    assert_eq!([plain, fp8], ["rows", "fp8"]);
    assert!(off(&records, &rows) > 0.01);
}

#[test]
fn a_deterministic_runs_bits_depend_neither_on_chunks_nor_on_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let stored = tiny().join("expected.safetensors");
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let plain = ["--dtype", "bf16", "--device", "cpu"];
        logits(&stored, &out, &[&plain[..], more].concat()).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let bits: Vec<u32> = floats(&out, "logits").iter().map(|logit| logit.to_bits()).collect();
        (bits, header.metadata().as_ref().unwrap()["sums"].clone())
    };
    let (whole, sums) = run("whole", &["--deterministic"]);
    assert_eq!(sums, "deterministic");
    let chunks = ["--deterministic", "--prefill-chunk", "24", "--logits-budget", "5000"];
    assert!(run("chunks", &chunks).0 == whole);
    // The first chunk is as long as the keys that are kept, and its form another.
    let (expanded, sums) = run("expanded", &chunks[1..]);
    assert_eq!(sums, "by keys");
    assert!(expanded != whole);
    assert_eq!(run("fast", &["--fast"]).1, "fast");
}

#[test]
fn ids_that_are_none_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let i32s = |ids: &[i32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let i64s = |ids: &[i64]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let beyond = "token id is 320, expected 0 to 319, the vocabulary's";
    let none = "input_ids is 0 ids, expected 1 to the 2560 positions of the model (--max-seq says \
                otherwise)";
    for (dtype, shape, bytes, says) in [
        (Dtype::I32, &[2][..], i32s(&[7, 320]), beyond),
        (Dtype::I32, &[1], i32s(&[-1]), "token id is -1, expected 0 to 319, the vocabulary's"),
        (Dtype::I64, &[1], i64s(&[320]), beyond),
        (Dtype::I32, &[0], vec![], none),
        (
            Dtype::F32,
            &[1],
            i32s(&[7]),
            "tensor \"input_ids\" has elements F32, expected I32 or I64",
        ),
        (Dtype::I32, &[1, 2], i32s(&[7, 8]), "tensor \"input_ids\" has shape [1, 2], expected [2]"),
    ] {
        let inputs = file(folder.path(), dtype, shape, &bytes);
        assert_eq!(logits(&inputs, &out, &[]).unwrap_err(), format!("error: {says}\n"));
    }
    let inputs = file(folder.path(), Dtype::I32, &[3], &i32s(&[7, 8, 9]));
    for (more, says) in [
        (&["--max-seq", "2"][..], "input_ids is 3 ids, expected 1 to the 2 positions"),
        (&["--decode-from", "4"], "--decode-from 4: there are 3 tokens"),
        (&["--topk", "0"], "--topk is 0, expected 1 to 16777216"),
        (&["--share-index", "SFF"], "--share-index is "),
        (&["--prefill-chunk", "0"], "invalid value '0' for '--prefill-chunk <N>'"),
        (
            &["--fast", "--deterministic"],
            "the argument '--fast' cannot be used with '--deterministic'",
        ),
        (&["--kv-cache", "bf16"], "invalid value 'bf16' for '--kv-cache <KV_CACHE>'"),
        (&["--dtype", "f16"], "invalid value 'f16' for '--dtype <DTYPE>'"),
    ] {
        let error = logits(&inputs, &out, more).unwrap_err();
        assert!(error.starts_with(&format!("error: {says}")), "{error}");
    }
    let error = logits(&inputs, &inputs, &[]).unwrap_err();
    assert!(error.ends_with("is the file of --inputs, which would be lost\n"), "{error}");
    assert!(!out.exists());
}
