//! The command line `dsa`, as a function, so that tests call it without another binary.
#![forbid(unsafe_code)]

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use dsa_gate::gate::DEFAULT_SEED;
use dsa_gate::kernels::{ALL, Kernel};
use dsa_gate::layer::{self, TOKENS};
use dsa_kernels::{Device, DeviceKind, KernelError};
use dsa_model::Config;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

mod check;
mod compiled;
mod convert;
mod eval;
mod failure;
mod generate;
mod load;
mod logits;
mod make_tiny;
mod pass;
mod plan;
mod run;
mod serve;

pub use failure::{Usage, report};

/// A workbench for DeepSeek Sparse Attention.
#[derive(Parser, Debug)]
#[command(name = "dsa", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What this machine can do: devices, matrix units, the lowering every kernel will take, LLVM.
    Doctor {
        /// The device used where no other is named: cpu, cuda, hip or with an index, cuda:1.
        #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
        device: Option<String>,
    },
    /// Runs a kernel's gate: what fell before, DeepSeek-V3.2's and GLM-5's dimensions and random ones, against
    /// the reference; then says what the kernel compiles to
    /// for an H200 and an MI350, neither of which need be here. The heart of the edit loop.
    Check(check::Check),
    /// Runs one kernel on tensors read from a safetensors file and writes its outputs.
    #[command(after_long_help = kernels_help())]
    Run(run::Run),
    /// Writes the script that completes this command line in a shell, to be read by it at its start.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the code that a kernel compiles to for a device that need not be here.
    ///
    /// The code is that of DeepSeek-V3.2's dimensions: each kernel that the launcher launches for them,
    /// one after the other, each under a comment that numbers and describes it.
    Emit(compiled::Emit),
    /// Answers a question, those of a file, or those of a conversation.
    Generate(generate::GenerateArgs),
    /// Runs a whole model on token ids read from a safetensors file and writes its logits.
    Logits(logits::Logits),
    /// Makes of a checkpoint in Hugging Face's layout one in that of DeepSeek's inference demo: a file for each rank.
    ///
    /// Reads and writes piece by piece. Run again, it goes on where it stopped.
    Convert(convert::Convert),
    /// Makes a checkpoint of made-up weights in Hugging Face's layout, small unless true dimensions are asked for.
    MakeTiny(make_tiny::MakeTinyArgs),
    /// What a model takes of a device's memory, and whether it fits, before anything is allocated; fails if it does not.
    Plan(plan::PlanArgs),
    /// What a model's answers lose by attending sparsely: planted sentences, perplexity, overlap of the chosen keys; as rows
    /// and pictures.
    Eval(eval::EvalArgs),
    /// Answers over HTTP, as OpenAI's interface does: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.
    ///
    /// One request runs at a time. SIGTERM or Ctrl-C finishes it and ends; a second one ends at once.
    Serve(serve::ServeArgs),
    /// Compares sparse with dense attention and with the reference; fails if they disagree.
    Verify {
        /// A checkpoint folder; random weights if none is given.
        #[arg(long)]
        checkpoint: Option<PathBuf>,
        /// A config.json; a small random layer if neither this nor a checkpoint is given.
        #[arg(long, conflicts_with = "checkpoint")]
        config: Option<PathBuf>,
        /// Tokens of the random prompt, 192 if not given. Not with a checkpoint whose
        /// `expected.safetensors` holds a text.
        #[arg(long)]
        tokens: Option<usize>,
        /// cpu, cuda, hip or with an index, cuda:1.
        #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
        device: Option<String>,
        /// Seed of random weights and inputs.
        #[arg(long, env = "DSA_SEED", default_value_t = DEFAULT_SEED)]
        seed: u64,
    },
}

/// What every kernel takes, for `dsa run --help`.
fn kernels_help() -> String {
    let mut text = String::from("Kernels, their tensors, scalars (metadata) and outputs:\n");
    for kernel in ALL {
        text.push_str(&describe(kernel));
    }
    text
}

