//! `dsa make-tiny`: a checkpoint of made-up weights.

use super::{device_name, open};
use clap::{Args, ValueEnum};
use dsa_model::make_tiny::{Like, MakeTiny};
use dsa_model::weights::Stored;
use std::io::Write;
use std::path::PathBuf;

/// What `dsa make-tiny` takes.
#[derive(Args, Debug)]
pub(super) struct MakeTinyArgs {
    /// The folder to make; it may be there if it is empty.
    out: PathBuf,
    /// The model that it is like.
    #[arg(long, value_enum, default_value_t = Kind::V32)]
    like: Kind,
    /// Layers, of which the first one (with --true-dims three) have no experts. A few if it is not given, with
    /// --true-dims the model's.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// The model's own dimensions instead of small ones: a layer with experts is 11.5 GB in fp8.
    #[arg(long)]
    true_dims: bool,
    /// What the weights are stored in.
    #[arg(long, value_enum, default_value_t = StoredType::Fp8)]
    dtype: StoredType,
    /// Decides the numbers: `dsa logits --random-weights` with the same one makes the same.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which layers have an indexer: a letter for each layer, F has one and S shares (FFSSF), or FREQUENCY:OFFSET.
    #[arg(long, value_name = "PATTERN")]
    share_index: Option<String>,
    /// The device that makes the numbers, which are the same on all: cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    device: Option<String>,
}

/// A published model.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// DeepSeek-V3.2.
    V32,
    /// GLM-5.
    Glm5,
    /// GLM-5.2, whose layers share indexers.
    Glm52,
}

/// What weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StoredType {
    /// Matrices in e4m3 with scales, all else in bf16.
    Fp8,
    /// All in bf16.
    Bf16,
    /// All in f32.
    F32,
}

impl StoredType {
    pub(super) fn stored(self) -> Stored {
        match self {
            Self::Fp8 => Stored::Fp8,
            Self::Bf16 => Stored::Bf16,
            Self::F32 => Stored::F32,
        }
    }
}

/// Makes the checkpoint, and says what it is.
pub(super) fn make_tiny(out: &mut dyn Write, args: &MakeTinyArgs) -> anyhow::Result<()> {
    let like = match args.like {
        Kind::V32 => Like::DeepseekV32,
        Kind::Glm5 => Like::Glm5,
        Kind::Glm52 => Like::Glm52,
    };
    let make = MakeTiny {
        layers: args.layers,
        true_dims: args.true_dims,
        stored: args.dtype.stored(),
        seed: args.seed,
        share_index: args.share_index.clone(),
        ..MakeTiny::like(like)
    };
    let made = make.checked()?;
    made.write(&open(args.device.as_deref())?, &args.out)?;
    let (config, bytes, shards) = (made.config(), made.bytes(), made.shards());
    writeln!(
        out,
        "{}: {}, {} layers (indexers: {}), {:?} of seed {}: {bytes} bytes of weights in {shards} {}",
        args.out.display(),
        config.family.model_type(),
        config.num_hidden_layers,
        config.index_pattern(),
        make.stored,
        make.seed,
        if shards == 1 { "file" } else { "files" },
    )?;
    Ok(())
}
