//! Scales on their way to the device: wherever they are and however they are named, and refused if they are none.

use super::*;
use crate::layers::Precision;
use crate::weights::manifest::manifest;
use crate::{Config, Model};
use dsa_kernels::Device;

/// Two layers, one with experts, no width a multiple of a block.
fn config() -> Config {
    let config = Config {
        vocab_size: 12,
        hidden_size: 136,
        intermediate_size: 24,
        moe_intermediate_size: 16,
        num_hidden_layers: 2,
        n_routed_experts: 4,
        n_group: 1,
        topk_group: 1,
        num_experts_per_tok: 2,
        ..Config::scaled(64).unwrap()
    };
    config.validate().unwrap();
    config
}

/// A folder with two shards: the weights in one, all matrices in e4m3, and in the other their scales, named with
/// `ending`, one of which is `scale`.
fn shards(ending: &str, scale: f32) -> TempDir {
    let (mut weights, mut scales, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in manifest(&config()) {
        pairs.push(format!(r#""{name}": "1.safetensors""#));
        let n = shape.iter().product();
        let [out, into] = shape[..] else {
            weights.push((name, Dtype::F32, shape, f32s(&vec![1.0; n])));
            continue;
        };
        let blocks = [out, into].map(|n: usize| n.div_ceil(128));
        let mut values = vec![0.01; blocks[0] * blocks[1]];
        if name == "model.layers.1.mlp.experts.2.down_proj.weight" {
            values[1.min(blocks[0] * blocks[1] - 1)] = scale;
        }
        pairs.push(format!(r#""{name}{ending}": "2.safetensors""#));
        scales.push((format!("{name}{ending}"), Dtype::F32, blocks.to_vec(), f32s(&values)));
        weights.push((name, Dtype::F8_E4M3, shape, (0..n).map(|i| (i % 100) as u8).collect()));
    }
    let write = |tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>| {
        let tensors: Vec<_> =
            tensors.iter().map(|(n, d, s, b)| (n.as_str(), *d, s.clone(), b.clone())).collect();
        file(&tensors)
    };
    let index = index(&pairs.join(", "));
    folder(&[
        ("model.safetensors.index.json", &index),
        ("1.safetensors", &write(weights)),
        ("2.safetensors", &write(scales)),
    ])
}

/// The first logits of the model in `folder`.
fn logits(folder: &TempDir) -> Result<Vec<u8>> {
    let (device, config) = (Device::named("cpu").unwrap(), config());
    let checkpoint = Checkpoint::open(folder.path())?;
    let model = Model::new(&device, &config, checkpoint.root(), Precision::STORED)?;
    let (mut cache, mut logits) = (model.cache(1, 64)?, vec![]);
    model.prefill(&[3, 4, 5], 0, 3, crate::run::Mode::Sparse, &mut cache, |chunk| {
        logits = chunk.download()?;
        Ok(())
    })?;
    Ok(logits)
}

#[test]
fn scales_in_another_shard_and_of_the_other_name_are_the_same_and_the_other_name_is_said() {
    let (usual, other) = (shards("_scale_inv", 0.02), shards("_scale", 0.02));
    let expected = logits(&usual).unwrap();
    assert!(expected.iter().any(|byte| *byte != 0));
    assert_eq!(logits(&other).unwrap(), expected);
    assert_ne!(
        logits(&shards("_scale_inv", 0.5)).unwrap(),
        expected,
        "the scale decides something"
    );
    let notes = |folder: &TempDir| Checkpoint::open(folder.path()).unwrap().notes();
    assert_eq!(notes(&usual), Vec::<String>::new());
    let matrices = manifest(&config()).iter().filter(|(_, shape)| shape.len() == 2).count();
    let says = format!(
        "{matrices} weights have their scales in weight_scale, which is read as weight_scale_inv"
    );
    assert!(notes(&other)[0].starts_with(&says), "{:?}", notes(&other));
}

#[test]
fn a_scale_that_is_none_is_refused_by_name_before_its_codes_are_read() {
    for (scale, says) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-0.5, "-0.5")] {
        let error = logits(&shards("_scale_inv", scale)).unwrap_err().to_string();
        let name = "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv";
        let expected =
            format!("tensor \"{name}\" holds {says}, expected finite scales, none negative");
        assert_eq!(error, expected);
    }
}
