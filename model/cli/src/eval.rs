//! `dsa eval`: what a model's answers lose by attending sparsely.

use super::Usage;
use super::load::{ChatArgs, ChatFormat, ModelArgs, Prepared, progress};
use clap::{Args, Subcommand};
use dsa_figures::eval::{EvalRow, Measured, Subject, keep, read};
use dsa_figures::{Origin, draw_eval, origin};
use dsa_files::read_text;
use dsa_model::Model;
use dsa_model::chat::{Chat, Conversation, Format};
use dsa_model::config::{Config, Overrides};
use dsa_model::eval::{Quality, overlap, quality};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

mod haystack;
mod needles;

/// A longer text is refused.
const MAX_TEXT: u64 = 1 << 28;

/// What `dsa eval` takes.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Plants a sentence in long texts, at several depths, and asks for it: whether the answer has it, and whether its tokens
    /// are among the selected keys.
    Needles(needles::NeedleArgs),
    /// How well a text is predicted by dense attention and by sparse attention with other numbers of keys and other patterns
    /// of sharing: perplexity, and the divergence from dense attention.
    Perplexity(QualityArgs),
    /// How many of the chosen keys the layers share, and how many a layer chooses again one token later.
    Overlap(OverlapArgs),
}

/// Where results go.
#[derive(Args, Debug)]
struct Out {
    /// The folder for the rows (NAME.jsonl, in which other rows stay) and the picture of this run (NAME.svg, NAME.png, NAME.csv);
    /// made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Args, Debug)]
struct QualityArgs {
    /// The text.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Numbers of selected keys, separated by commas; the checkpoint's if none is given.
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    topks: Vec<usize>,
    /// Which layers have an indexer, separated by commas: a letter for each layer, F has one and S shares (FFSSF), or
    /// FREQUENCY:OFFSET. The checkpoint's if none is given.
    #[arg(long, value_name = "PATTERN,PATTERN", value_delimiter = ',')]
    patterns: Vec<String>,
    /// Tokens that see each other; the text is cut into such windows.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens of the text at most.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Args, Debug)]
struct OverlapArgs {
    /// The text.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of the text at most.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Tokens whose choices are looked at, evenly over those that see more keys than they choose.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    looks: u32,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    model: ModelArgs,
}

/// Evaluates, and writes rows and a picture.
pub(super) fn eval(out: &mut dyn Write, args: &EvalArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Needles(args) => needles::needles(out, args),
        What::Perplexity(args) => perplexity(out, args),
        What::Overlap(args) => overlaps(out, args),
    }
}

/// A model that is about to be evaluated, and what its rows say of it.
struct Evaluated {
    prepared: Prepared,
    model: Model,
    subject: Subject,
}

impl Evaluated {
    /// Loads the model with room for `requests` caches of `max_seq` tokens; `text` is what its rows say of the text.
    fn load(
        prepared: Prepared,
        args: &ModelArgs,
        (requests, max_seq): (usize, usize),
        dense: bool,
        text: String,
    ) -> anyhow::Result<Self> {
        let limit = prepared.config.max_position_embeddings;
        if max_seq > limit {
            let says = format!(
                "{max_seq} tokens: the model has {limit} positions (--max-seq says otherwise)"
            );
            return Err(Usage::error(says));
        }
        prepared.say_warnings();
        let model = prepared.load(args, (requests, max_seq), dense)?;
        let subject = Subject {
            checkpoint: args.ckpt.display().to_string(),
            config: prepared.config.deciding().into_iter().collect(),
            device: model.device().name().to_string(),
            dtype: prepared.dtype().to_string(),
            text,
        };
        Ok(Self { prepared, model, subject })
    }

    fn row(&self, measured: Measured) -> EvalRow {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let origin = Origin::now(Some(&root), None, origin::command("dsa", &arguments, &[]));
        EvalRow::new(measured, self.subject.clone(), origin)
    }

