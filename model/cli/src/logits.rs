//! `dsa logits`: the whole model on given token ids.

use super::make_tiny::StoredType;
use super::pass::{Runner, Setup, Text};
use super::run::expect_place;
use super::{Usage, device_name};
use anyhow::bail;
use clap::{Args, ValueEnum};
use dsa_files::same_file;
use dsa_kernels::DType;
use dsa_model::Error;
use dsa_model::config::{Config, Overrides};
use dsa_model::intermediates::{Intermediates, Stored};
use dsa_model::layers::Precision;
use dsa_model::plan::{Load, published_fp8};
use dsa_model::run::{Execution, KvFormat, Mode};
use dsa_model::weights::{Checkpoint, Dtype, Random};
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The tensor of token ids, in the input and in the output.
const IDS: &str = "input_ids";

/// What `dsa logits` takes.
#[derive(Args, Debug)]
pub(super) struct Logits {
    /// The checkpoint: a folder with config.json and safetensors files, in Hugging Face's layout.
    #[arg(long, value_name = "DIR", required_unless_present = "weights_seed")]
    ckpt: Option<PathBuf>,
    /// Weights made up on the device from this seed instead of a checkpoint: those of `dsa make-tiny`.
    #[arg(
        long = "random-weights",
        value_name = "SEED",
        conflicts_with = "ckpt",
        requires = "config"
    )]
    weights_seed: Option<u64>,
    /// With --random-weights: the model, a config.json or a folder with one.
    #[arg(long, value_name = "FILE", requires = "weights_seed")]
    config: Option<PathBuf>,
    /// With --random-weights: what the weights are stored in, as of `dsa make-tiny`. If it is not given, what the
    /// configuration says, fp8 or bf16.
    #[arg(long, value_enum, requires = "weights_seed")]
    random_dtype: Option<StoredType>,
    /// The token ids: `input_ids` [n], I32 or I64, of a safetensors file. Nothing else in it is read.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where input_ids [n] and logits [n, vocab_size] go, f32, and the stages if they are asked for: a safetensors file
    /// that is made or replaced whole.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The first token that is run by itself, as in decoding; those before it run in chunks. All run in chunks if it
    /// is not given.
    #[arg(long, value_name = "N")]
    decode_from: Option<usize>,
    /// Which keys a token attends to: those the indexer selects, all, or one after the other. With both, the dense ones
    /// go to dense.logits.
    #[arg(long, value_enum, default_value_t = Attention::Sparse)]
    attention: Attention,
    /// The type of weights and activations on the device. If it is not given, activations are bf16 and weights in fp8
    /// stay so.
    #[arg(long, value_enum)]
    dtype: Option<Type>,
    /// Writes what each stage of every layer made too: layer0.mla.x, layer0.index.scores, …, of the tokens from
    /// --decode-from on decode.layer0.mla.x, ….
    #[arg(long)]
    stages: bool,
    /// Feeds each stage with what this file holds of the stages before it, in place of what they made, so that errors
    /// do not add up. A file that --stages wrote, or another implementation.
    #[arg(long, value_name = "FILE", requires = "stages")]
    from: Option<PathBuf>,
    /// Runs the ndarray reference instead, with the same roundings and with sums in f64: all tokens at once, slowly.
    #[arg(long, conflicts_with_all = ["prefill_chunk", "kv_cache", "logits_budget", "deterministic", "fast"])]
    pub reference: bool,
    /// How latents are cached: rows of the activations' type, or fp8 records (fp8_ds_mla of vLLM and FlashMLA).
    #[arg(long, value_enum, default_value_t = KvCache::Rows)]
    kv_cache: KvCache,
    /// Tokens of a chunk.
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: u32,
    /// Most bytes of index logits that are held at a time; at least those of one token are. Changes no bit.
    #[arg(long, value_name = "BYTES", default_value_t = Execution::default().logits_budget)]
    logits_budget: usize,
    /// No bit of a token's logits depends on the chunk that it comes in. Otherwise chunks whose context is no longer
    /// than the keys that a query attends to run in the form of dense prefill, which is faster.
    #[arg(long)]
    deterministic: bool,
    /// Sums over keys are split as keeps the device busy, so that a token's last bits depend on how many run with it.
    #[arg(long, conflicts_with = "deterministic")]
    fast: bool,
    /// Keys that a query attends to, in place of the checkpoint's.
    #[arg(long, value_name = "N")]
    topk: Option<usize>,
    /// Which layers have an indexer, in place of the checkpoint's: a letter for each layer, F has one and S shares
    /// (FFSSF), or FREQUENCY:OFFSET.
    #[arg(long, value_name = "PATTERN")]
    share_index: Option<String>,
    /// Most tokens, in place of the checkpoint's.
    #[arg(long, value_name = "N")]
    max_seq: Option<usize>,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    device: Option<String>,
}

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Attention {
    Sparse,
    Dense,
    Both,
}

