//! Mutants of the files that are read: whatever is done to them, an error or an answer, never a panic,
//! and every message is short and fit for a terminal. Here two shards, every value read as f32, three whole
//! configurations and their way back to JSON; the suite's `mutants` has one small checkpoint and watches time,
//! memory and what is written. More of them: `PROPTEST_CASES=100000 cargo test
//! --release --workspace --lib -- mutants`.

use crate::config::Config;
use crate::error::Error;
use crate::weights::Checkpoint;
use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::tensor::{Dtype, TensorView, serialize};

const CONFIG: &str = include_str!("../../../../tests/data/configs/deepseek_v3_2_exp.json");
const DEMO: &str = include_str!("../../../../tests/data/configs/demo_671b.json");
const GLM: &str = include_str!("../../../../tests/data/configs/glm_5.json");
const INDEX: &str = r#"{"metadata": {"total_size": 12}, "weight_map": {"a.weight":
    "1.safetensors", "a.weight_scale_inv": "2.safetensors", "b": "1.safetensors"}}"#;

/// What is done to a text: a place, a length there, and what comes in its stead.
type Change = (Index, u8, String);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let pieces = prop_oneof![
        Just(String::new()),
        "[\\[\\]{}\",:0-9eE.+-]{1,3}",
        "\\PC{0,4}",
        Just("\u{1b}[2J".to_string()),
        Just("\\u0000".to_string()),
        Just("null".to_string()),
        Just("1e400".to_string()),
        Just("18446744073709551616".to_string()),
        Just("x".repeat(5000)),
        Just("[".repeat(300)),
        Just("../".to_string()),
    ];
    prop::collection::vec((any::<Index>(), 0u8..30, pieces), 1..4)
}

fn mutated(text: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for (at, length, piece) in changes {
        let at = at.index(bytes.len() + 1);
        let end = (at + usize::from(*length)).min(bytes.len());
        bytes.splice(at..end, piece.bytes());
    }
    bytes
}

/// A message that may be printed.
fn fit(error: &Error) -> Result<(), TestCaseError> {
    let text = error.to_string();
    prop_assert!(text.len() < 4000, "{} bytes", text.len());
    prop_assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
    Ok(())
}

/// Two shards with three tensors.
fn shards() -> [Vec<u8>; 2] {
    let file = |tensors: &[(&str, Dtype, &[usize], usize)]| {
        let bytes = [1u8; 64];
        let views = tensors.iter().map(|(name, dtype, shape, size)| {
            (name, TensorView::new(*dtype, shape.to_vec(), &bytes[..*size]).unwrap())
        });
        serialize(views, None).unwrap()
    };
    [
        file(&[("a.weight", Dtype::F8_E4M3, &[3, 5], 15), ("b", Dtype::BF16, &[4], 8)]),
        file(&[("a.weight_scale_inv", Dtype::F32, &[1, 1], 4)]),
    ]
}

/// Opens a folder of these files and reads everything in it.
fn read_all(index: &[u8], shards: &[Vec<u8>; 2]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    for (i, shard) in shards.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{}.safetensors", i + 1)), shard).unwrap();
    }
    match Checkpoint::open(folder.path()) {
        Err(error) => fit(&error),
        Ok(checkpoint) => checkpoint.names().try_for_each(|name| {
            let shape = checkpoint.form(name).unwrap().1.to_vec();
            checkpoint.values(name, &shape).map_or_else(|error| fit(&error), |_| Ok(()))
        }),
    }
}

proptest! {
    #[test]
    fn that_are_random_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        length in 0u64..200,
        honest in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if honest && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        fit(&Checkpoint::open(folder.path()).unwrap_err())?;
    }

    #[test]
    fn that_are_any_text_or_any_shard_in_an_index(shard in "\\PC{0,20}", text in "\\PC{0,60}") {
        let json = serde_json::json!({ "weight_map": { "x": shard } }).to_string();
        for text in [json, text] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
            fit(&Checkpoint::open(folder.path()).unwrap_err())?;
        }
    }

    #[test]
    fn of_a_configuration(changes in changes(), which in 0usize..3) {
        let text = mutated([CONFIG, DEMO, GLM][which].as_bytes(), &changes);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        match Config::read(folder.path()) {
            Err(error) => fit(&error)?,
            Ok(config) => prop_assert_eq!(Config::from_json(&config.to_json()).unwrap(), config),
        }
    }

    #[test]
    fn of_an_index(changes in changes()) {
        read_all(&mutated(INDEX.as_bytes(), &changes), &shards())?;
    }

    #[test]
    fn of_a_shard(changes in changes(), grown in any::<bool>(), which in 0usize..2) {
        let mut shards = shards();
        let mut shard = mutated(&shards[which][8..], &changes);
        let length = u64::from_le_bytes(shards[which][..8].try_into().unwrap());
        // Half of the mutants have a header that ends where it should.
        let by = shard.len() as i64 - (shards[which].len() as i64 - 8);
        let length = if grown { length.saturating_add_signed(by) } else { length };
        shard.splice(..0, length.to_le_bytes());
        shards[which] = shard;
        read_all(INDEX.as_bytes(), &shards)?;
    }
}

#[test]
fn the_files_that_are_mutated_are_read() {
    read_all(INDEX.as_bytes(), &shards()).unwrap();
    assert!([CONFIG, DEMO, GLM].iter().all(|text| Config::from_json(text).is_ok()));
}
