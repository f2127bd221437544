//! What the command line replaces, what it may not, and that it is recorded.

use crate::config::*;
use crate::error::{Error, Result};

fn apply(config: Config, overrides: Overrides) -> Result<(Config, Vec<String>)> {
    overrides.apply(config)
}

fn topk(n: usize) -> Overrides {
    Overrides { topk: Some(n), ..Default::default() }
}

fn share(pattern: &str) -> Overrides {
    Overrides { share_index: Some(pattern.into()), ..Default::default() }
}

fn positions(n: usize) -> Overrides {
    Overrides { max_seq: Some(n), ..Default::default() }
}

#[test]
fn nothing_is_replaced_and_recorded_unless_it_is_asked_for() {
    let (config, warnings) = apply(Config::v32(), Overrides::default()).unwrap();
    assert_eq!((config, warnings.len()), (Config::v32(), 0));
}

#[test]
fn what_is_replaced_is_recorded_with_the_file_s_value() {
    let all =
        Overrides { topk: Some(512), share_index: Some("4:3".into()), max_seq: Some(131_072) };
    let (config, warnings) = apply(Config::v32(), all).unwrap();
    assert_eq!((config.index_topk, config.max_position_embeddings), (512, 131_072));
    assert_eq!((config.indexers(), warnings.len()), (17, 0));
    let fields: Vec<&str> = config.overrides.iter().map(|one| one.field).collect();
    assert_eq!(fields, ["index_topk", "indexer_types", "max_position_embeddings"]);
    assert_eq!(config.overrides[0].to_string(), "index_topk is 512, not the file's 2048");
    assert_eq!(config.overrides[1].file, "F".repeat(61));
    assert!(config.overrides[1].value.starts_with("FFFSSSFSSSF"));
    // A report says it.
    let said: Vec<String> = config
        .deciding()
        .into_iter()
        .filter(|(name, _)| name == "override")
        .map(|(_, value)| value)
        .collect();
    assert_eq!(said.len(), 3);
    assert_eq!(said[2], "max_position_embeddings is 131072, not the file's 163840");
    // All else is as it was, and a second override is another record.
    let expected = Config {
        index_topk: 2048,
        indexer_types: None,
        max_position_embeddings: 163_840,
        overrides: vec![],
        ..config.clone()
    };
    assert_eq!(expected, Config::v32());
    let (again, _) = apply(config, topk(256)).unwrap();
    assert_eq!(again.overrides.last().unwrap().file, "512");
}

#[test]
fn more_positions_than_the_model_is_made_for_are_a_warning() {
    for (n, warned) in [(1, false), (163_840, false), (163_841, true), (1 << 24, true)] {
        let (config, warnings) = apply(Config::v32(), positions(n)).unwrap();
        assert_eq!(config.max_position_embeddings, n);
        assert_eq!(warnings.len(), usize::from(warned), "{n}: {warnings:?}");
        let said = |warning: &String| {
            warning.contains(&format!("--max-seq is {n}")) && warning.contains("163840")
        };
        assert!(warnings.iter().all(said), "{warnings:?}");
    }
}

#[test]
fn a_layer_that_becomes_full_needs_its_indexer_and_one_that_becomes_shared_needs_none() {
    let (full, _) = apply(Config::glm_5_2(), share(&"F".repeat(78))).unwrap();
    assert_eq!((full.indexers(), full.indexer_types.clone()), (78, None));
    assert_eq!(full.indexer_of(3), Indexer::Full);
    assert!(full.overrides[0].file.starts_with("FFFSSSF"));
    let (shared, _) = apply(Config::v32(), share(&format!("F{}", "S".repeat(60)))).unwrap();
    assert_eq!((shared.indexers(), shared.indexer_of(60)), (1, Indexer::SharedWith(0)));
    let (published, _) = apply(Config::glm_5(), share("4:3")).unwrap();
    assert_eq!(published.indexer_types, Config::glm_5_2().indexer_types);
}

#[test]
fn what_may_not_be_is_refused_with_option_value_and_rule() {
    let beyond = (1 << 24) + 1;
    let cut = "F".repeat(60);
    let foreign = format!("F\u{1b}{}", "S".repeat(59));
    for (overrides, name, value, said) in [
        (topk(0), "--topk", "0", "1 to 16777216"),
        (topk(beyond), "--topk", "16777217", "1 to 16777216"),
        (positions(0), "--max-seq", "0", "1 to 16777216"),
        (positions(beyond), "--max-seq", "16777217", "1 to 16777216"),
        (positions(usize::MAX), "--max-seq", "18446744073709551615", "1 to 16777216"),
        (share(""), "--share-index", "a list of 0", "one for each of 61 layers"),
        (share(&cut), "--share-index", "a list of 60", "one for each of 61 layers"),
        (share(&format!("S{cut}")), "--share-index", "shared in layer 0", "no layer before"),
        (share(&format!("{cut}X")), "--share-index", "'X' for one of them", "FREQUENCY:OFFSET"),
        (share(&foreign), "--share-index", "'\\u{1b}' for one of them", "F (it has an indexer)"),
        (share("4:0"), "--share-index", "shared in layer 0", "no layer before"),
        (share("0:3"), "--share-index", "0:3", "the first 1 or more"),
        (share("4:"), "--share-index", "4:", "two numbers"),
        (share("4:3:2"), "--share-index", "4:3:2", "two numbers"),
        (share("-4:3"), "--share-index", "-4:3", "two numbers"),
    ] {
        let error = apply(Config::v32(), overrides).unwrap_err();
        let Error::Argument { name: named, value: found, .. } = &error else { panic!("{error}") };
        assert_eq!((*named, &found[..]), (name, value));
        assert!(error.to_string().contains(said), "{error}");
    }
}
