//! A checkpoint's layers, and the keys that are stored beside it.

use super::layer::{Trial, compare};
use super::reference::{attention_config, attention_options, attention_weights, stored_matrix};
use super::report::{Bound, Report, Section};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, Dtype, WeightPath};
use dsa_kernels::{DType, Device};
use dsa_reference::attention_layer::indexer_topk;
use dsa_reference::norm::rms_norm;
use dsa_tests::gate::DEFAULT_SEED;
use dsa_tests::generate::Rng;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use std::collections::BTreeSet;
use std::path::Path;

/// Tokens of the made-up text, where there is no other.
const TOKENS: usize = 192;

/// [`verify_checkpoint`](super::verify_checkpoint), on `ids` if they are given.
pub(super) fn verify(device: &Device, folder: &Path, ids: Option<&[u32]>) -> Result<Report> {
    let config = Config::read(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let stored = folder.join("expected.safetensors");
    let stored = match ids {
        None if stored.exists() => Some(Checkpoint::open_files(vec![stored])?),
        _ => None,
    };
    let ids = match (&stored, ids) {
        (_, Some(ids)) => ids.to_vec(),
        (Some(stored), None) => {
            integers(stored, "input_ids")?.iter().map(|id| *id as u32).collect()
        }
        (None, None) => {
            let mut rng = Rng::new(DEFAULT_SEED);
            (0..TOKENS).map(|_| rng.below(config.vocab_size) as u32).collect()
        }
    };
    let model = Model { device, config, checkpoint };
    let embedded = model.embed(&ids)?; // [s, hidden]
    let mut report = Report::default();
    if let Some(stored) = &stored {
        report.sections.push(model.stored_keys(stored, &embedded)?);
    }
    let x = model.normalise(0, &embedded)?; // [s, hidden]
    let weights = model.weights(0);
    for dtype in [DType::F32, DType::Bf16] {
        let section = compare(device, &model.config, &weights, x.view(), dtype, "layer 0")?;
        report.sections.push(section);
    }
    Ok(report)
}

struct Model<'a> {
    device: &'a Device,
    config: Config,
    checkpoint: Checkpoint,
}

impl Model<'_> {
    /// Embeddings of `ids`: `[s, hidden]`.
    fn embed(&self, ids: &[u32]) -> Result<Array2<f32>> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        Error::check(!ids.is_empty(), "input_ids", "empty", "at least one token")?;
        for id in ids {
            Error::check((*id as usize) < vocab, "input_ids", id, format!("ids below {vocab}"))?;
        }
        let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        let table = stored_matrix(&self.checkpoint, "model.embed_tokens.weight", [vocab, hidden])?;
        Ok(table.select(Axis(0), &rows)) // [s, hidden]
    }

    /// What a layer's attention gets of the residual stream: `[s, hidden]` to the same.
    fn normalise(&self, layer: usize, residual: &Array2<f32>) -> Result<Array2<f32>> {
        let name = format!("model.layers.{layer}.input_layernorm.weight");
        let weight = Array1::from_vec(self.checkpoint.values(&name, &[self.config.hidden_size])?);
        Ok(rms_norm(residual.view(), weight.view(), self.config.rms_norm_eps)?)
    }

    fn weights(&self, layer: usize) -> WeightPath<'_> {
        self.checkpoint.root().at("model.layers").at(layer).at("self_attn")
    }

    /// The stored keys of every layer that has some, against those of both sides.
    fn stored_keys(&self, stored: &Checkpoint, embedded: &Array2<f32>) -> Result<Section> {
        let (s, hidden) = embedded.dim();
        let title = format!("stored keys, f32, {s} tokens: tokens that differ");
        let mut section = Section { title, ..Default::default() };
        for layer in 0..self.config.num_hidden_layers {
            let name = format!("layer{layer}.topk");
            let before = format!("layer{}.hidden", layer.wrapping_sub(1));
            if !stored.contains(&name) || (layer > 0 && !stored.contains(&before)) {
                continue;
            }
            let want = matrix(integers(stored, &name)?, s, &name)?; // [s, k]
            let x = match layer {
                0 => self.normalise(0, embedded)?,
                _ => self.normalise(layer, &stored_matrix(stored, &before, [s, hidden])?)?,
            }; // [s, hidden]
            let source = self.weights(layer);
            let weights = attention_weights(&self.config, &source)?;
            let (c, options) = (attention_config(&self.config), attention_options(&self.config));
            let by_reference = indexer_topk(x.view(), &c, &weights, &options)?; // [s, topk]
            let by_kernels =
                Trial::new(self.device, &self.config, &source, x.view(), DType::F32)?.selected()?;
            for (who, got) in [("reference", by_reference), ("kernels", by_kernels)] {
                let different = differing(got.view(), want.view());
                let first =
                    different.first().map_or(String::new(), |t| format!("first: token {t}"));
                let name = format!("layer {layer}, {who}");
                section.check(&name, different.len() as f64, Bound::AtMost(0.0), first);
            }
        }
        Ok(section)
    }
}

/// The tokens whose keys are not the same set. What comes after a token does not count: lists that
/// are made before the causal mask is applied hold such keys where there are fewer than k others.
fn differing(got: ArrayView2<i32>, want: ArrayView2<i32>) -> Vec<usize> {
    let keys = |list: ArrayView2<i32>, t: usize| -> BTreeSet<i32> {
        list.row(t).iter().copied().filter(|n| (0..=t as i32).contains(n)).collect()
    };
    (0..want.nrows()).filter(|t| keys(got, *t) != keys(want, *t)).collect()
}

/// The elements of a tensor of i32.
fn integers(file: &Checkpoint, name: &str) -> Result<Vec<i32>> {
    let tensor = file.tensor(name)?;
    if tensor.dtype != Dtype::I32 {
        return Err(Error::Dtype { name: name.into(), found: tensor.dtype, expected: "I32" });
    }
    Ok(tensor.bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}

/// `values` as `rows` rows.
fn matrix(values: Vec<i32>, rows: usize, name: &str) -> Result<Array2<i32>> {
    let (len, cols) = (values.len(), values.len() / rows);
    Array2::from_shape_vec((rows, cols), values).map_err(|_| Error::Shape {
        name: name.into(),
        found: vec![len],
        expected: vec![rows, cols],
    })
}
