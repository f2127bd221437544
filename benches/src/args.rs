//! The command lines of both benches: `cargo bench -- indexer --contexts 4096,32768`.
//!
//! A bench has the flags that it reads and no others; a value that cannot be meant is refused before
//! anything is opened or measured.

use crate::curves::{Layer, WeightType};
use clap::{ArgMatches, CommandFactory, Parser};
use dsa_figures::origin;
use dsa_figures::row::COST_BENCH;
use dsa_gate::bench::Axes;
use dsa_gate::contract::nearest;
use dsa_gate::kernels::ALL;
use dsa_kernels::{DType, Device, DeviceKind};
use std::path::PathBuf;

/// Variables that other programs of the workbench read.
const READ_ELSEWHERE: [&str; 6] = [
    "DSA_CASES",
    "DSA_COMMIT",
    "DSA_FAILURES",
    "DSA_FIGURES_KEEP",
    "DSA_LLVM_VERSION",
    "DSA_TOKENIZER",
];

/// What both benches take; an axis can also be set in the environment.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Only what has this in its name: a kernel's, or cost_vs_context.
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// The same as FILTER, as older rows name it.
    #[arg(long, hide = true, conflicts_with = "filter")]
    pub only: Option<String>,
    /// Lists what would be measured, and ends.
    #[arg(long)]
    pub list: bool,
    /// Runs each call once, for a profiler: nothing is judged, timed or kept.
    #[arg(long, conflicts_with_all = ["list", "baseline", "fail_on_slower"])]
    pub once: bool,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE")]
    pub device: Option<String>,
    /// Every kernel computes its addresses in 64 bits, as those of tensors of 2^32 elements do: what that costs.
    #[arg(long)]
    pub wide: bool,
    /// Context lengths, e.g. 4096,32768; measured from the shortest up, each once.
    #[arg(long, env = "DSA_CONTEXTS", value_delimiter = ',', value_parser = size)]
    pub contexts: Option<Vec<usize>>,
    /// Query tokens of a prefill call.
    #[arg(long, env = "DSA_S_Q", value_parser = size)]
    pub s_q: Option<usize>,
    /// Requests of a decode call.
    #[arg(long, env = "DSA_BATCH", value_parser = size)]
    pub batch: Option<usize>,
    /// Keys a query keeps, at most 2^20.
    #[arg(long, env = "DSA_TOPK", value_parser = top_k)]
    pub topk: Option<usize>,
    /// Seed of all inputs.
    #[arg(long, env = "DSA_SEED", default_value_t = 33377335)]
    pub seed: u64,
    /// US$ an hour for the device.
    #[arg(long, env = "DSA_PRICE", default_value_t = 2.0, value_parser = price)]
    pub price: f64,
    /// File of rows; figures/rows/BENCH-DEVICE.jsonl if not given. An interrupted run goes on where it
    /// stopped; after a finished one everything is measured again, and the old rows stay until the new
    /// ones are all there.
    #[arg(long)]
    pub rows: Option<PathBuf>,
    /// Folder for the pictures; figures/ if not given.
    #[arg(long)]
    pub figures: Option<PathBuf>,
    /// Measures everything again, even what an interrupted run has measured.
    #[arg(long)]
    pub fresh: bool,
    /// Rows to compare with (a path from the repository's root): each measurement of this run is judged same,
    /// faster, slower or unclear. A file without one of them is refused.
    #[arg(long)]
    pub baseline: Option<PathBuf>,
    /// Exits with 3 if anything is slower than the baseline.
    #[arg(long, requires = "baseline")]
    pub fail_on_slower: bool,
    /// What cargo passes to every bench; ignored.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// The command line of `kernels`.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "cargo bench --bench kernels --",
    about = "Measures kernels: gate, then time, then rows and pictures"
)]
pub struct KernelArgs {
    /// What both benches take.
    #[command(flatten)]
    pub common: Common,
    /// Attention heads.
    #[arg(long, env = "DSA_HEADS", value_parser = size)]
    pub heads: Option<usize>,
    /// Index heads.
    #[arg(long, env = "DSA_INDEX_HEADS", value_parser = size)]
    pub index_heads: Option<usize>,
    /// Type of activations: f32, bf16 or f16.
    #[arg(long, env = "DSA_DTYPE", default_value = "bf16", value_parser = dtype)]
    pub dtype: DType,
    /// Seconds that criterion measures each case for.
    #[arg(long, env = "DSA_SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub seconds: f64,
    /// Random cases of each kernel's gate, beside the measured shape's own.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub gate_cases: u32,
    /// Only measures the device's ceilings: prints the rate of every form of every probe, and ends.
    #[arg(long)]
    pub ceilings: bool,
}

