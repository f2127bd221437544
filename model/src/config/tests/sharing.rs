//! Which layers choose their keys, by every place in which a file says it.

use super::{changed, refused};
use crate::config::sharing::schedule;
use crate::config::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A field and its value.
type Field = (&'static str, Value);

/// One letter for each layer.
fn letters(types: &[IndexerType]) -> String {
    types.iter().map(|kind| if *kind == IndexerType::Full { 'F' } else { 'S' }).collect()
}

/// V3.2 with so many layers and these fields.
fn with(layers: usize, fields: &[Field]) -> Vec<Field> {
    let mut all = vec![("num_hidden_layers", json!(layers)), ("first_k_dense_replace", json!(1))];
    all.extend(fields.iter().cloned());
    all
}

fn pattern_of(layers: usize, fields: &[Field]) -> String {
    let config = changed(&with(layers, fields)).unwrap();
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    config.index_pattern()
}

#[test]
fn glm_5_2_has_an_indexer_in_21_layers_of_78() {
    let config = Config::glm_5_2();
    let full: Vec<usize> =
        (0..78).filter(|layer| config.indexer_of(*layer) == Indexer::Full).collect();
    let expected: Vec<usize> = [0, 1].into_iter().chain((2..78).step_by(4)).collect();
    assert_eq!((config.indexers(), full), (21, expected));
    for (layer, source) in [(3, 2), (5, 2), (7, 6), (75, 74), (77, 74)] {
        assert_eq!(config.indexer_of(layer), Indexer::SharedWith(source), "layer {layer}");
    }
    // Without types every layer has one, and so has a layer that does not exist.
    assert_eq!((Config::v32().indexers(), Config::v32().indexer_of(60)), (61, Indexer::Full));
    assert_eq!([78, usize::MAX].map(|layer| config.indexer_of(layer)), [Indexer::Full; 2]);
}

#[test]
fn every_place_says_the_same() {
    let words = json!(["full", "shared", "shared", "full"]);
    for fields in [
        &[("indexer_types", words.clone())][..],
        &[("index_topk_pattern", json!("FSSF"))],
        &[("index_topk_pattern", json!(["F", "S", "S", "F"]))],
        &[("index_topk_pattern", words.clone())],
        &[("index_topk_freq", json!(3)), ("index_skip_topk_offset", json!(1))],
        &[("indexer_types", words.clone()), ("index_topk_pattern", json!("FSSF"))],
        &[
            ("indexer_types", words.clone()),
            ("index_topk_freq", json!(3)),
            ("index_skip_topk_offset", json!(1)),
            ("use_index_cache", json!(true)),
        ],
        // An offset alone moves nothing.
        &[("indexer_types", words), ("index_skip_topk_offset", json!(9))],
    ] {
        assert_eq!(pattern_of(4, fields), "FSSF", "{fields:?}");
    }
    for all in [
        &[][..],
        &[("indexer_types", json!(vec!["full"; 4]))],
        &[("index_topk_pattern", json!("FFFF"))],
        &[("index_topk_freq", json!(1))],
        &[("index_topk_freq", json!(1)), ("index_skip_topk_offset", json!(7))],
        &[("index_topk_freq", json!(2)), ("index_skip_topk_offset", json!(4))],
        &[("use_index_cache", json!(true))],
        &[("use_index_cache", json!(false))],
    ] {
        let config = changed(&with(4, all)).unwrap();
        assert_eq!((config.index_pattern(), config.indexer_types), ("FFFF".into(), None));
    }
}

#[test]
fn a_wrong_place_is_refused_with_value_and_rule() {
    let schedule = |frequency: Value, offset: Value| {
        [("index_topk_freq", frequency), ("index_skip_topk_offset", offset)]
    };
    let types = |text: &str| -> Value {
        text.chars().map(|c| if c == 'F' { "full" } else { "shared" }).collect()
    };
    let one = |name: &'static str, value: Value| vec![(name, value)];
    let both =
        |name: &'static str, value: Value, other: &[Field]| [&[(name, value)], other].concat();
    let cases: Vec<(Vec<Field>, &str, &[&str])> = vec![
        // As many as there are layers.
        (one("indexer_types", types("FS")), "indexer_types", &["a list of 2", "each of 4 layers"]),
        (one("indexer_types", types("FSSFS")), "indexer_types", &["a list of 5"]),
        (one("indexer_types", json!([])), "indexer_types", &["a list of 0", "each of 4 layers"]),
        (one("index_topk_pattern", json!("FSS")), "index_topk_pattern", &["a list of 3"]),
        (one("index_topk_pattern", json!("")), "index_topk_pattern", &["a list of 0"]),
        (one("index_topk_pattern", json!(["F"])), "index_topk_pattern", &["a list of 1"]),
        // The first layer has none to share with.
        (one("indexer_types", types("SFFF")), "indexer_types", &["shared in layer 0", "full: "]),
        (one("index_topk_pattern", json!("SSSS")), "index_topk_pattern", &["shared in layer 0"]),
        (
            schedule(json!(4), json!(0)).to_vec(),
            "index_topk_freq",
            &["4 with index_skip_topk_offset 0: shared in layer 0", "no layer before it"],
        ),
        // Two places that say different things.
        (
            both("indexer_types", types("FSSF"), &[("index_topk_pattern", json!("FSFF"))]),
            "index_topk_pattern",
            &["full in layer 2", "shared, as indexer_types says", "or one of them alone"],
        ),
        (
            both("indexer_types", types("FSSF"), &schedule(json!(2), json!(1))),
            "index_topk_freq",
            &["2 with index_skip_topk_offset 1: full in layer 2", "as indexer_types says"],
        ),
        (
            both("index_topk_pattern", json!("FFFS"), &schedule(json!(1), Value::Null)),
            "index_topk_freq",
            &["full in layer 3", "shared, as index_topk_pattern says"],
        ),
        (
            both("indexer_types", types("FSFF"), &[("use_index_cache", json!(false))]),
            "use_index_cache",
            &["is false", "some layers share"],
        ),
        // What implementations disagree about, alone and beside types.
        (
            schedule(json!(2), Value::Null).to_vec(),
            "index_skip_topk_offset",
            &["missing", "index_topk_freq = 2", "1 or 2"],
        ),
        (
            both("indexer_types", types("FFSF"), &schedule(json!(2), Value::Null)),
            "index_skip_topk_offset",
            &["missing"],
        ),
        // Words, letters and numbers.
        (
            one("indexer_types", json!(["full", "none", "full", "full"])),
            "indexer_types",
            &["\"none\""],
        ),
        (one("indexer_types", json!("FSSF")), "indexer_types", &["FSSF", "a list"]),
        (one("index_topk_pattern", json!("FxSF")), "index_topk_pattern", &["'x'", "F (it has"]),
        (one("index_topk_pattern", json!("fssf")), "index_topk_pattern", &["'f'"]),
        (one("index_topk_pattern", json!(3)), "index_topk_pattern", &["is 3", "a list"]),
        (schedule(json!(0), json!(1)).to_vec(), "index_topk_freq", &["is 0", "1 or more"]),
        (schedule(json!(-4), json!(1)).to_vec(), "index_topk_freq", &["is -4"]),
        (schedule(json!(2), json!(-1)).to_vec(), "index_skip_topk_offset", &["is -1"]),
        (schedule(json!(1.5), json!(1)).to_vec(), "index_topk_freq", &["is 1.5"]),
    ];
    for (fields, field, said) in cases {
        refused(&with(4, &fields), field, said);
    }
    // The demo's spelling has no word for it.
    let demo = super::changed_file(super::DEMO, &[("indexer_types", json!(vec!["full"; 61]))]);
    super::refused_with(demo, "indexer_types", &["nobody here reads"]);
}

#[test]
fn a_configuration_made_by_hand_keeps_the_same_rules() {
    use IndexerType::{Full, Shared};
    for (types, said) in [(vec![Full], "a list of 1"), (vec![Shared; 61], "shared in layer 0")] {
        let config = Config { indexer_types: Some(types), ..Config::v32() };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("indexer_types") && error.contains(said), "{error}");
        // Even so nothing points to a layer that has none.
        assert_eq!(config.indexer_of(0), Indexer::Full);
    }
}

