//! What a model's answers lose by attending sparsely: rows of evaluations, which measure no time.
//!
//! A line of JSON each, schema 1: `eval` says which of the three, then its numbers, then the model, the text, and where the
//! row comes from as in every row.

use crate::{Error, Origin};
use dsa_files::{read_text, replace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the rows' schema.
pub const SCHEMA: u32 = 1;
/// A larger file is no file of rows.
const LIMIT: u64 = 256 << 20;

/// What was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The checkpoint's folder.
    pub checkpoint: String,
    /// What of its configuration decides results, by name.
    pub config: BTreeMap<String, String>,
    /// The device.
    pub device: String,
    /// Of the activations.
    pub dtype: String,
    /// The text's SHA-256, or the seed of a made-up one.
    pub text: String,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "eval", rename_all = "snake_case")]
pub enum Measured {
    /// A sentence planted in a long text, and a question about it.
    Needle {
        /// Tokens of the prompt.
        context: usize,
        /// Where it was planted: 0 the beginning, 1 the end.
        depth: f64,
        /// Whether the answer has what was asked for.
        found: bool,
        /// Of each layer, the share of its tokens that the prompt's last token selected; null where every key is selected.
        selected: Vec<Option<f64>>,
    },
    /// How well a text is predicted.
    Quality {
        /// `dense` or `sparse`.
        attention: String,
        /// Keys selected; 0 if dense.
        topk: usize,
        /// Which layers have an indexer, a letter each.
        pattern: String,
        /// Tokens predicted.
        tokens: usize,
        /// exp of the mean negative log-likelihood.
        perplexity: f64,
        /// Mean divergence of dense attention's distribution from this one, in nats.
        kl: f64,
        /// Share of the tokens at which both find the same one most probable.
        same_top: f64,
    },
    /// How many of the chosen keys two layers share, or a layer and itself one token later.
    Overlap {
        /// A layer.
        layer: usize,
        /// Another, or the same.
        other: usize,
        /// Tokens between the two choices: 0 or 1.
        later: usize,
        /// Tokens that were looked at.
        tokens: usize,
        /// The mean share of keys in both, 0 to 1.
        share: f64,
        /// The share that two random choices would have.
        chance: f64,
    },
}

/// A row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The result.
    #[serde(flatten)]
    pub measured: Measured,
    /// Of what.
    pub subject: Subject,
    /// From where.
    #[serde(flatten)]
    pub origin: Origin,
}

impl EvalRow {
    /// A row of this version.
    pub fn new(measured: Measured, subject: Subject, origin: Origin) -> Self {
        Self { schema: SCHEMA, measured, subject, origin }
    }
}

/// Writes the rows, the file whole or not at all.
///
/// # Errors
/// [`Error::File`].
pub fn write(path: &Path, rows: &[EvalRow]) -> Result<(), Error> {
    let line = |row| serde_json::to_string(row).map_err(|error| Error::io(path, error.into()));
    let lines: Vec<String> = rows.iter().map(line).collect::<Result<_, _>>()?;
    replace(path, |out| out.write_all((lines.join("\n") + "\n").as_bytes()))?;
    Ok(())
}

/// Reads a file of such rows.
///
/// # Errors
/// [`Error::File`]; [`Error::Line`] for a line that is none, or of another version.
pub fn read(path: &Path) -> Result<Vec<EvalRow>, Error> {
    let text = read_text(path, LIMIT)?;
    let row = |(n, line): (usize, &str)| {
        let wrong = |reason: String| {
            let (path, line) = (path.to_path_buf(), n + 1);
            Error::Line { path, line, reason: dsa_files::printable(&reason, 300) }
        };
        let row: EvalRow = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        match row.schema {
            SCHEMA => Ok(row),
            other => Err(wrong(format!("schema {other}, expected {SCHEMA}"))),
        }
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(row).collect()
}
