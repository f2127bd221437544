//! What a model takes of a device's memory, before anything is allocated.
//!
//! ```text
//! weights     every tensor as it is kept: fp8 codes with their scales, or numbers; norms in f32; of kv_b_proj the form
//!             that expands and the one that is absorbed
//! cache       tokens of all requests, in whole pages: a latent in every layer, an index key in every layer with an indexer,
//!             cos and sin of a position
//! workspace   the tensors of a chunk in the layer, or the head, that has the most of them
//! ```
//!
//! Weights and cache are what is allocated. The workspace is counted as if all tensors of a layer were alive together.

use crate::config::{Config, Indexer, QUANT_BLOCK};
use crate::layers::Precision;
use crate::model::PAGE_SIZE;
use crate::run::{CacheSize, KvFormat};
use crate::weights::manifest;
use dsa_kernels::DType;
use dsa_kernels::cache_write::KvRecord;
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// What a model is asked to hold and to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests side by side.
    pub requests: usize,
    /// Tokens of each.
    pub max_seq: usize,
    /// How their latents are kept.
    pub format: KvFormat,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// Most bytes of index logits at a time.
    pub logits_budget: usize,
    /// Whether dense attention is to run too, which expands the whole context of a chunk.
    pub dense: bool,
}

/// Bytes of a device's memory, by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By kind, as `experts`.
    pub weights: BTreeMap<&'static str, u64>,
    /// By layer.
    pub layers: Vec<u64>,
    /// What all layers keep of the requests' tokens.
    pub cache: u64,
    /// Tensors of a step.
    pub workspace: u64,
}

impl Plan {
    /// What the model of `config` takes with `load`; `stored_fp8` says of a matrix by its name whether it is stored in
    /// fp8.
    pub fn new(
        config: &Config,
        precision: Precision,
        stored_fp8: impl Fn(&str) -> bool,
        load: Load,
    ) -> Self {
        let mut plan = Self {
            weights: BTreeMap::new(),
            layers: vec![0; config.num_hidden_layers],
            cache: cache(config, precision.dtype, load),
            workspace: workspace(config, precision.dtype, load),
        };
        for (name, shape) in manifest(config) {
            let fp8 = precision.fp8 && stored_fp8(&name);
            let bytes = weight(config, &name, &shape, fp8, precision.dtype);
            *plan.weights.entry(kind(&name)).or_default() += bytes;
            if let Some(layer) = layer(&name).and_then(|layer| plan.layers.get_mut(layer)) {
                *layer += bytes;
            }
        }
        plan
    }

    /// Bytes of all weights.
    pub fn all_weights(&self) -> u64 {
        self.weights.values().sum()
    }

    /// Bytes of everything.
    pub fn total(&self) -> u64 {
        self.all_weights().saturating_add(self.cache).saturating_add(self.workspace)
    }

    /// The largest context, number of requests and number of layers, each with the others as `load` says, that `memory`
    /// bytes hold; 0 where there is none.
    pub fn largest(
        &self,
        config: &Config,
        dtype: DType,
        load: Load,
        memory: u64,
    ) -> (usize, usize, usize) {
        let weights = self.all_weights();
        let fits = |load: Load| {
            let taken = cache(config, dtype, load).saturating_add(workspace(config, dtype, load));
            weights.saturating_add(taken) <= memory
        };
        let context = largest(1 << 24, |max_seq| fits(Load { max_seq, ..load }));
        let requests = largest(1 << 24, |requests| fits(Load { requests, ..load }));
        let outside = weights - self.layers.iter().sum::<u64>();
        let layers = largest(config.num_hidden_layers, |n| {
            let fewer = Config { num_hidden_layers: n, ..config.clone() };
            let taken = outside + self.layers[..n].iter().sum::<u64>();
            let taken = taken.saturating_add(cache(&fewer, dtype, load));
            taken.saturating_add(workspace(&fewer, dtype, load)) <= memory
        });
        (context, requests, layers)
    }
}

/// Whether a checkpoint of `config` in the published form stores the matrix `name` in fp8.
pub fn published_fp8(config: &Config, name: &str) -> bool {
    let plain = ["embed_tokens", "lm_head", "mlp.gate.", "weights_proj"];
    config.quantization.is_some() && !plain.iter().any(|part| name.contains(part))
}

/// The largest number up to `most` for which `fits` holds, which holds for all below one for which it does.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut right, mut wrong) = (0, most + 1);
    while wrong - right > 1 {
        let middle = right + (wrong - right) / 2;
        if fits(middle) { right = middle } else { wrong = middle }
    }
    right
}

