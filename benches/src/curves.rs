//! What `cost_vs_context` measures: a layer, the points of its curves, and one call at each.

use crate::free_memory;
use crate::session::describe;
use dsa_figures::row::COST_BENCH;
use dsa_figures::{Stage, Variant, What};
use dsa_gate::bench::random;
use dsa_gate::layer::timed::Timed;
use dsa_kernels::{DType, Device, DeviceKind, Tensor};
use dsa_model::Config;
use dsa_model::layers::{Block, Precision};
use dsa_model::run::{Batch, Cache, CacheSize, Execution, KvFormat, Mode};
use dsa_model::weights::{Random, Stored};

mod work;

/// Tokens of a cache page, as FlashMLA and DeepGEMM have it.
const PAGE: usize = 64;

/// What the second half of the measured layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layer {
    /// Experts, as in 58 layers of DeepSeek-V3.2.
    Experts,
    /// One network for all tokens, as in the first three.
    Dense,
}

/// What the weights of the measured layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightType {
    /// e4m3 with a scale for 128 x 128, as published; what is multiplied with them is rounded to e4m3 too.
    Fp8,
    /// bf16.
    Bf16,
}

/// What is measured, known before anything is.
pub struct Plan {
    /// Where it is measured.
    pub device: Device,
    /// The layer's sizes.
    pub config: Config,
    /// DeepSeek-V3.2-Exp's sizes over those.
    pub scale: usize,
    /// Which layer it is.
    pub layer: Layer,
    /// Its weights.
    pub weights: WeightType,
    /// Tokens of a prefill's chunk.
    pub s_q: usize,
    /// Requests of a decoded step.
    pub batch: usize,
    /// Seed of weights and inputs.
    pub seed: u64,
}

/// What goes into a step: the last layer's output and the residual stream, `[tokens, hidden]` each, and a cache that
/// holds the context.
pub struct Inputs {
    x: Tensor,
    residual: Tensor,
    /// The cache.
    pub cache: Cache,
}

/// One point of a curve.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Prefill or decode.
    pub stage: Stage,
    /// Dense or sparse.
    pub variant: Variant,
    /// Tokens of the context, the new ones included.
    pub context: usize,
}

/// The four points of a context.
pub fn points(context: usize) -> impl Iterator<Item = Point> {
    let of = move |stage| Variant::MODELS.map(|variant| Point { stage, variant, context });
    Stage::ALL.into_iter().flat_map(of)
}

impl Plan {
    /// Whether a measurement is one of this plan, at whatever context.
    pub fn has(&self, what: &What) -> bool {
        let (stage, variant) = (what.stage, what.variant);
        let context = what.shape.get("context").and_then(|n| usize::try_from(*n).ok());
        context.is_some_and(|context| self.what(Point { stage, variant, context }) == *what)
    }

    /// Why a point cannot be measured, where that is plain before it is tried: its cache, a latent and an
    /// index key a token, is more than a GPU's memory, or than what is free of the processor's.
    pub fn too_large(&self, point: Point) -> Option<String> {
        let cpu = self.device.kind() == DeviceKind::Cpu;
        let room = if cpu { free_memory() } else { self.device.memory() }?;
        let requests = if point.stage == Stage::Decode { self.batch } else { 1 };
        let token = 2 * self.config.latent_dim() + self.config.index_head_dim + 4;
        let cache = requests as f64 * point.context as f64 * token as f64;
        let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
        let room = room as f64;
        (cache > room)
            .then(|| format!("its cache takes {} of the {} there are", gb(cache), gb(room)))
    }

    /// The layer that is measured, its weights made on the device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn layer(&self) -> anyhow::Result<Block> {
        let dense = usize::from(self.layer == Layer::Dense);
        let config = Config { first_k_dense_replace: dense, ..self.config.clone() };
        let stored = match self.weights {
            WeightType::Fp8 => Stored::Fp8,
            WeightType::Bf16 => Stored::Bf16,
        };
        let weights = Random::stored_as(self.seed, stored);
        let mut layer = Block::new(&self.device, &config, weights, Precision::STORED, 0)?;
        // The fastest that there is. As the official service does: below topk keys, sparse prefill is dense anyway.
        layer.execute(Execution { fast: true, expand_short_prefill: true, ..Execution::default() });
        Ok(layer)
    }

    /// What goes into a call at the end of a context that was made up.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn inputs(&self, point: Point) -> anyhow::Result<Inputs> {
        let tokens = self.tokens(point);
        let requests = if point.stage == Stage::Decode { tokens } else { 1 };
        // One token more, for the other form that a decoded token is judged in.
        let size = CacheSize { layers: 1, requests, max_seq: point.context + 1, page_size: PAGE };
        let format = KvFormat::Elements;
        let mut cache = Cache::new(&self.device, &self.config, size, DType::Bf16, format)?;
        cache.fill_random(point.context - self.chunk(point), self.seed)?;
        let shape = [tokens, self.config.hidden_size];
        let random = |seed| random(&self.device, DType::Bf16, &shape, seed);
        Ok(Inputs { x: random(self.seed)?, residual: random(self.seed + 1)?, cache })
    }

    /// New tokens of each request.
    pub fn chunk(&self, point: Point) -> usize {
        if point.stage == Stage::Decode { 1 } else { self.tokens(point) }
    }

    /// One call, its stages timed. The cache then holds the new tokens too.
    ///
    /// # Errors
    /// If a kernel refuses or fails.
    pub fn step(
        &self,
        point: Point,
        layer: &Block,
        Inputs { x, residual, cache }: &mut Inputs,
    ) -> anyhow::Result<Timed> {
        let mode = if point.variant == Variant::V32Exp { Mode::Sparse } else { Mode::Dense };
        let (tokens, start) = (self.tokens(point), point.context - self.chunk(point));
        let batch = match point.stage {
            Stage::Prefill => Batch::chunk(cache, 0, start, tokens, mode)?,
            Stage::Decode => Batch::decode(cache, &vec![start; tokens], mode)?,
        };
        let batch = batch.measured()?;
        let (output, (x, trace)) = layer.trace(x, Some(residual), &batch, cache.layer(0)?)?;
        cache.advance(&batch);
        Ok(Timed { output, x, trace, batch })
    }

    /// Tokens of one call.
    pub fn tokens(&self, point: Point) -> usize {
        match point.stage {
            Stage::Prefill => self.s_q.min(point.context),
            Stage::Decode => self.batch,
        }
    }

    /// What a measurement of this point is.
    pub fn what(&self, point: Point) -> What {
        let sizes = [
            ("context", point.context),
            ("tokens", self.tokens(point)),
            ("heads", self.config.num_attention_heads),
            ("index_heads", self.config.index_n_heads),
            ("topk", self.config.index_topk),
            ("scale", self.scale),
        ];
        What {
            bench: COST_BENCH.to_string(),
            stage: point.stage,
            variant: point.variant,
            case: match self.layer {
                Layer::Experts => "one layer with experts".to_string(),
                Layer::Dense => "one dense layer".to_string(),
            },
            shape: sizes.into_iter().map(|(name, n)| (name.to_string(), n as u64)).collect(),
            dtype: match self.weights {
                WeightType::Fp8 => "fp8".to_string(),
                WeightType::Bf16 => DType::Bf16.to_string(),
            },
            seed: self.seed,
            device: describe(&self.device),
            kernel_hash: dsa_kernels::source_hash(None),
        }
    }
}
