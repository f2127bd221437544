//! The whole model by the reference, from the configuration and the weights that the model on a device takes.
//!
//! ```text
//! let reference = Reference::new(&config, checkpoint.root(), Precision::STORED)?;
//! let logits = reference.run(&ids, ids.len(), Mode::Sparse, None)?;          // [n, vocab_size] f32, as bytes
//! ```

use crate::layer::Result;
use crate::layer::reference::{attention_config, attention_options};
use dsa_kernels::upload::Upload;
use dsa_kernels::{DType, Device};
use dsa_model::config::{Config, Indexer, QUANT_BLOCK};
use dsa_model::intermediates::Intermediates;
use dsa_model::layers::Precision;
use dsa_model::run::Mode;
use dsa_model::weights::Weights;
use dsa_reference::arithmetic::Arithmetic;
use dsa_reference::attention::{AttentionWeights, IndexerWeights};
use dsa_reference::attention_layer;
use dsa_reference::experts::ExpertsWeights;
use dsa_reference::feed_forward::FeedForwardWeights;
use dsa_reference::model::{LayerWeights, Mlp, ModelConfig, ModelWeights, watched};
use dsa_reference::quant::bf16_round;
use dsa_reference::router::RouterConfig;
use dsa_reference::watch::{Value, Watch};
use dsa_reference::weight::Weight;
use ndarray::{Array1, Array2, ArrayD, Axis, Slice};
use std::fmt::Display;

/// A model in the reference: its weights in memory.
pub struct Reference {
    config: ModelConfig,
    weights: ModelWeights,
    arithmetic: Arithmetic,
}

impl Reference {
    /// The model of `config` with `weights`, the root of a checkpoint.
    ///
    /// `precision` means what it means on a device: in bf16 every result that is kept is rounded to it, and so are the
    /// attention's scores and probabilities, as in the published demo; in fp8 weights stay as they are stored.
    ///
    /// # Errors
    /// Those of [`Weights::expect`], before anything is read, and of [`Weights::values`]; [`dsa_model::Error::Argument`]
    /// for a type that is neither f32 nor bf16.
    pub fn new<W: Weights>(config: &Config, weights: W, precision: Precision) -> Result<Self> {
        let dtype = precision.dtype;
        let right = [DType::F32, DType::Bf16].contains(&dtype);
        dsa_model::Error::check(right, "dtype", dtype, "f32 or bf16")?;
        weights.expect(config)?;
        let (dsa, bf16) = (attention_options(config), dtype == DType::Bf16);
        let scale_fmt = dsa.scale_fmt;
        let arithmetic = Arithmetic { dsa, fp8_linear: precision.fp8, bf16, scale_fmt };
        let (c, root) = (config, Reader { weights, precision });
        let (vocab, hidden) = (c.vocab_size, c.hidden_size);
        let model = root.at("model");
        let layer = |layer| model.at("layers").at(layer).layer(c, layer);
        let weights = ModelWeights {
            embed_tokens: model.matrix("embed_tokens", [vocab, hidden])?,
            layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: model.vector("norm.weight", hidden)?,
            lm_head: root.matrix("lm_head", [vocab, hidden])?,
        };
        let config = ModelConfig {
            attention: attention_config(c),
            rms_norm_eps: c.rms_norm_eps,
            router: RouterConfig {
                num_experts_per_tok: c.num_experts_per_tok,
                n_group: c.n_group,
                topk_group: c.topk_group,
                norm_topk_prob: c.norm_topk_prob,
                routed_scaling_factor: c.routed_scaling_factor as f32,
            },
        };
        Ok(Self { config, weights, arithmetic })
    }