/// The layer that a tensor belongs to.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// What a tensor is for.
fn kind(name: &str) -> &'static str {
    let kinds = [
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
        (".indexer.", "indexers"),
        (".self_attn.", "attention"),
        (".mlp.experts.", "experts"),
        (".mlp.shared_experts.", "shared experts"),
        (".mlp.gate.", "gates"),
        (".mlp.", "dense feed-forward"),
    ];
    kinds.iter().find(|(part, _)| name.contains(part)).map_or("norms", |(_, kind)| kind)
}

/// Bytes of a tensor on the device.
fn weight(config: &Config, name: &str, shape: &[usize], fp8: bool, dtype: DType) -> u64 {
    let (numbers, size) = (elements(shape), dtype.size() as u64);
    match shape {
        // In both forms, whatever it is stored as.
        _ if name.ends_with("kv_b_proj.weight") => {
            let heads = config.num_attention_heads;
            size * (numbers + elements(&[heads, config.kv_lora_rank, config.qk_nope_head_dim]))
        }
        [out, into] if fp8 => {
            let blocks = [out, into].map(|n| n.div_ceil(QUANT_BLOCK));
            numbers + elements(&blocks) * DType::F32.size() as u64
        }
        [_, _] => size * numbers,
        _ => numbers * DType::F32.size() as u64,
    }
}

/// Bytes of the cache.
fn cache(config: &Config, dtype: DType, load: Load) -> u64 {
    let size = CacheSize {
        layers: config.num_hidden_layers,
        requests: load.requests,
        max_seq: load.max_seq.next_multiple_of(PAGE_SIZE),
        page_size: PAGE_SIZE,
    };
    let (rank, rope_dim) = (config.kv_lora_rank, config.qk_rope_head_dim);
    let latent = match load.format {
        KvFormat::Elements => config.latent_dim() * dtype.size(),
        KvFormat::Fp8 => KvRecord { kv_lora_rank: rank, rope_dim }.bytes(),
    };
    let dim = config.index_head_dim;
    let index_fp8 = config.attention_options.index_fp8;
    let key = if index_fp8 { dim + DType::F32.size() } else { dim * dtype.size() };
    let layers = 0..size.layers;
    let indexers = layers.filter(|layer| config.indexer_of(*layer) == Indexer::Full).count();
    let rows = elements(&[size.requests, size.max_seq]);
    // Scales of ones, of keys and queries that have none.
    let ones = if index_fp8 {
        0
    } else {
        rows.max(elements(&[size.requests.max(size.max_seq), config.index_n_heads]))
    };
    let rotary = elements(&[size.max_seq, rope_dim]);
    rows.saturating_mul((size.layers * latent + indexers * key) as u64)
        + 4 * (ones + rotary + rows / PAGE_SIZE as u64)
}

/// Bytes of a step's tensors.
fn workspace(config: &Config, dtype: DType, load: Load) -> u64 {
    let (c, size) = (config, dtype.size());
    let (heads, rank) = (c.num_attention_heads, c.kv_lora_rank);
    let n = load.chunk.min(load.max_seq).max(load.requests) as u64;
    let context = load.max_seq as u64;
    // Of each token: the residual stream, norms and sums.
    let stream = 6 * c.hidden_size * size;
    let expanded = heads * (c.qk_head_dim() + c.v_head_dim);
    let queries = heads * (c.qk_head_dim() + c.latent_dim() + rank + c.v_head_dim);
    let index = c.index_n_heads * (2 * c.index_head_dim * size + c.index_head_dim + 8);
    let attention =
        (c.q_lora_rank * 2 + 2 * c.latent_dim() + queries) * size + index + 12 * c.index_topk;
    let logits = (4 * n * context).min((load.logits_budget as u64).max(4 * context));
    let context_expanded =
        if load.dense { context * ((expanded + c.latent_dim()) * size) as u64 } else { 0 };
    let attention = n * attention as u64 + logits + context_expanded;
    // Gate, up and their product, and what comes down; codes and scales of what goes in.
    let network = |inner: usize| 3 * inner * size + inner * 2;
    let pairs = c.num_experts_per_tok;
    let experts = pairs * (network(c.moe_intermediate_size) + c.hidden_size * size + 16)
        + network(c.moe_intermediate_size * c.n_shared_experts)
        + 8 * c.n_routed_experts;
    let moe = if c.num_hidden_layers > c.first_k_dense_replace { experts } else { 0 };
    let network = moe.max(network(c.intermediate_size)) as u64 * n;
    let head = n * 4 * c.vocab_size as u64;
    n * stream as u64 + attention.max(network).max(head)
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|n| *n as u64).fold(1, u64::saturating_mul)
}
