//! A checkpoint's layers, and the keys that are stored beside it.

use super::comparison::compare;
use super::error::Result;
use super::reference::{attention_config, attention_options, attention_weights, stored_matrix};
use super::report::{Bound, Report, Section};
use super::trial::Trial;
use super::{TOKENS, check_tokens};
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device};
use dsa_model::Error;
use dsa_model::config::{Config, Indexer};
use dsa_model::weights::{Checkpoint, Dtype, WeightPath, is_there};
use dsa_reference::attention_layer::indexer_topk;
use dsa_reference::norm::rms_norm;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Where the keys and the text of another implementation are.
const STORED: &str = "expected.safetensors";

/// Which text a checkpoint's layers are tried on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text<'a> {
    /// The stored one if there is one, or else a made-up one.
    Stored {
        /// Length of the made-up one; of a stored one it must not be given.
        tokens: Option<usize>,
        /// Seed of the made-up one.
        seed: u64,
    },
    /// These ids.
    Ids(&'a [u32]),
}

/// [`verify_checkpoint`](super::verify_checkpoint) on a text.
pub(super) fn verify(device: &Device, folder: &Path, text: Text) -> Result<Report> {
    let config = Config::read(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let stored = folder.join(STORED);
    let mut settings = config.deciding();
    let mut say = |name: &str, value: String| settings.push((name.to_string(), value));
    let (ids, stored) = match text {
        Text::Ids(ids) => {
            check_tokens("input_ids", ids.len())?;
            say("text", format!("{} ids that were given", ids.len()));
            say("stored keys", "not looked for: the text was given".into());
            (ids.to_vec(), None)
        }
        Text::Stored { tokens, .. } if is_there(&stored)? => {
            let got = tokens.map_or(String::new(), |tokens| tokens.to_string());
            let expected = format!("none: the text is that of {STORED}");
            Error::check(tokens.is_none(), "tokens", got, expected)?;
            let stored = Stored::open(Checkpoint::open_files(vec![stored])?, &config)?;
            say("text", format!("{} tokens of {STORED}", stored.ids.len()));
            say("stored keys", format!("{STORED}, layers {}", stored.layer_list()));
            (stored.ids.clone(), Some(stored))
        }
        Text::Stored { tokens, seed } => {
            let tokens = tokens.unwrap_or(TOKENS);
            check_tokens("tokens", tokens)?;
            say("text", format!("{tokens} made-up tokens, seed {seed}"));
            say("stored keys", format!("none here: the folder has no {STORED}"));
            let mut rng = Rng::new(seed);
            ((0..tokens).map(|_| rng.below(config.vocab_size) as u32).collect(), None)
        }
    };
    let model = Model { device, config, checkpoint };
    let embedded = model.embed(&ids)?; // [s, hidden]
    let mut sections = Vec::new();
    if let Some(stored) = &stored {
        sections.push(model.stored_keys(stored, &embedded)?);
    }
    let x = model.normalise(0, &embedded)?; // [s, hidden]
    let weights = model.weights(0);
    for dtype in [DType::F32, DType::Bf16] {
        sections.push(compare(device, &model.config, &weights, x.view(), dtype, "layer 0")?);
    }
    Ok(Report { settings, sections })
}

/// What another implementation computed.
struct Stored {
    file: Checkpoint,
    /// The text: `[s]`.
    ids: Vec<u32>,
    /// The keys of each layer that has some: `[s, index_topk]`.
    keys: BTreeMap<usize, Array2<i32>>,
}

impl Stored {
    /// Reads text and keys. Every form is checked before anything is read, and the file must hold keys
    /// of a layer that exists: without them there is nothing to compare with.
    fn open(file: Checkpoint, config: &Config) -> Result<Self> {
        let shape = |name: &str| file.form(name).map(|(_, shape)| shape.to_vec());
        let s = match shape("input_ids")?[..] {
            [s] => s,
            ref found => {
                let (found, expected) = (found.to_vec(), vec![found.iter().product()]);
                return Err(Error::Shape { name: "input_ids".into(), found, expected }.into());
            }
        };
        check_tokens("input_ids", s)?;
        let ids = integers(&file, "input_ids", &[s])?;
        let ids = ids.into_iter().map(|id| {
            let expected = "an id, 0 or more";
            u32::try_from(id).map_err(|_| Error::Argument {
                name: "input_ids",
                value: id.to_string(),
                expected: expected.into(),
            })
        });
        let ids = ids.collect::<Result<Vec<u32>, _>>()?;
        let mut keys = BTreeMap::new();
        let name = |layer: usize| format!("layer{layer}.topk");
        let layers = config.num_hidden_layers;
        for layer in (0..layers).filter(|layer| file.contains(&name(*layer))) {
            let form = [s, config.index_topk];
            let values = integers(&file, &name(layer), &form)?;
            let list = Array2::from_shape_vec(form, values).map_err(|_| Error::Shape {
                name: name(layer),
                found: vec![],
                expected: form.to_vec(),
            })?;
            keys.insert(layer, list);
        }
        let listed = file.names().filter(|name| name.ends_with(".topk")).count();
        let right = !keys.is_empty() && listed == keys.len();
        let got = format!("{listed} tensors .topk, of which {} are of layers", keys.len());
        let last = layers - 1;
        let expected = format!(
            "layer0.topk to layer{last}.topk, at least one, and no other (to verify without stored \
             keys, move the file away)"
        );
        Error::check(right, STORED, got, expected)?;
        Ok(Self { file, ids, keys })
    }

    fn layer_list(&self) -> String {
        self.keys.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
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
    fn stored_keys(&self, stored: &Stored, embedded: &Array2<f32>) -> Result<Section> {
        let (s, hidden) = embedded.dim();
        let title = format!("stored keys, f32, {s} tokens: tokens that differ");
        let mut section = Section { title, ..Default::default() };
        for (&layer, want) in &stored.keys {
            // A layer without an indexer of its own attends to the keys that another chose.
            let chooser = match self.config.indexer_of(layer) {
                Indexer::Full => layer,
                Indexer::SharedWith(source) => source,
            };
            let x = match chooser.checked_sub(1) {
                None => self.normalise(0, embedded)?,
                Some(before) => {
                    let name = format!("layer{before}.hidden");
                    self.normalise(chooser, &stored_matrix(&stored.file, &name, [s, hidden])?)?
                }
            }; // [s, hidden]
            let source = self.weights(chooser);
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

/// The elements of a tensor of i32 of this shape.
fn integers(file: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
    let (dtype, found) = file.form(name)?;
    if dtype != Dtype::I32 {
        return Err(Error::Dtype { name: name.into(), found: dtype, expected: "I32" }.into());
    }
    if found != shape {
        let (found, expected) = (found.to_vec(), shape.to_vec());
        return Err(Error::Shape { name: name.into(), found, expected }.into());
    }
    let bytes = file.tensor(name)?.bytes;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}