impl Logits {
    fn execution(&self) -> Execution {
        let expand_short_prefill = !self.deterministic;
        Execution { fast: self.fast, expand_short_prefill, logits_budget: self.logits_budget }
    }

    /// What its results are said to be made with.
    fn sums(&self) -> &'static str {
        match (self.fast, self.deterministic) {
            (true, _) => "fast",
            (_, true) => "deterministic",
            _ => "by keys",
        }
    }
}

impl Attention {
    /// The modes to run, and what stands before the names of their results.
    fn modes(self) -> &'static [(Mode, &'static str)] {
        match self {
            Self::Sparse => &[(Mode::Sparse, "")],
            Self::Dense => &[(Mode::Dense, "")],
            Self::Both => &[(Mode::Sparse, ""), (Mode::Dense, "dense.")],
        }
    }
}

/// How latents are cached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum KvCache {
    Rows,
    Fp8,
}

impl KvCache {
    pub(super) fn format(self) -> KvFormat {
        match self {
            Self::Rows => KvFormat::Elements,
            Self::Fp8 => KvFormat::Fp8,
        }
    }
}

/// A type that a model runs in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Type {
    F32,
    Bf16,
}

impl Type {
    pub(super) fn precision(self) -> Precision {
        Precision::dequantised(match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        })
    }
}

/// Runs the model, and writes what it puts out.
pub(super) fn logits(out: &mut dyn Write, args: &Logits) -> anyhow::Result<()> {
    for (name, path) in [("--inputs", Some(&args.inputs)), ("--from", args.from.as_ref())] {
        if path.is_some_and(|path| same_file(path, &args.out)) {
            bail!("--out {}: is the file of {name}, which would be lost", args.out.display());
        }
    }
    expect_place(&args.out)?;
    let overrides =
        Overrides { topk: args.topk, share_index: args.share_index.clone(), max_seq: args.max_seq };
    // The command line has one of the two.
    let of_model = args.ckpt.as_deref().or(args.config.as_deref()).unwrap_or(Path::new("."));
    let (config, warnings) = overrides.apply(Config::read(of_model)?)?;
    let ids = token_ids(&args.inputs, &config)?;
    let from = args.decode_from.unwrap_or(ids.len());
    if from > ids.len() {
        let n = ids.len();
        return Err(Usage::error(format!("--decode-from {from}: there are {n} tokens")));
    }
    let checkpoint = args.ckpt.as_deref().map(Checkpoint::open).transpose()?;
    let precision = args.dtype.map_or(Precision::STORED, Type::precision);
    let text = Text { ids: &ids, from, chunk: args.prefill_chunk as usize };
    let stages = |(mode, prefix): &(Mode, &'static str)| {
        let given = args.from.as_ref().map(|path| Checkpoint::open_files(vec![path.clone()]));
        let halves = (from, ids.len());
        Intermediates::new(&config, precision.dtype, *mode, prefix, halves, given.transpose()?)
    };
    let modes = args.attention.modes();
    let stages = args.stages.then(|| modes.iter().map(stages).collect()).transpose()?;
    let mut stages: Vec<Intermediates> = stages.unwrap_or_default();
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for note in checkpoint.iter().flat_map(Checkpoint::notes) {
        writeln!(out, "note: {note}")?;
    }
    let quantised = config.quantization.is_some();
    let usual = if quantised { StoredType::Fp8 } else { StoredType::Bf16 };
    let stored = args.random_dtype.unwrap_or(usual);
    let seed = args.weights_seed.unwrap_or_default();
    let setup = Setup {
        config: &config,
        precision,
        device: args.device.as_deref(),
        by_reference: args.reference,
        execution: args.execution(),
        load: Load {
            requests: 1,
            max_seq: ids.len(),
            format: args.kv_cache.format(),
            chunk: args.prefill_chunk as usize,
            logits_budget: args.logits_budget,
            dense: !matches!(args.attention, Attention::Sparse),
        },
    };
    let runner = match &checkpoint {
        Some(checkpoint) => {
            let fp8 =
                |name: &str| checkpoint.form(name).is_ok_and(|(dtype, _)| dtype == Dtype::F8_E4M3);
            Runner::new(&setup, checkpoint.root(), fp8)?
        }
        None => {
            let fp8 = |name: &str| stored == StoredType::Fp8 && published_fp8(&config, name);
            Runner::new(&setup, Random::stored_as(seed, stored.stored()), fp8)?
        }
    };
    let in_fp8 = if checkpoint.is_some() { quantised } else { stored == StoredType::Fp8 };
    let kept = in_fp8 && precision.fp8;
    let dtype = if kept { "fp8 and bf16" } else { precision.dtype.name() };
    let mut results = BTreeMap::new();
    for (mode, prefix) in modes {
        let stages = (!stages.is_empty()).then(|| stages.remove(0));
        let (bytes, stages) = runner.run(&text, *mode, stages)?;
        let shape = vec![ids.len(), config.vocab_size];
        results.insert(format!("{prefix}logits"), Stored { dtype: Dtype::F32, shape, bytes });
        results.extend(stages);
    }
    let mut settings: HashMap<String, String> = config.deciding().into_iter().collect();
    let mut say = |name: &str, value: String| settings.insert(name.to_string(), value);
    say("dtype", dtype.to_string());
    if checkpoint.is_none() {
        say("random weights", format!("seed {seed}, {:?}", stored.stored()));
    }
    say("attention", format!("{:?}", args.attention).to_lowercase());
    if !args.reference {
        say("kv cache", format!("{:?}", args.kv_cache).to_lowercase());
        say("sums", args.sums().to_string());
    }
    say("prefill chunk", runner.chunk(&text).to_string());
    say("decode from", from.to_string());
    say("device", runner.name().to_string());
    if let Some(path) = &args.from {
        say("stages fed from", path.display().to_string());
    }
    save(&args.out, &ids, &results, settings)?;
    for overridden in &config.overrides {
        writeln!(out, "{overridden}")?;
    }
    let (n, vocab, to) = (ids.len(), config.vocab_size, args.out.display());
    let names: Vec<_> = modes.iter().map(|(_, prefix)| format!("{prefix}logits")).collect();
    let stages = match results.len() - modes.len() {
        0 => String::new(),
        stages => format!(", {stages} stages"),
    };
    let what = names.join(", ");
    writeln!(out, "{what}: f32[{n}, {vocab}]{stages} in {dtype} {} -> {to}", runner.who())?;
    Ok(())
}

