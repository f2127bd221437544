//! The report on the golden checkpoint and on random layers, and that it can fail.

use super::*;
use crate::config::AttentionOptions;
use crate::weights::Checkpoint;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny");

fn device() -> Device {
    Device::named("cpu").unwrap()
}

fn small(options: AttentionOptions) -> Config {
    let config = Config { index_topk: 16, ..Config::scaled(64).unwrap() };
    Config { attention_options: options, ..config }
}

#[test]
fn golden_tiny_passes() {
    let report = verify_checkpoint(&device(), Path::new(TINY), 192, 7).unwrap();
    assert!(report.passed(), "{report}");
    let keys = &report.sections[0].checks;
    assert_eq!(keys.len(), 6);
    assert!(keys.iter().all(|check| check.value == 0.0));
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
    let weights = random_weights(&config, 1).unwrap();
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
        assert!(matches!(error, Error::Argument { name: "input_ids", .. }), "{error}");
    }
    assert!(Checkpoint::open(Path::new(TINY)).is_ok());
    assert!(verify_checkpoint(&device(), Path::new("/nowhere"), 9, 7).is_err());
}