    /// Adds a row to the file `name`: what was computed is there whatever comes.
    fn keep(&self, to: &Out, name: &str, measured: Vec<Measured>) -> anyhow::Result<Vec<EvalRow>> {
        let rows: Vec<EvalRow> = measured.into_iter().map(|measured| self.row(measured)).collect();
        keep(&place(to, name), &rows)?;
        Ok(rows)
    }
}

/// Draws the rows of this run, and says where all is.
fn finish(out: &mut dyn Write, name: &str, to: &Out, rows: &[EvalRow]) -> anyhow::Result<()> {
    let drawn = draw_eval(rows, &to.out)?;
    for file in std::iter::once(place(to, name)).chain(drawn) {
        writeln!(out, "{}", file.display())?;
    }
    Ok(())
}

fn place(to: &Out, name: &str) -> PathBuf {
    to.out.join(format!("{name}.jsonl"))
}

/// Makes the folder of results, and reads what rows there are, before anything is computed.
fn ready(to: &Out, name: &str) -> anyhow::Result<()> {
    dsa_figures::plot::ready(&to.out)?;
    let path = place(to, name);
    if path.exists() {
        read(&path)?;
    }
    Ok(())
}

/// A text's ids, at most `most`, and its hash.
fn text_ids(prepared: &Prepared, path: &Path, most: usize) -> anyhow::Result<(Vec<u32>, String)> {
    let text = read_text(path, MAX_TEXT)?;
    let settings = prepared.tokenizer.settings();
    let raw = Chat::choose(Format::Raw, settings, prepared.config.family)?;
    let prompt = raw.prompt(&Conversation::asking(&text), &prepared.tokenizer, false)?;
    let mut ids = prepared.tokenizer.encode(&prompt)?;
    ids.truncate(most);
    let hash: String =
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((ids, format!("sha256 {hash}")))
}

/// A conversation is not needed: the text alone.
const RAW: ChatArgs = ChatArgs { chat: ChatFormat::Raw, allow_special: false };

fn perplexity(out: &mut dyn Write, args: &QualityArgs) -> anyhow::Result<()> {
    let prepared = Prepared::new(&args.model, &RAW)?;
    let (ids, text) = text_ids(&prepared, &args.text, args.tokens as usize)?;
    let config = &prepared.config;
    let some =
        |list: &[usize]| if list.is_empty() { vec![config.index_topk] } else { list.to_vec() };
    let mut patterns: Vec<Option<String>> = args.patterns.iter().cloned().map(Some).collect();
    if patterns.is_empty() {
        patterns.push(None);
    }
    let mut variants: Vec<Config> = Vec::new();
    for share_index in &patterns {
        for topk in some(&args.topks) {
            let overrides =
                Overrides { topk: Some(topk), share_index: share_index.clone(), max_seq: None };
            variants.push(overrides.apply(config.clone())?.0);
        }
    }
    ready(&args.out, "perplexity")?;
    let window = (args.window as usize).min(ids.len());
    let caches = 1 + variants.len();
    let evaluated = Evaluated::load(prepared, &args.model, (caches, window), true, text)?;
    let bar = progress(ids.len() as u64, "tokens");
    let sizes = (window, args.model.prefill_chunk as usize);
    let format = args.model.kv_cache.format();
    let sums = quality(&evaluated.model, &ids, sizes, format, &variants, |ran| {
        bar.set_position(ran as u64);
    })?;
    bar.finish_and_clear();
    let measured = |(n, sum): (usize, &Quality)| {
        let of = n.checked_sub(1).and_then(|n| variants.get(n));
        let count = sum.tokens.max(1) as f64;
        Measured::Quality {
            attention: if of.is_some() { "sparse" } else { "dense" }.into(),
            topk: of.map_or(0, |config| config.index_topk),
            pattern: of.map_or(String::new(), Config::index_pattern),
            tokens: sum.tokens,
            perplexity: sum.perplexity(),
            kl: sum.kl / count,
            same_top: sum.same_top as f64 / count,
        }
    };
    let measured: Vec<Measured> = sums.iter().enumerate().map(measured).collect();
    writeln!(
        out,
        "{:>6}  {:<16}  {:>12}  {:>10}  same token",
        "keys", "indexers", "perplexity", "KL"
    )?;
    for row in &measured {
        if let Measured::Quality { topk, pattern, perplexity, kl, same_top, .. } = row {
            let (keys, pattern) = match topk {
                0 => ("dense".to_string(), "-"),
                n => (n.to_string(), &pattern[..]),
            };
            let same = 100.0 * same_top;
            writeln!(
                out,
                "{keys:>6}  {pattern:<16}  {perplexity:>12.4}  {kl:>10.3e}  {same:.1} %"
            )?;
        }
    }
    let rows = evaluated.keep(&args.out, "perplexity", measured)?;
    finish(out, "perplexity", &args.out, &rows)
}

fn overlaps(out: &mut dyn Write, args: &OverlapArgs) -> anyhow::Result<()> {
    let prepared = Prepared::new(&args.model, &RAW)?;
    let (ids, text) = text_ids(&prepared, &args.text, args.tokens as usize)?;
    ready(&args.out, "overlap")?;
    let evaluated = Evaluated::load(prepared, &args.model, (1, ids.len()), false, text)?;
    let chunk = args.model.prefill_chunk as usize;
    let format = args.model.kv_cache.format();
    let means = overlap(&evaluated.model, &ids, chunk, format, args.looks as usize)?;
    let mut measured = Vec::new();
    let mut note = |layer, other, later, share| {
        let (tokens, chance) = (means.tokens, means.chance);
        measured.push(Measured::Overlap { layer, other, later, tokens, share, chance });
    };
    for (layer, shares) in means.layers.iter().enumerate() {
        shares
            .iter()
            .enumerate()
            .skip(layer)
            .for_each(|(other, share)| note(layer, other, 0, *share));
        note(layer, layer, 1, means.next[layer]);
    }
    writeln!(out, "of {} tokens; random choices would share {:.3}", means.tokens, means.chance)?;
    for (layer, shares) in means.layers.iter().enumerate() {
        let next_layer =
            shares.get(layer + 1).map_or("-".to_string(), |share| format!("{share:.3}"));
        let next = means.next[layer];
        writeln!(
            out,
            "layer {layer:>2}: with the next layer {next_layer}, with itself one token later {next:.3}"
        )?;
    }
    let rows = evaluated.keep(&args.out, "overlap", measured)?;
    finish(out, "overlap", &args.out, &rows)
}
