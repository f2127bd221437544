//! What runs a checkpoint from text to text: the flags that name it, and loading it.

use super::logits::{KvCache, Type};
use super::plan::expect_room;
use super::{Usage, device_name, open};
use clap::{Args, ValueEnum};
use dsa_kernels::upload::Upload;
use dsa_kernels::{DType, Device};
use dsa_model::chat::{Chat, Format};
use dsa_model::config::{Config, Overrides};
use dsa_model::generate::{Attention, Settings};
use dsa_model::layers::Precision;
use dsa_model::plan::Load;
use dsa_model::run::Execution;
use dsa_model::sample::{Defaults, Sampling};
use dsa_model::tokenizer::Tokenizer;
use dsa_model::weights::{Checkpoint, Dtype, Weights, manifest};
use dsa_model::{Model, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

/// The model and how it runs.
#[derive(Args, Debug)]
pub(super) struct ModelArgs {
    /// The checkpoint: a folder with config.json, tokenizer.json and safetensors files, in Hugging Face's layout or that of
    /// DeepSeek's inference demo.
    #[arg(long, value_name = "DIR", visible_aliases = ["model", "ckpt-path"])]
    pub ckpt: PathBuf,
    /// The type of weights and activations on the device. If it is not given, activations are bf16 and weights in fp8
    /// stay so.
    #[arg(long, value_enum)]
    pub dtype: Option<Type>,
    /// How latents are cached: rows of the activations' type, or fp8 records (fp8_ds_mla of vLLM and FlashMLA).
    #[arg(long, value_enum, default_value_t = KvCache::Rows, visible_alias = "kv-cache-dtype")]
    pub kv_cache: KvCache,
    /// Most tokens of a prompt that are read at a time.
    #[arg(long, value_name = "N", default_value_t = 512, visible_alias = "chunked-prefill-size",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_chunk: u32,
    /// Tokens of a page of the cache.
    #[arg(long, value_name = "N", default_value_t = dsa_model::PAGE_SIZE as u32,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub page_size: u32,
    /// Most bytes of index logits that are held at a time; at least those of one token are. Changes no bit.
    #[arg(long, value_name = "BYTES", default_value_t = Execution::default().logits_budget)]
    pub logits_budget: usize,
    /// Sums over keys are split as keeps the device busy, so that an answer's last bits depend on what runs beside it.
    #[arg(long)]
    pub fast: bool,
    /// Keys that a query attends to, in place of the checkpoint's.
    #[arg(long, value_name = "N")]
    pub topk: Option<usize>,
    /// Which layers have an indexer, in place of the checkpoint's: a letter for each layer, F has one and S shares
    /// (FFSSF), or FREQUENCY:OFFSET.
    #[arg(long, value_name = "PATTERN")]
    pub share_index: Option<String>,
    /// Most tokens of a conversation, prompt and answer.
    #[arg(long, value_name = "N", visible_aliases = ["max-model-len", "context-length"])]
    pub max_seq: Option<usize>,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    pub device: Option<String>,
}

/// Tokens of a conversation where nobody says.
const DEFAULT_MAX_SEQ: usize = 8192;

impl ModelArgs {
    /// Most tokens of a conversation with a model of so many positions.
    pub fn room(&self, positions: usize) -> usize {
        self.max_seq.unwrap_or(positions.min(DEFAULT_MAX_SEQ))
    }

    /// How requests are run.
    pub fn settings(&self, attention: Attention, (requests, max_seq): (usize, usize)) -> Settings {
        Settings {
            attention,
            requests,
            max_seq,
            format: self.kv_cache.format(),
            chunk: self.prefill_chunk as usize,
            page_size: self.page_size as usize,
        }
    }
}

/// How a conversation becomes a prompt.
#[derive(Args, Debug)]
pub(super) struct ChatArgs {
    /// How a conversation becomes a prompt.
    #[arg(long, value_enum, default_value_t = ChatFormat::Auto)]
    pub chat: ChatFormat,
    /// What a text spells as a control token (<｜User｜>) is one. Without, it is text.
    #[arg(long)]
    pub allow_special: bool,
}

/// How a conversation becomes a prompt.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ChatFormat {
    /// The checkpoint's template if it has one, else DeepSeek-V3.2's format for a model of that family.
    Auto,
    /// The checkpoint's template.
    Jinja,
    /// DeepSeek-V3.2's format.
    Dsv32,
    /// The text alone.
    Raw,
}

impl ChatFormat {
    fn format(self) -> Format {
        match self {
            Self::Auto => Format::Auto,
            Self::Jinja => Format::Jinja,
            Self::Dsv32 => Format::Dsv32,
            Self::Raw => Format::Raw,
        }
    }
}