fn describe(kernel: &Kernel) -> String {
    let mut text = format!("\n  {}  (kernels/src/{})\n", kernel.name, kernel.file);
    // A line that cannot be read is refused wherever a case is checked.
    for line in kernel.lines().unwrap_or_default() {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

/// Runs the command line `args` (with the program's name first), printing to `out`.
///
/// # Errors
/// [`Usage`] for a command line or an environment that cannot be obeyed, or why the command failed;
/// [`report`] says either.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    failure::check_environment(|name| std::env::var_os(name))?;
    let matches = match Cli::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return Err(Usage(error.render().to_string()).into()),
        Err(error) => {
            write!(out, "{}", error.render())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let cli = Cli::from_arg_matches(&matches)?;
    // What is written on the command line, not what an environment variable says for all commands.
    let written = |name: &str| {
        let of_command = |(_, command): (_, &ArgMatches)| command.value_source(name);
        matches.subcommand().and_then(of_command) == Some(ValueSource::CommandLine)
    };
    match cli.command {
        Command::Doctor { device } => doctor(out, device.as_deref()),
        Command::Check(check) => {
            if let Some(alone) = check.of_one_case()
                && let Some(name) = ["cases", "seed"].into_iter().find(|name| written(name))
            {
                return Err(Usage::error(format!("--{name} with {alone}: it draws no cases")));
            }
            check::check(out, &check)
        }
        Command::Completions { shell } => {
            // Into memory first: what fails to be written is an error, which the generator does not return.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dsa", &mut script);
            out.write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => {
            if run.reference && written("device") {
                return Err(Usage::error("--device with --reference: it runs on no device"));
            }
            run::run(out, &run)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Emit(emit) => {
            compiled::emit(out, &emit)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::MakeTiny(args) => {
            make_tiny::make_tiny(out, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Logits(logits) => {
            if logits.reference && written("device") {
                return Err(Usage::error("--device with --reference: it runs on no device"));
            }
            logits::logits(out, &logits)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Generate(args) => {
            generate::generate(out, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Convert(convert) => {
            convert::convert(out, &convert)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Plan(args) => plan::plan(out, &args),
        Command::Eval(args) => {
            eval::eval(out, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(args) => {
            serve::run(out, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { checkpoint, config, tokens, device, seed } => {
            // A link that leads nowhere is a text too: verify says what is wrong with it.
            let stored = checkpoint.as_ref().map(|folder| folder.join("expected.safetensors"));
            if let Some(stored) = stored.filter(|path| path.symlink_metadata().is_ok())
                && let Some(name) = ["tokens", "seed"].into_iter().find(|name| written(name))
            {
                let stored = stored.display();
                return Err(Usage::error(format!("--{name}: the text is that of {stored}")));
            }
            let device = open(device.as_deref())?;
            let report = match checkpoint {
                Some(folder) => layer::verify_checkpoint(&device, &folder, tokens, seed)?,
                None => {
                    let config = match config {
                        Some(path) => Config::read(&path)?,
                        None => Config::scaled(32)?,
                    };
                    layer::verify_random(&device, &config, tokens.unwrap_or(TOKENS), seed)?
                }
            };
            writeln!(out, "{report}")?;
            Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// A device's name that means something; whether it is here is found when it is opened.
fn device_name(name: &str) -> Result<String, KernelError> {
    Device::parse(name).map(|_| name.to_string())
}

/// The device named, or the best there is.
fn open(name: Option<&str>) -> anyhow::Result<Device> {
    Ok(match name {
        Some(name) => Device::named(name)?,
        None => Device::best()?,
    })
}

fn doctor(out: &mut dyn Write, chosen: Option<&str>) -> anyhow::Result<ExitCode> {
    writeln!(out, "dsa {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "LLVM linked: {}", dsa_kernels::llvm_version())?;
    for name in ["cuda", "hip", "cpu"] {
        match Device::named(name) {
            Ok(device) => describe_device(out, &device)?,
            Err(error) => writeln!(out, "\n{name}: not here ({error})")?,
        }
    }
    match open(chosen) {
        Ok(device) => {
            let by = if chosen.is_some() { " (as DSA_DEVICE or --device says)" } else { "" };
            writeln!(out, "\nused unless told otherwise: {}{by}", device.kind())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            writeln!(out, "\nno device can be used: {error}")?;
            Ok(ExitCode::from(2))
        }
    }
}

fn describe_device(out: &mut dyn Write, device: &Device) -> anyhow::Result<()> {
    let properties = device.client().properties();
    let hardware = &properties.hardware;
    writeln!(out, "\n{}: {}", device.kind(), device.name())?;
    writeln!(out, "  plane size {}", hardware.plane_size_max)?;
    let cores = if device.kind() == DeviceKind::Cpu { "cores" } else { "multiprocessors" };
    writeln!(out, "  {cores} {}", device.cores())?;
    writeln!(out, "  shared memory {} KiB a cube", hardware.max_shared_memory_size / 1024)?;
    let wgmma: Vec<_> = properties.features.matmul.wgmma.iter().collect();
    writeln!(out, "  warpgroup MMA: {}", if wgmma.is_empty() { "none" } else { "yes" })?;
    for form in &wgmma {
        writeln!(out, "    {:?} x {:?} -> {:?}", form.elems.a, form.elems.b, form.elems.cd)?;
    }
    let fp8 = wgmma.iter().any(|form| form.elems.a == dsa_kernels::DType::E4m3.elem());
    let fp8 = if fp8 { "multiplied by the matrix unit" } else { "widened as it is loaded" };
    writeln!(out, "  fp8 (e4m3): {fp8}")?;
    writeln!(out, "  lowerings:")?;
    for kernel in ALL {
        let machine = (kernel.machine)(device);
        writeln!(
            out,
            "    {:<22} {:?}, teams of {} units, {} a cube",
            kernel.name, machine.matrix, machine.team, machine.teams
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a line of a shell, in which double quotes hold words together.
    fn words(line: &str) -> Vec<String> {
        let parts = line.split('"').enumerate();
        let words = |(n, part): (usize, &str)| match n % 2 {
            0 => part.split_whitespace().map(str::to_string).collect(),
            _ => vec![part.to_string()],
        };
        parts.flat_map(words).collect()
    }

    #[test]
    fn every_command_line_that_the_readme_shows_is_one_that_is_taken() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
        let readme = dsa_files::read_text(path.as_ref(), 1 << 20).unwrap();
        let shown = readme.lines().filter_map(|line| line.trim_start().strip_prefix("dsa "));
        let shown: Vec<&str> = shown.map(|line| line.split(" #").next().unwrap_or(line)).collect();
        assert!(shown.len() > 9, "{shown:?}");
        for line in shown {
            let args = std::iter::once("dsa".to_string()).chain(words(line.trim_end_matches(" &")));
            if let Err(error) = Cli::try_parse_from(args) {
                panic!("{line}: {error}");
            }
        }
    }
}
