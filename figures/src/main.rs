//! Redraws the pictures from rows, and compares two files of rows.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsa_figures::compare::{self, THRESHOLD, Verdict};
use dsa_figures::findings::official_findings;
use dsa_figures::plot::CostFigure;
use dsa_figures::{Options, Stage, draw, latest, read};

/// Exit status of `compare --fail-on-slower` when a measurement got slower.
const SLOWER: u8 = 3;

#[derive(Parser)]
#[command(name = "dsa-figures", version, about = "Result rows in, pictures out")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw every picture the rows allow; print knees and crossovers.
    Draw {
        /// File of rows, one JSON object a line.
        rows: PathBuf,
        /// Folder for the pictures; made if it does not exist.
        #[arg(long)]
        out: PathBuf,
        /// Price of an hour of the measured device, US$.
        #[arg(long, default_value_t = 2.0)]
        price: f64,
        /// Draw rows of several devices or kernel versions, and say so in the picture.
        #[arg(long)]
        allow_mixed: bool,
        /// Only rows of this case.
        #[arg(long)]
        case: Option<String>,
    },
    /// Compare two files of rows; exit with 3 if --fail-on-slower is given and one is slower.
    Compare {
        /// Rows of the baseline.
        base: PathBuf,
        /// Rows to judge.
        new: PathBuf,
        /// Relative change that matters: 0.03 is three percent.
        #[arg(long, default_value_t = THRESHOLD)]
        threshold: f64,
        /// Exit with status 3 when anything got slower.
        #[arg(long)]
        fail_on_slower: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Draw { rows, out, price, allow_mixed, case } => {
            let mut rows = latest(&read(&rows)?);
            if let Some(case) = case {
                rows.retain(|row| row.what().case == case);
            }
            let options = Options { price_per_hour: price, allow_mixed };
            for file in draw(&rows, &out, &options)? {
                println!("{}", file.display());
            }
            // Rows of kernels alone have pictures, but no curve to look at.
            if let Ok(figure) = CostFigure::new(&rows, price) {
                for stage in Stage::ALL {
                    println!("measured {}", figure.findings(stage));
                }
                for found in official_findings()? {
                    println!("official {found}");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare { base, new, threshold, fail_on_slower } => {
            let found = compare::compare(&read(&base)?, &read(&new)?, threshold)?;
            print!("{found}");
            let slower = found.worst().is_some_and(|worst| worst.verdict == Verdict::Slower);
            Ok(if slower && fail_on_slower { ExitCode::from(SLOWER) } else { ExitCode::SUCCESS })
        }
    }
}