/// How tokens are drawn. What is not given is as the checkpoint's generation_config.json says.
#[derive(Args, Debug)]
pub(super) struct SamplingArgs {
    /// What logits are divided by; 0 takes the most probable token, always. 0.6 if neither says.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// The most probable tokens that are drawn from; 0: all.
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Tokens are drawn from the most probable ones that have this share of the probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Tokens are drawn from those that are at least this share as probable as the most probable one.
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Seed of the draws: the same one draws the same answer again.
    #[arg(long, default_value_t = dsa_model::sample::DEFAULT_SEED)]
    pub seed: u64,
}

impl SamplingArgs {
    /// The checkpoint's settings with these in their place, checked.
    pub fn over(&self, defaults: Sampling) -> anyhow::Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed,
        };
        sampling.check().map_err(|error| Usage::error(format!("--{error}").replace('_', "-")))?;
        Ok(sampling)
    }
}

/// Everything beside the weights, read and checked.
pub(super) struct Prepared {
    pub config: Config,
    pub tokenizer: Tokenizer,
    pub chat: Chat,
    pub defaults: Defaults,
    /// The tokens that end an answer.
    pub ends: Vec<u32>,
    /// What is odd, a sentence each.
    pub warnings: Vec<String>,
    checkpoint: Checkpoint,
    precision: Precision,
}

impl Prepared {
    /// Reads all but the weights: what is wrong with them is found before the long part.
    pub fn new(model: &ModelArgs, chat: &ChatArgs) -> anyhow::Result<Self> {
        let overrides = Overrides {
            topk: model.topk,
            share_index: model.share_index.clone(),
            max_seq: model.max_seq,
        };
        let (config, mut warnings) = overrides.apply(Config::read(&model.ckpt)?)?;
        let tokenizer = Tokenizer::read(&model.ckpt)?;
        warnings.extend(tokenizer.check(&config)?);
        let defaults = Defaults::read(&model.ckpt)?;
        warnings.extend(defaults.warnings.iter().cloned());
        let chat = Chat::choose(chat.chat.format(), tokenizer.settings(), config.family)?;
        let checkpoint = Checkpoint::open(&model.ckpt)?;
        warnings.extend(checkpoint.notes().iter().cloned());
        let mut ends = config.eos_token_id.clone();
        ends.extend(defaults.eos_token_id.iter().filter(|id| !config.eos_token_id.contains(id)));
        if ends.is_empty() {
            warnings.push("no token ends an answer: config.json has no eos_token_id".into());
        }
        let precision = model.dtype.map_or(Precision::STORED, Type::precision);
        Ok(Self { config, tokenizer, chat, defaults, ends, warnings, checkpoint, precision })
    }

    /// The type of the activations.
    pub fn dtype(&self) -> DType {
        self.precision.dtype
    }

    /// Loads the model onto the device, if that has room for it and for `requests` requests of `max_seq` tokens, `dense`
    /// ones too.
    pub fn load(
        &self,
        args: &ModelArgs,
        (requests, max_seq): (usize, usize),
        dense: bool,
    ) -> anyhow::Result<Model> {
        let device: Device = open(args.device.as_deref())?;
        let checkpoint = &self.checkpoint;
        let fp8 =
            |name: &str| checkpoint.form(name).is_ok_and(|(dtype, _)| dtype == Dtype::F8_E4M3);
        let load = Load {
            requests,
            max_seq,
            format: args.kv_cache.format(),
            chunk: args.prefill_chunk as usize,
            logits_budget: args.logits_budget,
            dense,
        };
        expect_room(&device, &self.config, self.precision, fp8, load).map_err(|error| {
            Usage::error(format!("{error}; {requests} requests of {max_seq} tokens"))
        })?;
        let execution = Execution {
            fast: args.fast,
            logits_budget: args.logits_budget,
            ..Execution::default()
        };
        let bar = progress(manifest(&self.config).len() as u64, "loading");
        let weights = Counted { weights: checkpoint.root(), bar: bar.clone() };
        let model = Model::new(&device, &self.config, weights, self.precision)?.executed(execution);
        bar.finish_and_clear();
        Ok(model)
    }
}

/// A bar on standard error, if that is a terminal.
pub(super) fn progress(of: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(of), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} ({eta})");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

/// Weights of which a bar shows how many tensors were asked for.
#[derive(Clone)]
struct Counted<W> {
    weights: W,
    bar: ProgressBar,
}

impl<W: Weights> Weights for Counted<W> {
    fn at(&self, part: impl Display) -> Self {
        Self { weights: self.weights.at(part), bar: self.bar.clone() }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.values(name, shape)
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType> {
        self.bar.inc(1);
        self.weights.stored(name, shape)
    }

    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()> {
        self.weights.elements(name, shape, rows, to)
    }

    fn scales(&self, name: &str, shape: [usize; 2], to: &mut Upload) -> Result<()> {
        self.weights.scales(name, shape, to)
    }

    fn expect(&self, config: &Config) -> Result<()> {
        self.weights.expect(config)
    }

    fn refuse_others(&self, read: &[&str]) -> Result<()> {
        self.weights.refuse_others(read)
    }
}

/// Says a line on standard error. Where that is closed there is nobody to say it to.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