#[test]
fn no_number_of_layers_makes_a_list_of_that_length() {
    let fields = [("index_topk_freq", json!(2)), ("index_skip_topk_offset", json!(1))];
    for layers in [0, 1025, usize::MAX] {
        refused(&with(layers, &fields), "num_hidden_layers", &["1 to 1024"]);
    }
}

proptest! {
    #[test]
    fn the_schedule_is_the_formula(
        layers in 1usize..100,
        frequency in prop_oneof![1usize..9, Just(usize::MAX)],
        offset in prop_oneof![0usize..12, Just(usize::MAX)],
    ) {
        let types = schedule(layers, frequency, offset);
        for (i, kind) in types.iter().enumerate() {
            let distance = (i as i128 - offset as i128 + 1).max(0);
            prop_assert_eq!(*kind == IndexerType::Full, distance % frequency as i128 == 0);
        }
        let fields =
            [("index_topk_freq", json!(frequency)), ("index_skip_topk_offset", json!(offset))];
        match changed(&with(layers, &fields)) {
            Ok(config) => prop_assert_eq!(config.index_pattern(), letters(&types)),
            Err(error) => {
                prop_assert_eq!(types[0], IndexerType::Shared, "{}", error);
            }
        }
    }

    #[test]
    fn a_layer_shares_with_the_last_full_one_before_it(rest in "[FS]{0,70}") {
        let pattern = format!("F{rest}");
        let fields = [("index_topk_pattern", json!(pattern))];
        let config = changed(&with(pattern.len(), &fields)).unwrap();
        prop_assert_eq!(config.index_pattern(), &pattern[..]);
        let mut last = 0;
        for (layer, letter) in pattern.chars().enumerate() {
            let expected = match letter {
                'F' => { last = layer; Indexer::Full }
                _ => Indexer::SharedWith(last),
            };
            prop_assert_eq!(config.indexer_of(layer), expected);
        }
        prop_assert_eq!(config.indexers(), pattern.matches('F').count());
    }
}