    /// One pass over `ids`, all at once: the logits `[n, vocab_size]`, f32 as little-endian bytes. The tokens from
    /// `decode_from` on take the form that the demo decodes with. `stages` keeps what each stage returns, and gives what
    /// it was given.
    ///
    /// # Errors
    /// [`Error::Reference`](crate::layer::Error::Reference) for an id outside the vocabulary.
    pub fn run(
        &self,
        ids: &[u32],
        decode_from: usize,
        mode: Mode,
        stages: Option<&mut Intermediates>,
    ) -> Result<Vec<u8>> {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect(); // [n]
        let mode = match mode {
            Mode::Dense => attention_layer::Mode::Dense,
            Mode::Sparse => attention_layer::Mode::Sparse,
        };
        let (split, mut failed) = (decode_from.min(ids.len()), None);
        let halves = [(0, split), (split, ids.len() - split)];
        let mut watch = match stages {
            None => Watch::none(),
            Some(stages) => Watch::new(|layer, name, value| {
                let shown = show(stages, layer, name, value, halves);
                shown.unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    None
                })
            }),
        };
        let (config, weights) = (&self.config, &self.weights);
        let pass = watched(&ids, decode_from, config, weights, &self.arithmetic, mode, &mut watch);
        drop(watch);
        match failed {
            Some(error) => Err(error),
            None => Ok(pass?.logits.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }
}

/// Hands a stage's result to `stages`, each half of the pass by itself, and returns what is given for the whole.
fn show(
    stages: &mut Intermediates,
    layer: usize,
    name: &'static str,
    value: Value,
    halves: [(usize, usize); 2],
) -> Result<Option<Value>> {
    let Some(dtype) = stages.dtype(layer, name) else { return Ok(None) };
    let (mut given, mut any) = (value.clone(), false);
    for (start, n) in halves.into_iter().filter(|(_, n)| *n > 0) {
        let columns = if name == "index.scores" { start + n } else { usize::MAX };
        let part = Part { start, n, columns };
        let bytes = match &value {
            Value::Floats(x) => dtype.encode(&part.of(x)),
            Value::Integers(x) => part.of(x).into_iter().flat_map(i32::to_le_bytes).collect(),
        };
        let Some(bytes) = stages.stage(layer, name, (start, n), &bytes)? else { continue };
        any = true;
        match &mut given {
            Value::Floats(x) => part.put(x, dtype.decode(&bytes)),
            Value::Integers(x) => {
                let four = bytes.as_chunks::<4>().0;
                part.put(x, four.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect());
            }
        }
    }
    Ok(any.then_some(given))
}

/// Some tokens of an array whose first axis they are; of a matrix only the first columns.
struct Part {
    start: usize,
    n: usize,
    columns: usize,
}

impl Part {
    fn of<T: Clone>(&self, x: &ArrayD<T>) -> Vec<T> {
        let rows = x.slice_axis(Axis(0), Slice::from(self.start..self.start + self.n)); // [n, …]
        let in_row = rows.len() / self.n;
        let kept = rows.iter().enumerate().filter(|(i, _)| i % in_row < self.columns);
        kept.map(|(_, x)| x.clone()).collect()
    }

    fn put<T>(&self, x: &mut ArrayD<T>, values: Vec<T>) {
        let mut rows = x.slice_axis_mut(Axis(0), Slice::from(self.start..self.start + self.n)); // [n, …]
        let in_row = rows.len() / self.n;
        let kept = rows.iter_mut().enumerate().filter(|(i, _)| i % in_row < self.columns);
        kept.zip(values).for_each(|((_, x), value)| *x = value);
    }
}

/// Reads the weights below a path.
struct Reader<W> {
    weights: W,
    precision: Precision,
}

impl<W: Weights> Reader<W> {
    fn at(&self, part: impl Display) -> Self {
        Self { weights: self.weights.at(part), precision: self.precision }
    }

    /// The vector `name` of `[n]`, in f32.
    fn vector(&self, name: &str, n: usize) -> Result<Array1<f32>> {
        Ok(Array1::from_vec(self.weights.values(name, &[n])?))
    }

    /// The matrix `part.weight` of `[out, in]`, in the activations' type.
    fn matrix(&self, part: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        let name = format!("{part}.weight");
        let values = array(&name, shape, self.weights.values(&name, &shape)?)?; // [out, in]
        let in_bf16 = self.precision.dtype == DType::Bf16;
        Ok(if in_bf16 { values.mapv_into(bf16_round) } else { values })
    }