/// The command line of `cost_vs_context`.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "cargo bench --bench cost_vs_context --",
    about = "Cost against context: one whole layer, dense and sparse; then rows and pictures",
    after_help = "A curve needs two contexts: with one, its rows are kept and printed, and pictures are \
                  drawn if the file has rows of another."
)]
pub struct CostArgs {
    /// What both benches take.
    #[command(flatten)]
    pub common: Common,
    /// Seconds that the whole may take; longer contexts are left out.
    #[arg(long, env = "DSA_BUDGET", default_value_t = 280.0, value_parser = seconds)]
    pub budget: f64,
    /// Divisor of the layer's sizes, a power of two from 1 to 64: 1 is DeepSeek-V3.2-Exp itself.
    #[arg(long, env = "DSA_SCALE", value_parser = size)]
    pub scale: Option<usize>,
    /// Which layer: with experts, or dense as the first three are.
    #[arg(long, env = "DSA_LAYER", value_enum, default_value_t = Layer::Experts)]
    pub layer: Layer,
    /// Type of the layer's weights.
    #[arg(long, env = "DSA_WEIGHTS", value_enum, default_value_t = WeightType::Fp8)]
    pub weights: WeightType,
}

/// A number of things: at least one, and what 31 bits can index.
fn size(text: &str) -> Result<usize, String> {
    let expected = "expected a whole number from 1 to 2^31 - 1";
    let size = text.trim().parse().map_err(|_| expected.to_string())?;
    if (1..1 << 31).contains(&size) { Ok(size) } else { Err(expected.to_string()) }
}

fn top_k(text: &str) -> Result<usize, String> {
    let fits = size(text).ok().filter(|topk| *topk <= 1 << 20);
    fits.ok_or_else(|| "expected a whole number from 1 to 2^20".to_string())
}

/// Long enough to be measured, and no longer than a week.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.trim().parse().ok().filter(|s| (1e-3..=604_800.0).contains(s));
    seconds.ok_or_else(|| "expected seconds from 0.001 to 604800".to_string())
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.trim().parse().map_err(|_| "expected US$ per hour".to_string())?;
    dsa_figures::plot::check_price(price).map_err(|error| error.to_string())?;
    Ok(price)
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32, bf16 or f16".to_string()),
    }
}

impl Common {
    /// What the name of a measurement must contain.
    pub fn filter(&self) -> &str {
        self.filter.as_deref().or(self.only.as_deref()).unwrap_or("")
    }

    /// Whether any of `mine`, what this bench can measure, is asked for. `cargo bench -- FILTER` asks both benches.
    ///
    /// # Errors
    /// If the filter is in the name of nothing that either bench measures.
    pub fn concerns(&self, mine: &[&str]) -> anyhow::Result<bool> {
        let filter = self.filter();
        if mine.iter().any(|name| name.contains(filter)) {
            return Ok(true);
        }
        let kernels = ALL.iter().map(|kernel| kernel.name);
        let all: Vec<_> = kernels.chain([COST_BENCH]).collect();
        if all.iter().any(|name| name.contains(filter)) {
            return Ok(false);
        }
        let meant =
            nearest(filter, &all).map_or(String::new(), |near| format!(", did you mean {near}?"));
        let filter = dsa_files::printable(filter, 60);
        anyhow::bail!("{filter} is in the name of nothing{meant}; there are {}", all.join(", "))
    }

