//! `dsa plan`: what a model takes of a device's memory, before anything is allocated.

use super::logits::{KvCache, Type};
use super::{Usage, device_name, open};
use clap::Args;
use dsa_kernels::Device;
use dsa_model::config::{Config, Overrides};
use dsa_model::layers::Precision;
use dsa_model::plan::{Load, Plan, published_fp8};
use dsa_model::run::Execution;
use dsa_model::weights::{Checkpoint, Dtype};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `dsa plan` takes.
#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    /// The checkpoint, whose tensors' types are looked at.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    ckpt: Option<PathBuf>,
    /// A config.json, or the folder that holds it: weights are taken to be stored as published, in fp8 if it says so.
    #[arg(long, value_name = "FILE", conflicts_with = "ckpt")]
    config: Option<PathBuf>,
    /// Tokens of a request, in place of the positions that the model has.
    #[arg(long, value_name = "N")]
    max_seq: Option<usize>,
    /// Requests side by side.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// How latents are cached: rows of the activations' type, or fp8 records (fp8_ds_mla of vLLM and FlashMLA).
    #[arg(long, value_enum, default_value_t = KvCache::Rows)]
    kv_cache: KvCache,
    /// The type of weights and activations on the device. If it is not given, activations are bf16 and weights in fp8
    /// stay so.
    #[arg(long, value_enum)]
    dtype: Option<Type>,
    /// Tokens of a chunk.
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: u32,
    /// Most bytes of index logits that are held at a time.
    #[arg(long, value_name = "BYTES", default_value_t = Execution::default().logits_budget)]
    logits_budget: usize,
    /// Bytes of memory, in place of what the device has.
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    device: Option<String>,
}

/// Prints the plan. Fails if it does not fit.
pub(super) fn plan(out: &mut dyn Write, args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let Some(path) = args.ckpt.as_ref().or(args.config.as_ref()) else {
        return Err(Usage::error("--ckpt or --config: neither is given"));
    };
    let overrides = Overrides { max_seq: args.max_seq, ..Overrides::default() };
    let (config, warnings) = overrides.apply(Config::read(path)?)?;
    let checkpoint = args.ckpt.as_deref().map(Checkpoint::open).transpose()?;
    if let Some(checkpoint) = &checkpoint {
        checkpoint.expect(&config)?;
    }
    let (memory, of) = match args.memory {
        Some(bytes) => (bytes, "--memory".to_string()),
        None => {
            let device = open(args.device.as_deref())?;
            let of = format!("{} ({})", device.kind(), device.name());
            let none =
                || Usage::error(format!("{of} does not say what memory it has: --memory BYTES"));
            (memory(&device).ok_or_else(none)?, of)
        }
    };
    let precision = args.dtype.map_or(Precision::STORED, Type::precision);
    let load = Load {
        requests: args.requests as usize,
        max_seq: config.max_position_embeddings,
        format: args.kv_cache.format(),
        chunk: args.prefill_chunk as usize,
        logits_budget: args.logits_budget,
        dense: false,
    };
    let plan = of_stored(&config, precision, checkpoint.as_ref(), load);
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for (kind, bytes) in &plan.weights {
        writeln!(out, "{kind:<20} {}", size(*bytes))?;
    }
    let (requests, tokens) = (load.requests, load.max_seq);
    writeln!(out, "{:<20} {}", "weights", size(plan.all_weights()))?;
    writeln!(out, "{:<20} {}  ({requests} x {tokens} tokens)", "cache", size(plan.cache))?;
    let chunk = load.chunk;
    writeln!(out, "{:<20} {}  (chunks of {chunk} tokens)", "workspace", size(plan.workspace))?;
    writeln!(out, "{:<20} {} of {}, {of}", "all", size(plan.total()), size(memory))?;
    if plan.total() <= memory {
        writeln!(out, "fits")?;
        return Ok(ExitCode::SUCCESS);
    }
    let (context, requests, layers) = plan.largest(&config, precision.dtype, load, memory);
    writeln!(
        out,
        "does not fit; with the rest as it is, this would: {context} tokens a request, {requests} requests, {layers} \
         layers"
    )?;
    Ok(ExitCode::FAILURE)
}

/// Refuses a model that `device` has no memory for, before any of it is loaded; `stored_fp8` as in [`Plan::new`]. A device that does not say what memory it
/// has refuses later.
pub(super) fn expect_room(
    device: &Device,
    config: &Config,
    precision: Precision,
    stored_fp8: impl Fn(&str) -> bool,
    load: Load,
) -> anyhow::Result<()> {
    let plan = Plan::new(config, precision, stored_fp8, load);
    let (total, memory) = (plan.total(), memory(device));
    if let Some(memory) = memory.filter(|memory| total > *memory) {
        let (all, has) = (size(total), size(memory));
        anyhow::bail!(
            "the model takes {all}, {} has {has}; dsa plan says what of it",
            device.name()
        );
    }
    Ok(())
}

/// The plan of a model whose matrices are stored as in the checkpoint, or as published.
fn of_stored(
    config: &Config,
    precision: Precision,
    checkpoint: Option<&Checkpoint>,
    load: Load,
) -> Plan {
    let stored_fp8 = |name: &str| match checkpoint {
        Some(checkpoint) => checkpoint.form(name).is_ok_and(|(dtype, _)| dtype == Dtype::F8_E4M3),
        None => published_fp8(config, name),
    };
    Plan::new(config, precision, stored_fp8, load)
}

/// Bytes of memory that a device has for us, if it says.
fn memory(device: &Device) -> Option<u64> {
    device.memory().filter(|bytes| *bytes > 0)
}

/// Bytes as GB, or as the smaller unit in which there are some.
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000_000 => (1e3, "kB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{:>8.2} {name}", bytes as f64 / unit)
}
