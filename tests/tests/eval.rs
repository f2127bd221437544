//! What is evaluated of a model is what its own steps say.

use crate::cli::dsa;
use crate::generate::folder;
use crate::support::device;
use dsa_kernels::DType;
use dsa_model::config::Overrides;
use dsa_model::eval::{Needle, find, overlap, quality};
use dsa_model::generate::divergence;
use dsa_model::layers::Precision;
use dsa_model::run::{Batch, KvFormat, Mode, Shown};
use dsa_model::sample::log_softmax;
use dsa_model::weights::Checkpoint;
use dsa_model::{Config, Model};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const ROWS: KvFormat = KvFormat::Elements;

/// The configuration of the made-up model with these overrides.
fn config(topk: Option<usize>, pattern: Option<&str>) -> Config {
    let share_index = pattern.map(str::to_string);
    let overrides = Overrides { topk, share_index, max_seq: None };
    overrides.apply(Config::read(&folder()).unwrap()).unwrap().0
}

fn model(config: &Config) -> Model {
    let weights = Checkpoint::open(&folder()).unwrap();
    Model::new(&device(), config, weights.root(), Precision::dequantised(DType::F32)).unwrap()
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i * 53 + i * i) % 256).collect()
}

/// The logits of a text at once, and the keys that each layer chose at each position.
fn step(model: &Model, ids: &[u32], mode: Mode) -> (Vec<Vec<f32>>, Vec<Vec<BTreeSet<i32>>>) {
    let mut cache = model.cache(1, ids.len()).unwrap();
    let kept = Arc::new(Mutex::new(vec![]));
    let to = kept.clone();
    let watch = move |Shown { name, tensor, .. }: Shown| {
        if name == "index.topk" {
            let keys = tensor.download_i32()?;
            let of = |row: &[i32]| row.iter().copied().filter(|key| *key >= 0).collect();
            to.lock().unwrap().push(keys.chunks(tensor.shape()[1]).map(of).collect());
        }
        Ok(None)
    };
    let batch = Batch::chunk(&cache, 0, 0, ids.len(), mode).unwrap().watched(watch);
    let logits = model.forward(ids, &batch, &mut cache).unwrap().download_f32().unwrap();
    let kept = kept.lock().unwrap().clone();
    (logits.chunks(model.config().vocab_size).map(<[f32]>::to_vec).collect(), kept)
}

#[test]
fn a_model_that_selects_otherwise_has_the_bits_of_one_that_was_loaded_so() {
    let model_of_file = model(&config(None, None));
    for (topk, pattern) in [(Some(7), None), (None, Some("FS")), (Some(30), Some("FS"))] {
        let other = config(topk, pattern);
        let selecting = model_of_file.clone().selecting(&other).unwrap();
        let (expected, _) = step(&model(&other), &ids(40), Mode::Sparse);
        assert_eq!(step(&selecting, &ids(40), Mode::Sparse).0, expected, "{topk:?} {pattern:?}");
        assert_ne!(step(&model_of_file, &ids(40), Mode::Sparse).0, expected);
    }
    // What was let go does not come back, and another model's configuration is none of this one's.
    let shared = model_of_file.clone().selecting(&config(None, Some("FS"))).unwrap();
    let error = shared.selecting(&config(None, None)).err().unwrap().to_string();
    assert!(error.contains("loaded without one"), "{error}");
    let other = Config { rope_theta: 7.0, ..config(None, None) };
    assert!(model_of_file.selecting(&other).is_err());
}

