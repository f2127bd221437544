//! Who watches a step of the model: what he sees, and what he gives.

use crate::support::device;
use dsa_kernels::{DType, Tensor};
use dsa_model::config::Config;
use dsa_model::layers::Precision;
use dsa_model::run::{Batch, Mode, Shown};
use dsa_model::weights::Checkpoint;
use dsa_model::{Error, Model};
use std::path::Path;
use std::sync::mpsc::channel;

/// Tokens of the text: more than are selected.
const TOKENS: usize = 40;

/// The tiny model in f32.
fn tiny() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let (config, weights) = (Config::read(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
    let exact = Precision::dequantised(DType::F32);
    Model::new(&device(), &config, weights.root(), exact).unwrap()
}

type Take = dyn FnMut(Shown) -> Result<Option<Tensor>, Error> + Send;

/// A step of all ids, watched by `take` if there is one: the logits.
fn step(model: &Model, mode: Mode, take: Option<Box<Take>>) -> Result<Vec<f32>, Error> {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|t| (21 + 7 * t) % 320).collect();
    let mut cache = model.cache(1, 64)?;
    let mut batch = Batch::chunk(&cache, 0, 0, ids.len(), mode)?;
    if let Some(take) = take {
        batch = batch.watched(take);
    }
    let logits = model.forward(&ids, &batch, &mut cache);
    assert_eq!(cache.length(0), if logits.is_ok() { ids.len() } else { 0 });
    Ok(logits?.download_f32()?)
}

/// All that is seen of one name, by layer: the numbers of each.
fn seen(model: &Model, mode: Mode, wanted: &'static str) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (to, from) = channel();
    let take = move |Shown { layer, name, tensor }: Shown| {
        if name == wanted {
            to.send((layer, tensor.download_f32()?)).unwrap();
        }
        Ok(None)
    };
    let logits = step(model, mode, Some(Box::new(take))).unwrap();
    let seen = from.try_iter().enumerate().map(|(at, (layer, values))| {
        assert_eq!(layer, at);
        values
    });
    (logits, seen.collect())
}

#[test]
fn scores_hidden_states_and_the_mass_of_the_keys_are_seen_at_every_layer_and_nothing_changes() {
    let model = tiny();
    let config = model.config();
    let (layers, n) = (config.num_hidden_layers, TOKENS);
    let plain = step(&model, Mode::Sparse, None).unwrap();
    let q_pe = config.num_attention_heads * config.qk_rope_head_dim;
    let widths = [("index.scores", n), ("block.ffn_out", config.hidden_size), ("mla.q_pe", q_pe)];
    for (name, width) in widths {
        let (logits, values) = seen(&model, Mode::Sparse, name);
        assert!(logits == plain, "{name}");
        assert_eq!(values.len(), layers);
        assert!(values.iter().all(|values| values.len() == n * width), "{name}");
    }
    // What the selected keys hold of the attention: all while there are no more than that, then less.
    let lse = |mode| seen(&model, mode, "mla.lse").1.swap_remove(0);
    let (sparse, dense) = (lse(Mode::Sparse), lse(Mode::Dense));
    let mass: Vec<f32> = sparse.iter().zip(dense).map(|(s, d)| (s - d).exp()).collect();
    let (all, some) = mass.split_at(config.index_topk * config.num_attention_heads);
    assert!(all.iter().all(|mass| (mass - 1.0).abs() < 1e-5), "{all:?}");
    assert!(some.iter().all(|mass| *mass < 1.0 + 1e-5) && some.iter().any(|mass| *mass < 0.99));
}

#[test]
fn what_a_watcher_gives_goes_on_and_his_error_or_another_shape_ends_the_step() {
    let model = tiny();
    let plain = step(&model, Mode::Sparse, None).unwrap();
    // Its own tensors, as copies: parts of wider ones too.
    let copy = |Shown { tensor, .. }: Shown| {
        let (shape, dtype) = (tensor.shape(), tensor.dtype());
        Ok(Some(tensor.device().upload(&tensor.download()?, shape, dtype)?))
    };
    assert!(step(&model, Mode::Sparse, Some(Box::new(copy))).unwrap() == plain);
    for wanted in ["mla.q_nope", "mla.q_pe", "mla.c_before", "mla.k_pe", "index.scores"] {
        let zeros = move |Shown { layer, name, tensor }: Shown| {
            let zeros = vec![0.0; tensor.len()];
            let given = || tensor.device().upload_f32(&zeros, tensor.shape(), tensor.dtype());
            Ok((layer == 1 && name == wanted).then(given).transpose()?)
        };
        let changed = step(&model, Mode::Sparse, Some(Box::new(zeros))).unwrap();
        assert!(changed != plain, "{wanted}");
    }
    let narrow = |Shown { tensor, .. }: Shown| Ok(Some(tensor.narrow(0, 0, 1)?));
    let error = step(&model, Mode::Sparse, Some(Box::new(narrow))).unwrap_err().to_string();
    assert_eq!(error, "mla.x is f32 [1, 64], expected f32 [40, 64]");
    let stop = |Shown { layer, name, .. }: Shown| {
        Error::check((layer, name) != (2, "mla.o"), "a watcher", "content", "none")?;
        Ok(None)
    };
    let error = step(&model, Mode::Sparse, Some(Box::new(stop))).unwrap_err().to_string();
    assert_eq!(error, "a watcher is content, expected none");
}