    /// The same, in fp8 if it is to stay so.
    fn weight(&self, part: &str, shape: [usize; 2]) -> Result<Weight> {
        let name = format!("{part}.weight");
        if !self.precision.fp8 || self.weights.stored(&name, &shape)? != DType::E4m3 {
            return Ok(Weight::F32(self.matrix(part, shape)?));
        }
        // Codes and scales come as to any device.
        let (device, blocks) = (Device::named("cpu")?, shape.map(|n| n.div_ceil(QUANT_BLOCK)));
        let mut codes = Upload::new(&device, &shape, DType::E4m3)?;
        self.weights.elements(&name, &shape, 0..shape[0], &mut codes)?;
        let mut scales = Upload::new(&device, &blocks, DType::F32)?;
        self.weights.scales(&name, shape, &mut scales)?;
        let (codes, scales) = (codes.finish()?.download()?, scales.finish()?.download_f32()?);
        Ok(Weight::Fp8 { codes: array(&name, shape, codes)?, scale: array(&name, blocks, scales)? })
    }

    fn feed_forward(&self, hidden: usize, inner: usize) -> Result<FeedForwardWeights> {
        Ok(FeedForwardWeights {
            gate_proj: self.weight("gate_proj", [inner, hidden])?,
            up_proj: self.weight("up_proj", [inner, hidden])?,
            down_proj: self.weight("down_proj", [hidden, inner])?,
        })
    }

    fn indexer(&self, c: &Config) -> Result<IndexerWeights> {
        let (heads, dim, hidden) = (c.index_n_heads, c.index_head_dim, c.hidden_size);
        Ok(IndexerWeights {
            wq_b: self.weight("wq_b", [heads * dim, c.q_lora_rank])?,
            wk: self.weight("wk", [dim, hidden])?,
            k_norm_weight: self.vector("k_norm.weight", dim)?,
            k_norm_bias: self.vector("k_norm.bias", dim)?,
            weights_proj: self.matrix("weights_proj", [heads, hidden])?,
        })
    }

    fn attention(&self, c: &Config, full: bool) -> Result<AttentionWeights> {
        let (hidden, heads, query, rank) =
            (c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.kv_lora_rank);
        Ok(AttentionWeights {
            q_a_proj: self.weight("q_a_proj", [query, hidden])?,
            q_a_layernorm: self.vector("q_a_layernorm.weight", query)?,
            q_b_proj: self.weight("q_b_proj", [heads * c.qk_head_dim(), query])?,
            kv_a_proj_with_mqa: self.weight("kv_a_proj_with_mqa", [c.latent_dim(), hidden])?,
            kv_a_layernorm: self.vector("kv_a_layernorm.weight", rank)?,
            kv_b_proj: self
                .weight("kv_b_proj", [heads * (c.qk_nope_head_dim + c.v_head_dim), rank])?,
            o_proj: self.weight("o_proj", [hidden, heads * c.v_head_dim])?,
            indexer: full.then(|| self.at("indexer").indexer(c)).transpose()?,
        })
    }

    fn experts(&self, c: &Config) -> Result<ExpertsWeights> {
        let (experts, hidden, inner) = (c.n_routed_experts, c.hidden_size, c.moe_intermediate_size);
        let each = self.at("experts");
        Ok(ExpertsWeights {
            gate: self.matrix("gate", [experts, hidden])?,
            bias: self.vector("gate.e_score_correction_bias", experts)?,
            experts: (0..experts)
                .map(|expert| each.at(expert).feed_forward(hidden, inner))
                .collect::<Result<_>>()?,
            shared: self.at("shared_experts").feed_forward(hidden, inner * c.n_shared_experts)?,
        })
    }

    /// Layer `number`, which is here.
    fn layer(&self, c: &Config, number: usize) -> Result<LayerWeights> {
        let (hidden, mlp) = (c.hidden_size, self.at("mlp"));
        let full = c.indexer_of(number) == Indexer::Full;
        Ok(LayerWeights {
            input_layernorm: self.vector("input_layernorm.weight", hidden)?,
            self_attn: self.at("self_attn").attention(c, full)?,
            post_attention_layernorm: self.vector("post_attention_layernorm.weight", hidden)?,
            mlp: match c.is_moe_layer(number) {
                true => Mlp::Experts(mlp.experts(c)?),
                false => Mlp::Dense(mlp.feed_forward(hidden, c.intermediate_size)?),
            },
        })
    }
}

fn array<T>(name: &str, shape: [usize; 2], values: Vec<T>) -> Result<Array2<T>> {
    let found = vec![values.len()];
    let wrong = |_| dsa_model::Error::Shape { name: name.into(), found, expected: shape.into() };
    Ok(Array2::from_shape_vec(shape, values).map_err(wrong)?)
}