#[test]
fn perplexity_and_divergence_are_those_of_the_models_logits_in_chunks_of_any_size() {
    let (model, ids) = (model(&config(None, None)), ids(70));
    let variants = [config(Some(8), None), config(Some(50), None), config(Some(8), Some("FS"))];
    let sums = quality(&model, &ids, (50, 512), ROWS, &variants, |_| ()).unwrap();
    assert_eq!(quality(&model, &ids, (50, 10), ROWS, &variants, |_| ()).unwrap()[1..], sums[1..]);
    // Two windows, of 50 and 20 tokens, whose first tokens are given.
    assert!(sums.iter().all(|sum| sum.tokens == 49 + 19));
    let eight = model.clone().selecting(&variants[0]).unwrap();
    let (mut surprise, mut kl, mut same) = (0.0, 0.0, 0);
    for window in ids.chunks(50) {
        let (dense, _) = step(&model, window, Mode::Dense);
        let (sparse, _) = step(&eight, window, Mode::Sparse);
        for (n, next) in window.iter().enumerate().skip(1) {
            surprise -= f64::from(log_softmax(&sparse[n - 1]).unwrap()[*next as usize]);
            let (of, top) = divergence(&dense[n - 1], &sparse[n - 1]).unwrap();
            (kl, same) = (kl + of, same + usize::from(top));
        }
    }
    assert!((sums[1].surprise - surprise).abs() < 1e-3 && sums[1].same_top == same);
    assert!((sums[1].kl - kl).abs() < 1e-3 * kl, "{} {kl}", sums[1].kl);
    assert!((sums[1].perplexity() - (surprise / 68.0).exp()).abs() < 1e-3 * sums[1].perplexity());
    // Dense is its own measure; all keys are dense attention but for the order of sums; fewer are not.
    assert_eq!((sums[0].kl, sums[0].same_top), (0.0, 68));
    assert!(sums[2].kl < 1e-5 && sums[1].kl > 0.1 && sums[3].kl > 0.1, "{sums:?}");
    for (window, ids, says) in [(1, &ids[..], "window is 1"), (9, &ids[..1], "text is 1 tokens")] {
        let error = quality(&model, ids, (window, 9), ROWS, &[], |_| ()).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
    }
}

#[test]
fn overlaps_are_counted_over_layers_and_tokens_and_a_layer_that_shares_has_all_in_common() {
    let (model, ids) = (model(&config(None, None)), ids(60));
    let topk = model.config().index_topk;
    let (_, keys) = step(&model, &ids, Mode::Sparse);
    let share =
        |a: &BTreeSet<i32>, b: &BTreeSet<i32>| a.intersection(b).count() as f64 / a.len() as f64;
    let looked: Vec<usize> = (topk..59).collect();
    let mean = |of: &dyn Fn(usize) -> f64| {
        looked.iter().map(|at| of(*at)).sum::<f64>() / looked.len() as f64
    };
    let got = overlap(&model, &ids, 13, ROWS, 1000).unwrap();
    assert_eq!(got.tokens, looked.len());
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    near(got.layers[0][1], mean(&|at| share(&keys[0][at], &keys[1][at])));
    near(got.layers[1][0], got.layers[0][1]);
    near(got.layers[1][1], 1.0);
    near(got.next[1], mean(&|at| share(&keys[1][at], &keys[1][at + 1])));
    near(got.chance, mean(&|at| topk as f64 / (at + 1) as f64));
    // Every third of them.
    let some = overlap(&model, &ids, 512, ROWS, 15).unwrap();
    assert_eq!(some.tokens, looked.len().div_ceil(3));
    let shared = model.clone().selecting(&config(None, Some("FS"))).unwrap();
    near(overlap(&shared, &ids, 512, ROWS, 1000).unwrap().layers[0][1], 1.0);
    let error = overlap(&model, &ids[..topk + 1], 512, ROWS, 9).unwrap_err().to_string();
    assert!(error.contains("more than the 16 keys that are chosen"), "{error}");
}

