//! `dsa convert` on the official model's small likeness.

use crate::cli::dsa;
use dsa_model::weights::Checkpoint;
use std::path::{Path, PathBuf};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo")
}

fn convert(to: &Path, more: &[&str]) -> Result<(String, bool), String> {
    let from = demo();
    let args =
        ["convert", "--hf-ckpt-path", from.to_str().unwrap(), "--save-path", to.to_str().unwrap()];
    dsa(&[&args, more].concat())
}

fn logits(checkpoint: &Path, out: &Path) -> Vec<u8> {
    let inputs = demo().join("expected.safetensors");
    let args =
        ["logits", "--ckpt", checkpoint.to_str().unwrap(), "--inputs", inputs.to_str().unwrap()];
    let more = ["--out", out.to_str().unwrap(), "--device", "cpu"];
    assert!(dsa(&[&args[..], &more].concat()).unwrap().1);
    let file = Checkpoint::open_files(vec![out.to_path_buf()]).unwrap();
    file.tensor("logits").unwrap().bytes
}

#[test]
fn a_converted_checkpoint_has_the_logits_of_the_one_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted");
    let (said, ok) = convert(&to, &["--n-experts", "8", "--model-parallel", "2"]).unwrap();
    assert!(ok && said.starts_with("2 files of as many ranks, 8.31 MiB -> "), "{said}");
    let (again, _) = convert(&to, &["--model-parallel", "2"]).unwrap();
    assert_eq!(said, again);
    let [ours, theirs] = [&to, &demo()].map(|of| logits(of, &folder.path().join("out")));
    assert!(!ours.is_empty() && ours == theirs, "bit for bit");
}

#[test]
fn what_cannot_be_converted_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted");
    for (more, says) in [
        (
            &["--n-experts", "7"][..],
            "n-experts is 7, expected 8, the configuration's n_routed_experts",
        ),
        (
            &["--model-parallel", "3"],
            "model-parallel is 3, expected a number of ranks that divides the 8 experts",
        ),
    ] {
        let error = convert(&to, more).unwrap_err();
        assert!(error.contains(says), "{error}");
        assert!(!to.exists());
    }
}
