//! The command line of both benches: `cargo bench --bench kernels -- --contexts 4096,32768 --only indexer`.

use clap::Parser;
use dsa_kernels::{Device, DeviceKind};
use std::path::PathBuf;

/// Axes and behaviour; every axis can also be set in the environment.
#[derive(Parser, Clone, Debug)]
#[command(about = "Measures kernels: gate, then time, then rows and pictures")]
pub struct Args {
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE")]
    pub device: Option<String>,
    /// Every kernel computes its addresses in 64 bits, as those of tensors of 2^32 elements do: what that costs.
    #[arg(long)]
    pub wide: bool,
    /// Context lengths, e.g. 4096,32768.
    #[arg(long, env = "DSA_CONTEXTS", value_delimiter = ',')]
    pub contexts: Option<Vec<usize>>,
    /// Query tokens of a prefill call.
    #[arg(long, env = "DSA_S_Q")]
    pub s_q: Option<usize>,
    /// Requests of a decode call.
    #[arg(long, env = "DSA_BATCH")]
    pub batch: Option<usize>,
    /// Attention heads.
    #[arg(long, env = "DSA_HEADS")]
    pub heads: Option<usize>,
    /// Index heads.
    #[arg(long, env = "DSA_INDEX_HEADS")]
    pub index_heads: Option<usize>,
    /// Keys a query keeps.
    #[arg(long, env = "DSA_TOPK")]
    pub topk: Option<usize>,
    /// Type of activations: f32, bf16 or f16.
    #[arg(long, env = "DSA_DTYPE")]
    pub dtype: Option<String>,
    /// Only measurements whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Seconds that criterion measures each case for.
    #[arg(long, env = "DSA_SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Seconds that the whole of cost_vs_context may take; longer contexts are left out.
    #[arg(long, env = "DSA_BUDGET", default_value_t = 280.0)]
    pub budget: f64,
    /// Divisor of the measured layer's sizes: 1 is DeepSeek-V3.2-Exp itself.
    #[arg(long, env = "DSA_SCALE")]
    pub scale: Option<usize>,
    /// Random cases of each kernel's gate, beside the measured shape's own.
    #[arg(long, default_value_t = 4)]
    pub gate_cases: u32,
    /// Seed of all inputs.
    #[arg(long, env = "DSA_SEED", default_value_t = 33377335)]
    pub seed: u64,
    /// US$ an hour for the device.
    #[arg(long, env = "DSA_PRICE", default_value_t = 2.0)]
    pub price: f64,
    /// File of rows; figures/rows/BENCH-DEVICE.jsonl if not given. An interrupted run goes on where it
    /// stopped; after a finished one everything is measured again.
    #[arg(long)]
    pub rows: Option<PathBuf>,
    /// Folder for the pictures; figures/ if not given.
    #[arg(long)]
    pub figures: Option<PathBuf>,
    /// Measures everything again, even what an interrupted run has measured.
    #[arg(long)]
    pub fresh: bool,
    /// Rows to compare with (a path from the repository's root): each measurement is judged same, faster, slower or unclear.
    #[arg(long)]
    pub baseline: Option<PathBuf>,
    /// Exits with 3 if anything is slower than the baseline.
    #[arg(long, requires = "baseline")]
    pub fail_on_slower: bool,
    /// What cargo passes to every bench; ignored.
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Args {
    /// The device to measure.
    pub fn open(&self) -> anyhow::Result<Device> {
        let device = match &self.device {
            Some(name) => Device::named(name)?,
            None => Device::best()?,
        };
        Ok(if self.wide { device.wide() } else { device })
    }

    /// The file of rows of `bench` on `device`.
    pub fn rows_of(&self, bench: &str, device: &Device) -> PathBuf {
        let given = self.rows.clone();
        from_root(
            given.unwrap_or_else(|| format!("figures/rows/{bench}-{}.jsonl", device.kind()).into()),
        )
    }

    /// The folder for the pictures of `device`.
    pub fn figures_of(&self, device: &Device) -> PathBuf {
        from_root(
            self.figures.clone().unwrap_or_else(|| format!("figures/{}", device.kind()).into()),
        )
    }

    /// The rows to compare with.
    pub fn baseline(&self) -> Option<PathBuf> {
        self.baseline.clone().map(from_root)
    }
}

/// A path as seen from the repository: cargo starts a bench in its package's folder, not in the user's.
fn from_root(path: PathBuf) -> PathBuf {
    if path.is_absolute() { path } else { root().join(path) }
}

/// The repository: rows and pictures are kept in it.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let compiled_in = manifest.parent().map(PathBuf::from).unwrap_or_default();
    // A bench that was carried to another machine writes where it is run.
    if compiled_in.is_dir() { compiled_in } else { PathBuf::from(".") }
}

/// The sizes that are measured where the command line names none.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Context lengths.
    pub contexts: Vec<usize>,
    /// Query tokens of a prefill call.
    pub s_q: usize,
    /// Requests of a decode call.
    pub batch: usize,
    /// Attention heads.
    pub heads: usize,
    /// Index heads.
    pub index_heads: usize,
    /// Keys a query keeps.
    pub topk: usize,
    /// Type of activations.
    pub dtype: dsa_kernels::DType,
}

impl Axes {
    /// The true model's sizes on a GPU; on a CPU what takes seconds.
    pub fn new(args: &Args, device: &Device) -> anyhow::Result<Self> {
        use dsa_kernels::DType::{Bf16, F16, F32};
        let cpu = device.kind() == DeviceKind::Cpu;
        let pick = |gpu: usize, small: usize| if cpu { small } else { gpu };
        let dtype = match args.dtype.as_deref() {
            None => Bf16,
            Some("bf16") => Bf16,
            Some("f16") => F16,
            Some("f32") => F32,
            Some(other) => anyhow::bail!("dtype {other:?}, expected f32, bf16 or f16"),
        };
        let contexts = match &args.contexts {
            Some(contexts) => contexts.clone(),
            None if cpu => vec![1024, 4096],
            None => vec![8192, 32768, 131_072],
        };
        Ok(Self {
            contexts,
            s_q: args.s_q.unwrap_or(pick(2048, 8)),
            batch: args.batch.unwrap_or(pick(64, 2)),
            heads: args.heads.unwrap_or(pick(128, 16)),
            index_heads: args.index_heads.unwrap_or(pick(64, 16)),
            topk: args.topk.unwrap_or(pick(2048, 256)),
            dtype,
        })
    }
}
