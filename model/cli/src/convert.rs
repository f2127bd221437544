//! `dsa convert`: from Hugging Face's layout to that of DeepSeek's inference demo.

use anyhow::Context;
use clap::Args;
use dsa_model::Error;
use dsa_model::config::Config;
use dsa_model::weights::{Checkpoint, Split};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::PathBuf;

/// What `dsa convert` takes: the flags of the demo's `convert.py`.
#[derive(Args, Debug)]
pub(super) struct Convert {
    /// The checkpoint: a folder with config.json and safetensors files, in Hugging Face's layout.
    #[arg(long, value_name = "DIR")]
    hf_ckpt_path: PathBuf,
    /// Where the files of the ranks go, with config.json and the tokenizer: a folder that is made, or empty, or in which
    /// the same conversion was begun.
    #[arg(long, value_name = "DIR")]
    save_path: PathBuf,
    /// Experts of a layer; must be the configuration's.
    #[arg(long, value_name = "N")]
    n_experts: Option<usize>,
    /// Ranks of model parallelism.
    #[arg(long, value_name = "N", default_value_t = 1)]
    model_parallel: usize,
    /// Keeps the head and the indexer's weights_proj in the checkpoint's type. If it is not given, they become f32, as
    /// which the demo loads them.
    #[arg(long)]
    keep_dtypes: bool,
}

/// Converts a checkpoint.
pub(super) fn convert(out: &mut dyn Write, args: &Convert) -> anyhow::Result<()> {
    let config = Config::read(&args.hf_ckpt_path)?;
    let experts = config.n_routed_experts;
    if let Some(n) = args.n_experts {
        let expected = format!("{experts}, the configuration's n_routed_experts");
        Error::check(n == experts, "n-experts", n, expected)?;
    }
    let checkpoint = Checkpoint::open(&args.hf_ckpt_path)?;
    let split = Split::plan(&checkpoint, &config, args.model_parallel, args.keep_dtypes)?;
    // On a terminal alone.
    let bar = ProgressBar::new(split.bytes());
    let style = "{bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).context("the progress bar")?);
    split.write(&args.hf_ckpt_path, &args.save_path, |done, _| bar.set_position(done))?;
    bar.finish_and_clear();
    let (ranks, bytes) = (args.model_parallel, HumanBytes(split.bytes()));
    let files = if ranks == 1 { "file of 1 rank" } else { "files of as many ranks" };
    writeln!(out, "{ranks} {files}, {bytes} -> {}", args.save_path.display())?;
    Ok(())
}
