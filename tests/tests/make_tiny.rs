//! `dsa make-tiny`, and the same weights without a file.

use crate::cli::dsa;
use dsa_model::config::Config;
use dsa_model::weights::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

/// Tokens of the text: more than the keys that a query selects.
const TOKENS: usize = 40;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A text in bytes, which are tokens 3 to 258.
fn ids(folder: &Path) -> PathBuf {
    let path = folder.join("ids.safetensors");
    let ids: Vec<u8> = (0..TOKENS).flat_map(|i| (3 + i as i32 * 37 % 256).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I32, vec![TOKENS], &ids).unwrap();
    std::fs::write(&path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    path
}

/// The tensor `name` of what `dsa logits` wrote with these arguments.
fn logits(folder: &Path, names: &[&str], more: &[&str]) -> Vec<Vec<f32>> {
    let (inputs, out) = (ids(folder), folder.join("logits.safetensors"));
    let args = ["logits", "--inputs", text(&inputs), "--out", text(&out), "--device", "cpu"];
    dsa(&[&args, more].concat()).unwrap();
    let file = Checkpoint::open_files(vec![out]).unwrap();
    let of = |name: &&str| {
        let shape = file.form(name).unwrap().1.to_vec();
        file.values(name, &shape).unwrap()
    };
    names.iter().map(of).collect()
}

#[track_caller]
fn check(like: &str, dtypes: &[&str]) {
    for dtype in dtypes {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        let args = ["make-tiny", text(&made), "--like", like, "--dtype", dtype, "--seed", "11"];
        let (said, ok) = dsa(&[&args[..], &["--layers", "4", "--device", "cpu"]].concat()).unwrap();
        assert!(
            ok && said.contains("4 layers") && said.contains("bytes of weights in 1 file"),
            "{said}"
        );
        let config = Config::read(&made).unwrap();
        Checkpoint::open(&made).unwrap().expect(&config).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let text = std::fs::read_to_string(made.join(name)).unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap().is_object());
        }
        let both = ["--ckpt", text(&made), "--attention", "both"];
        let of = logits(folder.path(), &["logits", "dense.logits"], &both);
        let (sparse, dense) = (&of[0], &of[1]);
        let size = |values: &[f32]| {
            (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
        };
        // A normalised row times rows of a head of variance 1 / hidden.
        let rms = size(sparse);
        assert!((0.5..2.0).contains(&rms), "{like} in {dtype}: logits of size {rms}");
        let off: Vec<f32> = sparse.iter().zip(dense).map(|(a, b)| a - b).collect();
        let vocab = config.vocab_size;
        // The first queries see no more keys than they may select.
        let rest = size(&off[config.index_topk * vocab..]);
        assert!(rest > 0.02, "{like} in {dtype}: sparse and dense differ by {rest}");
        let random = ["--random-weights", "11", "--random-dtype", dtype, "--config", text(&made)];
        let again = logits(folder.path(), &["logits"], &random);
        assert!(again[0] == *sparse, "{like} in {dtype}: the same weights without a file");
        let other = ["--random-weights", "12", "--random-dtype", dtype, "--config", text(&made)];
        assert!(logits(folder.path(), &["logits"], &other)[0] != *sparse);
    }
}

#[test]
fn a_made_deepseek_v3_2_runs_and_is_the_same_without_a_file() {
    check("v32", &["fp8", "bf16", "f32"]);
}

#[test]
fn a_made_glm_5_runs_and_is_the_same_without_a_file() {
    check("glm5", &["fp8", "bf16", "f32"]);
}

#[test]
fn a_made_glm_5_2_runs_and_is_the_same_without_a_file() {
    check("glm52", &["fp8", "bf16", "f32"]);
}

#[test]
fn layers_share_indexers_as_the_model_or_the_command_line_says() {
    let folder = tempfile::tempdir().unwrap();
    let pattern = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let args = ["make-tiny", text(&out), "--device", "cpu"];
        dsa(&[&args, more].concat()).map(|_| {
            let config = Config::read(&out).unwrap();
            let file = Checkpoint::open(&out).unwrap();
            let has =
                |n: &usize| file.contains(&format!("model.layers.{n}.self_attn.indexer.wk.weight"));
            let indexers = (0..config.num_hidden_layers).filter(has).count();
            assert_eq!(indexers, config.indexers(), "{name}");
            config.index_pattern()
        })
    };
    assert_eq!(pattern("a", &["--like", "glm52"]).unwrap(), "FFFSSSFS");
    assert_eq!(pattern("b", &["--like", "glm5"]).unwrap(), "FFFF");
    let shared = ["--like", "v32", "--layers", "5", "--share-index", "FSSFS"];
    assert_eq!(pattern("c", &shared).unwrap(), "FSSFS");
    for (more, says) in [
        (
            &["--share-index", "FS"][..],
            "error: --share-index is a list of 2, expected one for each of 4 layers",
        ),
        (&["--layers", "0"], "error: configuration: num_hidden_layers is 0, expected 1 to 1024"),
    ] {
        let error = pattern("d", more).unwrap_err();
        assert!(error.starts_with(says), "{error}");
        assert!(!folder.path().join("d").exists());
    }
    // What is there stays.
    let error = pattern("a", &[]).unwrap_err();
    assert!(error.contains("a: the folder is not empty, expected none or an empty one"), "{error}");
}

#[test]
fn random_weights_need_a_configuration_and_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, out) = (ids(folder.path()), folder.path().join("out"));
    let args = ["logits", "--inputs", text(&inputs), "--out", text(&out)];
    for more in [
        &[][..],
        &["--random-weights", "1"],
        &["--random-weights", "1", "--ckpt", ".", "--config", "."],
        &["--ckpt", ".", "--random-dtype", "f32"],
        &["--config", "."],
    ] {
        let error = dsa(&[&args, more].concat()).unwrap_err();
        assert!(error.contains("Usage: "), "{more:?}: {error}");
    }
    assert!(!out.exists());
}