    /// The device to measure.
    pub fn open(&self) -> anyhow::Result<Device> {
        let device = match &self.device {
            Some(name) => Device::named(name)?,
            None => Device::best()?,
        };
        Ok(if self.wide { device.wide() } else { device })
    }

    /// The context lengths in rising order, each once.
    pub fn ladder(&self, default: Vec<usize>) -> Vec<usize> {
        let mut contexts = self.contexts.clone().unwrap_or(default);
        contexts.sort_unstable();
        contexts.dedup();
        contexts
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

/// The variables that a bench reads.
fn variables<A: CommandFactory>() -> Vec<String> {
    let command = A::command();
    let names = command.get_arguments().filter_map(|argument| argument.get_env());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Sentences on the variables of the workbench that are set and that `A` does not read: a mistyped one would
/// otherwise measure something else in silence.
pub fn unread<A: CommandFactory>(set: impl Iterator<Item = String>) -> Vec<String> {
    let mine = variables::<A>();
    let other = [variables::<KernelArgs>(), variables::<CostArgs>()].concat();
    let not_mine = set.filter(|name| name.starts_with("DSA_") && !mine.contains(name));
    let sentence = |name: String| match () {
        () if READ_ELSEWHERE.contains(&name.as_str()) => None,
        () if other.contains(&name) => {
            Some(format!("{name} is set, and this bench does not read it"))
        }
        () => {
            let name = dsa_files::printable(&name, 60);
            Some(format!("{name} is set, and nothing reads it; there are {}", mine.join(", ")))
        }
    };
    not_mine.filter_map(sentence).collect()
}

/// The command that runs `bench` as it was started.
pub fn command<A: CommandFactory>(bench: &str) -> String {
    let set = variables::<A>().into_iter().filter_map(|name| {
        let value = std::env::var(&name).ok()?;
        Some((name, value))
    });
    let given: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| argument != "--bench")
        .collect();
    origin::command(&format!("cargo bench --bench {bench} --"), &given, &set.collect::<Vec<_>>())
}

/// The command line of a bench; ends the program where it is wrong.
pub fn parsed<A: Parser>() -> A {
    let matches: ArgMatches = A::command().get_matches();
    for sentence in unread::<A>(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into()))
    {
        dsa_figures::terminal::note(format!("warning: {sentence}"));
    }
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A path as seen from the repository: cargo starts a bench in its package's folder, not in the user's.
fn from_root(path: PathBuf) -> PathBuf {
    if path.is_absolute() { path } else { repository().unwrap_or_else(|| ".".into()).join(path) }
}

/// The repository that the bench was built from, if it is still there: rows and pictures are kept in it. A
/// bench that was carried to another machine has none, and writes where it is run.
pub fn repository() -> Option<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent()?.to_path_buf();
    manifest.join("Cargo.toml").is_file().then_some(root)
}

/// The sizes that are measured where the command line names none: the true model's on a GPU; on a CPU what takes
/// seconds.
pub fn axes(args: &KernelArgs, device: &Device) -> Axes {
    let cpu = device.kind() == DeviceKind::Cpu;
    let pick = |gpu: usize, small: usize| if cpu { small } else { gpu };
    let default = if cpu { vec![1024, 4096] } else { vec![8192, 32768, 131_072] };
    let common = &args.common;
    Axes {
        contexts: common.ladder(default),
        s_q: common.s_q.unwrap_or(pick(2048, 8)),
        batch: common.batch.unwrap_or(pick(64, 2)),
        heads: args.heads.unwrap_or(pick(128, 16)),
        index_heads: args.index_heads.unwrap_or(pick(64, 16)),
        topk: common.topk.unwrap_or(pick(2048, 256)),
        dtype: args.dtype,
    }
}

#[cfg(test)]
mod tests;