/// The token ids in the file, each in the vocabulary, and no more of them than the model has positions.
fn token_ids(path: &Path, config: &Config) -> anyhow::Result<Vec<u32>> {
    let file = Checkpoint::open_files(vec![path.to_path_buf()])?;
    let (dtype, shape) = file.form(IDS)?;
    let &[n] = shape else {
        let (found, expected) = (shape.to_vec(), vec![shape.iter().product()]);
        return Err(Error::Shape { name: IDS.into(), found, expected }.into());
    };
    let most = config.max_position_embeddings;
    let expected = format!("1 to the {most} positions of the model (--max-seq says otherwise)");
    Error::check((1..=most).contains(&n), IDS, format!("{n} ids"), expected)?;
    let bytes = file.tensor(IDS)?.bytes;
    let ids: Vec<i64> = match dtype {
        Dtype::I32 => {
            bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()
        }
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        found => {
            return Err(Error::Dtype { name: IDS.into(), found, expected: "I32 or I64" }.into());
        }
    };
    let vocab = config.vocab_size;
    let right = |id: &i64| u32::try_from(*id).ok().filter(|id| (*id as usize) < vocab);
    let id = |id: &i64| {
        right(id).ok_or_else(|| Error::Argument {
            name: "token id",
            value: id.to_string(),
            expected: format!("0 to {}, the vocabulary's", vocab - 1),
        })
    };
    Ok(ids.iter().map(id).collect::<Result<_, _>>()?)
}

/// Writes ids and results, and in the metadata how they were made.
fn save(
    path: &Path,
    ids: &[u32],
    results: &BTreeMap<String, Stored>,
    settings: HashMap<String, String>,
) -> anyhow::Result<()> {
    let n = ids.len();
    let ids: Vec<u8> = ids.iter().flat_map(|id| (*id as i32).to_le_bytes()).collect();
    let mut views = vec![(IDS, TensorView::new(Dtype::I32, vec![n], &ids)?)];
    for (name, Stored { dtype, shape, bytes }) in results {
        views.push((name, TensorView::new(*dtype, shape.clone(), bytes)?));
    }
    let bytes = safetensors::serialize(views, Some(settings))?;
    dsa_files::replace(path, |file| file.write_all(&bytes))?;
    Ok(())
}
