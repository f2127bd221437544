//! What a checkpoint of a configuration must hold and may not.

use super::manifest;
use crate::config::{Config, IndexerType};
use crate::error::Result;
use crate::weights::{Checkpoint, Dtype};
use safetensors::tensor::{TensorView, serialize};
use std::collections::BTreeMap;

/// Type, shape and bytes of each tensor to write.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Three layers, of which the last shares the keys of the second, and one more that is skipped.
fn config() -> Config {
    let types = [IndexerType::Full, IndexerType::Full, IndexerType::Shared];
    Config {
        vocab_size: 12,
        hidden_size: 130,
        intermediate_size: 6,
        moe_intermediate_size: 4,
        num_hidden_layers: 3,
        num_nextn_predict_layers: 1,
        n_routed_experts: 2,
        n_group: 1,
        topk_group: 1,
        num_experts_per_tok: 1,
        indexer_types: Some(types.to_vec()),
        ..Config::scaled(64).unwrap()
    }
}

/// All tensors of the configuration, in bf16, all 0.
fn tensors() -> Tensors {
    let made = |(name, shape): (String, Vec<usize>)| {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        (name, (Dtype::BF16, shape, bytes))
    };
    manifest(&config()).into_iter().map(made).collect()
}

fn expect(tensors: &Tensors) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(folder.path()).unwrap().expect(&config())
}

/// What is said of the tensors after a change.
fn says(change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = tensors();
    change(&mut tensors);
    expect(&tensors).map_or_else(|error| error.to_string(), |()| "all is well".to_string())
}

fn add(name: &str) -> impl FnOnce(&mut Tensors) {
    move |all| {
        all.insert(name.to_string(), (Dtype::F32, vec![1], vec![0; 4]));
    }
}

const UP: &str = "model.layers.1.mlp.experts.1.up_proj.weight";

#[test]
fn the_manifest_of_each_golden_model_is_what_its_file_holds() {
    for (name, layers) in [("tiny", 3), ("glm5", 5), ("glm", 5)] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/");
        let folder = std::path::PathBuf::from(folder).join(name);
        let (config, file) = (Config::read(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
        assert_eq!(config.num_hidden_layers, layers);
        file.expect(&config).unwrap();
        assert_eq!(manifest(&config).len(), file.names().count(), "{name}");
    }
    // 671.88 billion parameters, without the indexers' vectors as DeepSeek counts them.
    let count = |shape: &Vec<usize>| shape.iter().product::<usize>();
    let all: usize = manifest(&Config::v32()).iter().map(|(_, shape)| count(shape)).sum();
    assert_eq!(all / 10_000_000, 67_187);
}

#[test]
fn what_is_there_as_it_should_be_is_accepted() {
    assert_eq!(says(|_| ()), "all is well");
    for name in [
        "model.layers.3.eh_proj.weight",
        "model.layers.61.eh_proj.weight",
        "model.layers.2.self_attn.indexer.wk.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ] {
        assert_eq!(says(add(name)), "all is well", "{name}");
    }
}

#[test]
fn a_tensor_too_many_is_refused() {
    for name in [
        "model.layers.1.mlp.experts.2.up_proj.weight",
        "model.layers.1.self_attn.indexer.bias",
        "model.layers.0.self_attn.q_a_proj.bias",
        "model.layers.1.mlp.gate.weight_scale_inv",
        "lm_head.bias",
        "model.layers.x.weight",
    ] {
        let expected = format!(
            "tensor \"{name}\" is read by nobody here; expected only the weights of the configuration"
        );
        assert_eq!(says(add(name)), expected);
    }
}

#[test]
fn more_layers_behind_the_last_than_there_are_are_refused() {
    let two = says(|all| {
        add("model.layers.3.eh_proj.weight")(all);
        add("model.layers.4.eh_proj.weight")(all);
    });
    assert!(two.starts_with("tensor \"model.layers.3.eh_proj.weight\" is read by nobody"), "{two}");
}

#[test]
fn a_tensor_that_is_missing_or_of_another_form_is_refused_by_name() {
    let missing = says(|all| drop(all.remove(UP)));
    assert!(missing.starts_with(&format!("tensor \"{UP}\" is missing; ")), "{missing}");
    let turned = says(|all| all.get_mut(UP).unwrap().1.reverse());
    assert_eq!(turned, format!("tensor \"{UP}\" has shape [130, 4], expected [4, 130]"));
    let set = |dtype: Dtype, size: usize| {
        move |all: &mut Tensors| {
            all.insert(UP.to_string(), (dtype, vec![4, 130], vec![0; 4 * 130 * size]));
        }
    };
    let expected = "expected F32, BF16, F16, or F8_E4M3 with two axes";
    for (dtype, size) in
        [(Dtype::I8, 1), (Dtype::U8, 1), (Dtype::I32, 4), (Dtype::F8_E5M2, 1), (Dtype::F64, 8)]
    {
        let says = says(set(dtype, size));
        assert_eq!(says, format!("tensor \"{UP}\" has elements {dtype}, {expected}"));
    }
    // Two of them in a byte.
    let fp4 = says(|all| {
        all.insert(UP.to_string(), (Dtype::F4, vec![4, 130], vec![0; 4 * 130 / 2]));
    });
    assert_eq!(fp4, format!("tensor \"{UP}\" has elements F4, {expected}"));
    let scale = format!("{UP}_scale_inv");
    let alone = says(set(Dtype::F8_E4M3, 1));
    assert!(alone.starts_with(&format!("tensor \"{scale}\" is missing; ")), "{alone}");
    let scaled = |dtype: Dtype, shape: &'static [usize], bytes: usize| {
        let scale = scale.clone();
        move |all: &mut Tensors| {
            set(Dtype::F8_E4M3, 1)(all);
            all.insert(scale, (dtype, shape.to_vec(), vec![0; bytes]));
        }
    };
    assert_eq!(says(scaled(Dtype::F32, &[1, 2], 8)), "all is well");
    assert_eq!(says(scaled(Dtype::F8_E8M0, &[1, 2], 2)), "all is well");
    let wrong = format!("tensor \"{scale}\" has shape [1, 1], expected [1, 2]");
    assert_eq!(says(scaled(Dtype::F32, &[1, 1], 4)), wrong);
    let wrong = format!("tensor \"{scale}\" has elements I32, expected F32, BF16, F16 or F8_E8M0");
    assert_eq!(says(scaled(Dtype::I32, &[1, 2], 8)), wrong);
}

#[test]
fn scales_go_by_either_name_but_not_by_both() {
    let (usual, other) = (format!("{UP}_scale_inv"), format!("{UP}_scale"));
    let with = |names: &[&String]| {
        says(|all| {
            all.insert(UP.to_string(), (Dtype::F8_E4M3, vec![4, 130], vec![0; 4 * 130]));
            for name in names {
                all.insert(name.to_string(), (Dtype::F32, vec![1, 2], vec![0; 8]));
            }
        })
    };
    assert_eq!((with(&[&usual]), with(&[&other])), ("all is well".into(), "all is well".into()));
    let both = with(&[&usual, &other]);
    assert!(both.starts_with(&format!("tensor \"{other}\" is read by nobody")), "{both}");
    // Of a weight that has none it is nobody's.
    let stray = says(add(&other));
    assert!(stray.starts_with(&format!("tensor \"{other}\" is read by nobody")), "{stray}");
}

#[test]
fn a_head_that_is_the_embedding_is_refused() {
    let tied = says(|all| drop(all.remove("lm_head.weight")));
    assert!(tied.starts_with("tensor \"lm_head.weight\" is missing; "), "{tied}");
}
