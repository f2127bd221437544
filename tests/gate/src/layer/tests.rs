//! The report on the golden checkpoint and on random layers, and that it can fail.

mod steps;

use super::*;
use dsa_model::config::AttentionOptions;
use dsa_model::weights::Checkpoint;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/tiny");

fn device() -> Device {
    Device::named("cpu").unwrap()
}

fn small(options: AttentionOptions) -> Config {
    let config = Config { index_topk: 16, ..Config::scaled(64).unwrap() };
    Config { attention_options: options, ..config }
}

#[test]
fn golden_tiny_passes() {
    let report = verify_checkpoint(&device(), Path::new(TINY), None, 7).unwrap();
    assert!(report.passed(), "{report}");
    assert!(report.to_string().contains("expected.safetensors, layers 0, 1, 2"), "{report}");
    let keys = &report.sections[0].checks;
    assert_eq!(keys.len(), 6);
    assert!(keys.iter().all(|check| check.value == 0.0));
}

/// A copy of the golden checkpoint, without the keys stored beside it.
fn tiny_without_keys() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(TINY).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Writes `expected.safetensors` into the folder: ids `[s]` and any other tensors of i32.
fn store(folder: &Path, ids: usize, others: &[(&str, [usize; 2])]) {
    use safetensors::tensor::{TensorView, serialize};
    let zeros = |n: usize| vec![0u8; 4 * n];
    let mut all = vec![("input_ids".to_string(), vec![ids], zeros(ids))];
    all.extend(others.iter().map(|(name, [a, b])| (name.to_string(), vec![*a, *b], zeros(a * b))));
    let views = all.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(safetensors::Dtype::I32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(folder.join("expected.safetensors"), serialize(views, None).unwrap()).unwrap();
}

#[test]
fn what_decides_is_printed_and_that_there_are_no_stored_keys() {
    let folder = tiny_without_keys();
    let report = verify_checkpoint(&device(), folder.path(), Some(12), 3).unwrap();
    let text = report.to_string();
    assert!(report.passed(), "{text}");
    for said in [
        "factor 40, original length 64",
        "none here: the folder has no expected.safetensors",
        "12 made-up tokens, seed 3",
        "half split, (i, i+d/2)",
    ] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    let error = verify_checkpoint(&device(), Path::new(TINY), Some(12), 3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokens is 12, expected none: the text is that of expected.safetensors"
    );
}

#[test]
fn stored_keys_that_cannot_be_read_or_compared_are_an_error() {
    let folder = tiny_without_keys();
    let file = folder.path().join("expected.safetensors");
    let refused = || verify_checkpoint(&device(), folder.path(), None, 3).unwrap_err().to_string();
    std::os::unix::fs::symlink("nowhere", &file).unwrap();
    let error = refused();
    assert!(error.contains("expected.safetensors: No such file"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(refused().contains("not a regular file"));
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "garbage").unwrap();
    assert!(refused().contains("truncated"));
    for (ids, others, said) in [
        (9, &[][..], "at least one"),
        (9, &[("layer3.topk", [9, 24])], "layer0.topk to layer2.topk"),
        (9, &[("layer0.topk", [9, 24]), ("layer7.topk", [9, 24])], "of which 1 are of layers"),
        (9, &[("layer0.topk", [9, 23])], "shape [9, 23], expected [9, 24]"),
        (9, &[("layer0.topk", [24, 9])], "shape [24, 9], expected [9, 24]"),
        (9, &[("layer1.topk", [9, 24])], "\"layer0.hidden\" is missing"),
        (0, &[("layer0.topk", [0, 24])], "1 to 65536"),
        (200_000, &[], "200000 tokens, expected 1 to 65536"),
    ] {
        store(folder.path(), ids, others);
        let error = refused();
        assert!(error.contains(said), "{said:?} is missing in: {error}");
    }
    // Keys that are none of the right ones.
    store(folder.path(), 30, &[("layer0.topk", [30, 24])]);
    let report = verify_checkpoint(&device(), folder.path(), None, 3).unwrap();
    assert!(!report.passed() && report.sections[0].checks.len() == 2, "{report}");
}

#[test]
fn no_seed_changes_which_checks_there_are() {
    let mut seeds_whose_decoded_keys_differ = 0;
    let mut names = |seed, tokens| -> Vec<String> {
        let config = Config { index_topk: 32, ..small(AttentionOptions::OFFICIAL) };
        let report = verify_random(&device(), &config, tokens, seed).unwrap();
        assert!(report.passed(), "{report}");
        let differs = |check: &Check| check.name == "top-k recall (decoded)" && check.value < 1.0;
        seeds_whose_decoded_keys_differ += usize::from(report.checks().any(differs));
        report.checks().map(|check| check.name.clone()).collect()
    };
    let first = names(1, 80);
    assert_eq!(first.len(), 54);
    for seed in 2..8 {
        assert_eq!(names(seed, 80), first);
    }
    // Fewer tokens than are kept, and a single one, lose no check either.
    assert_eq!(names(1, 7), first);
    assert_eq!(names(1, 1).len(), first.len());
    assert!(
        seeds_whose_decoded_keys_differ > 0,
        "the case that lost a check is not among the seeds"
    );
}

#[test]
fn a_selection_that_is_wrong_in_one_token_fails() {
    let (s, k) = (9, 4);
    let right = Array2::from_shape_fn((s, k), |(t, i)| if i <= t { i as i32 } else { -1 });
    let judge = |got: &Array2<i32>| {
        let of_all = Array2::zeros((s, 2));
        let selected = checks::Selected { when: "", tokens: s, got, want: &right, of_all: &of_all };
        let lse_of = |keys: &Array2<i32>| {
            let none = |t: usize| keys.row(t).iter().all(|key| *key < 0);
            let lse =
                Array2::from_shape_fn((s, 2), |(t, _)| if none(t) { f32::INFINITY } else { -1.0 });
            let out = ndarray::Array3::zeros((s, 2, 1));
            Ok(dsa_reference::sparse_attention::AttentionOut { out, max_logits: lse.clone(), lse })
        };
        let mut section = Section::default();
        let bounds = (Bound::AtLeast(0.9), Bound::AtMost(0.1));
        checks::selection(&mut section, selected, lse_of, bounds).unwrap();
        (section.checks[0].passed(), section.checks[1].value)
    };
    assert_eq!(judge(&right), (true, 0.0));
    let changed = |t: usize, list: [i32; 4]| {
        let mut got = right.clone();
        got.row_mut(t).assign(&ndarray::arr1(&list));
        got
    };
    // One key of 32 is another: within the recall, and its share of the attention is said.
    let (passed, mass) = judge(&changed(7, [0, 1, 2, 5]));
    assert!(passed && (mass - (-1f64).exp() / 9.0).abs() < 1e-6, "{mass}");
    for (t, list, why) in [
        (7, [0, 1, 2, 8], "a key after the token"),
        (7, [0, 1, 2, 2], "a key twice"),
        (7, [0, 1, 2, -1], "a key too few"),
        (0, [-1, -1, -1, -1], "no key"),
        (1, [0, -1, -1, -1], "not itself"),
    ] {
        assert!(!judge(&changed(t, list)).0, "{why}");
    }
    assert!(!judge(&Array2::from_elem((s, k + 1), 0)).0);
}

#[test]
fn a_part_that_compared_nothing_fails() {
    let report = verify_random(&device(), &small(AttentionOptions::EXACT), 5, 7).unwrap();
    let mut empty = report.clone();
    empty.sections.push(Section { title: "nothing".into(), ..Default::default() });
    assert!(report.passed() && !empty.passed());
    let text = empty.to_string();
    assert!(text.contains("nothing was compared") && text.contains("FAILED: a part"), "{text}");
}

#[test]
fn random_layers_pass_with_and_without_lossy_steps() {
    for options in [AttentionOptions::EXACT, AttentionOptions::OFFICIAL] {
        let report = verify_random(&device(), &small(options), 50, 7).unwrap();
        assert!(report.passed(), "{report}");
    }
}

#[test]
fn one_token_and_fewer_than_topk_pass() {
    for tokens in [1, 5] {
        let report = verify_random(&device(), &small(AttentionOptions::EXACT), tokens, 7).unwrap();
        assert!(report.passed(), "{report}");
    }
}

#[test]
fn a_nan_or_a_wrong_weight_fails() {
    let (device, config) = (device(), small(AttentionOptions::EXACT));
    let weights = Random::new(1);
    let mut x = Array2::from_elem((20, config.hidden_size), 0.5);
    x[(3, 7)] = f32::NAN;
    let report = verify(&device, &config, &weights, x.view(), DType::F32).unwrap();
    assert!(!report.passed() && report.to_string().contains("FAILED"), "{report}");
    assert!(verify(&device, &config, &weights, x.t(), DType::F32).is_err());
    assert!(verify_random(&device, &config, 0, 1).is_err());
    assert!(!Report::default().passed());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    for ids in [&[][..], &[320]] {
        let error = verify_ids(&device(), Path::new(TINY), ids).err().unwrap();
        let Error::Model(dsa_model::Error::Argument { name, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(name, "input_ids");
    }
    assert!(Checkpoint::open(Path::new(TINY)).is_ok());
    assert!(verify_checkpoint(&device(), Path::new("/nowhere"), None, 7).is_err());
}
