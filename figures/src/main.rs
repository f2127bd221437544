//! Redraws the pictures from rows, and compares two files of rows.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsa_figures::compare::{self, THRESHOLD};
use dsa_figures::findings::official_findings;
use dsa_figures::plot::{CostFigure, check_price};
use dsa_figures::terminal::{end, note, say};
use dsa_figures::{Error, Noise, Options, Row, Stage, choose, draw, latest, read_all};

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
        #[arg(long, default_value_t = 2.0, value_parser = price)]
        price: f64,
        /// Only rows of this device, by its name or a part of it; of the device measured last if not given.
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
        /// Draw rows of several devices and kernel versions, and say so in the picture.
        #[arg(long)]
        allow_mixed: bool,
        /// Only rows of this case.
        #[arg(long, value_name = "NAME")]
        case: Option<String>,
    },
    /// Compare two files of rows; exit with 3 if --fail-on-slower is given and one is slower, with 1 if
    /// they have no measurement in common.
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

fn main() -> ExitCode {
    end(match Arguments::parse().command {
        Command::Draw { rows, out, price, device, allow_mixed, case } => {
            let options = Options { price_per_hour: price, allow_mixed };
            rows_of(&rows)
                .and_then(|rows| chosen(rows, case.as_deref(), device.as_deref(), allow_mixed))
                .and_then(|rows| pictures(&rows, &out, &options))
        }
        Command::Compare { base, new, threshold, fail_on_slower } => {
            verdict(&base, &new, threshold, fail_on_slower)
        }
    })
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    check_price(price).map(|()| price).map_err(|error| error.to_string())
}

/// The rows of a file; a torn last line is told.
fn rows_of(path: &std::path::Path) -> Result<Vec<Row>, Error> {
    let found = read_all(path)?;
    if let Some(torn) = found.torn {
        note(format!("warning: {torn}"));
    }
    Ok(found.rows)
}

/// The rows that a picture is made of. What is left out is told.
fn chosen(
    mut rows: Vec<Row>,
    case: Option<&str>,
    device: Option<&str>,
    allow_mixed: bool,
) -> Result<Vec<Row>, Error> {
    rows.retain(|row| case.is_none_or(|case| row.what().case == case));
    if allow_mixed && device.is_none() {
        return Ok(latest(&rows));
    }
    if allow_mixed {
        let one = choose(&rows, device)?;
        let name = one.rows.first().map(|row| row.what().device.name.clone());
        rows.retain(|row| Some(&row.what().device.name) == name.as_ref());
        return Ok(latest(&rows));
    }
    let found = choose(&rows, device)?;
    for sentence in &found.left_out {
        note(format!("left out: {sentence}"));
    }
    Ok(found.rows)
}

fn pictures(rows: &[Row], out: &std::path::Path, options: &Options) -> Result<ExitCode, Error> {
    for file in draw(rows, out, options)? {
        say(file.display())?;
    }
    match CostFigure::new(rows, options.price_per_hour) {
        Ok(figure) => {
            for stage in Stage::ALL {
                say(format!("measured {}", figure.findings(stage)))?;
            }
            for found in official_findings()? {
                say(format!("official {found}"))?;
            }
            figure.noise(rows).map_or(Ok(()), say)?;
        }
        // Rows of kernels alone have pictures, but no curve to look at.
        Err(_) => Noise::of(&rows.iter().collect::<Vec<_>>(), &[]).map_or(Ok(()), say)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict(
    base: &std::path::Path,
    new: &std::path::Path,
    threshold: f64,
    fail_on_slower: bool,
) -> Result<ExitCode, Error> {
    let found = compare::compare(&rows_of(base)?, &rows_of(new)?, threshold)?;
    say(&found)?;
    let slower = found.slower()?;
    Ok(if slower && fail_on_slower { ExitCode::from(SLOWER) } else { ExitCode::SUCCESS })
}