#[test]
fn planted_tokens_are_looked_for_among_the_keys_of_the_prompts_last_token() {
    let (model, prompt) = (model(&config(None, None)), ids(60));
    let (logits, keys) = step(&model, &prompt, Mode::Sparse);
    let needle = Needle { prompt: prompt.clone(), planted: 10..20 };
    let found = find(&model, &needle, (7, 3), ROWS, &[]).unwrap();
    let share = |keys: &BTreeSet<i32>| Some(keys.range(10..20).count() as f64 / 10.0);
    assert_eq!(found.selected, [share(&keys[0][59]), share(&keys[1][59])]);
    let best = |logits: &[f32]| {
        let better = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
        logits.iter().enumerate().max_by(better).unwrap().0 as u32
    };
    assert_eq!((found.answer.len(), found.answer[0]), (3, best(&logits[59])));
    let ended = find(&model, &needle, (7, 3), ROWS, &found.answer[..1]).unwrap();
    assert!(ended.answer.is_empty());
    let all = Needle { prompt: prompt[..16].to_vec(), planted: 3..5 };
    assert_eq!(find(&model, &all, (7, 1), ROWS, &[]).unwrap().selected, [None, None]);
    let none = Needle { planted: 60..61, prompt };
    assert!(find(&model, &none, (7, 1), ROWS, &[]).is_err());
}

#[test]
fn the_command_line_writes_rows_with_their_origin_and_a_picture_of_each_evaluation() {
    let (model, to) = (folder(), tempfile::tempdir().unwrap());
    let text = to.path().join("text.txt");
    std::fs::write(&text, "What follows is no text that means anything. ".repeat(4)).unwrap();
    let (model, out, text) =
        (model.to_str().unwrap(), to.path().to_str().unwrap(), text.to_str().unwrap());
    let run = |what: &str, more: &[&str]| {
        let args = ["eval", what, "--ckpt", model, "--dtype", "f32", "--out", out];
        dsa(&[&args, more].concat())
    };
    let rows = |name: &str| -> Vec<Value> {
        let rows = std::fs::read_to_string(to.path().join(name)).unwrap();
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let few = ["--text", text, "--topks", "4,64", "--patterns", "FF,FS", "--tokens", "40"];
    let (said, _) = run("perplexity", &few).unwrap();
    assert!(said.starts_with("  keys  indexers ") && said.lines().count() == 1 + 5 + 4, "{said}");
    let of = rows("perplexity.jsonl");
    assert_eq!(of.len(), 5);
    assert_eq!(
        (&of[4]["topk"], &of[4]["pattern"], &of[4]["tokens"]),
        (&64.into(), &"FS".into(), &39.into())
    );
    assert!(of[0]["subject"]["text"].as_str().unwrap().starts_with("sha256 "));
    assert!(
        of[0]["commit"].is_string()
            && of[0]["created"].is_string()
            && of[0]["subject"]["config"].is_object()
    );
    run("overlap", &["--text", text, "--tokens", "50"]).unwrap();
    // Two layers with themselves, each with itself one token later, and with one another.
    assert_eq!(rows("overlap.jsonl").len(), 5);
    let (said, _) = run("needles", &["--contexts", "250", "--depths", "0,1"]).unwrap();
    assert!(said.contains("tokens, depth 1.00: not found, 0."), "{said}");
    assert_eq!(rows("needles.jsonl").len(), 2);
    // Again at one depth and at another: what is measured again is replaced.
    run("needles", &["--contexts", "250", "--depths", "0,0.5"]).unwrap();
    assert_eq!(rows("needles.jsonl").len(), 3);
    let file = to.path().join("needles.jsonl");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "{}").unwrap();
    assert!(run("needles", &[]).unwrap_err().contains("needles.jsonl, line 1"));
    std::fs::write(&file, good).unwrap();
    for name in ["perplexity", "overlap", "needles"] {
        for end in ["svg", "png", "csv"] {
            assert!(to.path().join(format!("{name}.{end}")).exists());
        }
    }
    for (what, more, says) in [
        ("needles", &["--contexts", "20"][..], "20 tokens of context: the question alone has"),
        (
            "needles",
            &["--contexts", "1M", "--max-seq", "2000"],
            "1048600 tokens: the model has 2000 positions",
        ),
        ("needles", &["--depths", "2"], "expected 0 to 1"),
        ("perplexity", &["--text", "/no/such/text"], "/no/such/text"),
        ("perplexity", &["--text", text, "--patterns", "SF"], "--share-index is"),
        ("overlap", &["--text", text, "--tokens", "10"], "text is 10 tokens, expected at least 18"),
    ] {
        let error = run(what, more).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
