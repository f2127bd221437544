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

impl Measured {
    /// Whether `other` is of the same thing, whatever came out.
    fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Needle { context, depth, .. }, Self::Needle { context: c, depth: d, .. }) => {
                (context, depth) == (c, d)
            }
            (
                Self::Quality { attention, topk, pattern, tokens, .. },
                Self::Quality { attention: a, topk: k, pattern: p, tokens: t, .. },
            ) => (attention, topk, pattern, tokens) == (a, k, p, t),
            (
                Self::Overlap { layer, other, later, tokens, .. },
                Self::Overlap { layer: l, other: o, later: b, tokens: t, .. },
            ) => (layer, other, later, tokens) == (l, o, b, t),
            _ => false,
        }
    }
}

/// Adds rows to a file, which is made if it is not there and replaced whole or not at all; rows of the same things go.
///
/// # Errors
/// As [`read`]; [`Error::File`] if it cannot be written.
pub fn keep(path: &Path, rows: &[EvalRow]) -> Result<(), Error> {
    let mut all = if path.exists() { read(path)? } else { vec![] };
    let same = |a: &EvalRow, b: &EvalRow| a.subject == b.subject && a.measured.is_of(&b.measured);
    all.retain(|old| !rows.iter().any(|new| same(old, new)));
    all.extend_from_slice(rows);
    write(path, &all)
}

/// Writes the rows, the file whole or not at all.
fn write(path: &Path, rows: &[EvalRow]) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw_eval;

    fn rows() -> Vec<EvalRow> {
        let subject = Subject {
            checkpoint: "a\u{1b}[2J".into(),
            config: [("indexer".to_string(), "16 keys".to_string())].into(),
            device: "d".into(),
            dtype: "bf16".into(),
            text: "sha256 0".into(),
        };
        let origin = Origin::now(None, None, "dsa eval".into());
        let row = |measured| EvalRow::new(measured, subject.clone(), origin.clone());
        let needle = |depth, selected| {
            row(Measured::Needle { context: 1024, depth, found: depth > 0.0, selected })
        };
        let quality = |attention: &str, topk| {
            let (attention, pattern) = (attention.to_string(), "FS".to_string());
            row(Measured::Quality {
                attention,
                topk,
                pattern,
                tokens: 7,
                perplexity: 2.5,
                kl: 0.1,
                same_top: 0.5,
            })
        };
        let overlap = |layer, other, later| {
            row(Measured::Overlap { layer, other, later, tokens: 9, share: 0.5, chance: 0.1 })
        };
        vec![
            needle(0.0, vec![None, Some(0.25)]),
            needle(0.5, vec![None]),
            quality("dense", 0),
            quality("sparse", 16),
            overlap(0, 1, 0),
            overlap(1, 1, 1),
        ]
    }

    #[test]
    fn rows_are_read_as_they_were_written_and_others_are_refused_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        keep(&path, &rows()).unwrap();
        assert_eq!(read(&path).unwrap(), rows());
        // Of the same thing the newer row stays, and all others do.
        let mut newer = rows()[2].clone();
        if let Measured::Quality { kl, .. } = &mut newer.measured {
            *kl = 0.7;
        }
        let mut other = rows()[2].clone();
        other.subject.text = "sha256 1".into();
        keep(&path, &[newer.clone(), other.clone()]).unwrap();
        let kept = read(&path).unwrap();
        assert_eq!((kept.len(), &kept[5..]), (7, &[newer, other][..]));
        keep(&path, &rows()).unwrap();
        write(&path, &rows()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, says) in [
            ("\"schema\":1", "\"schema\":2", "line 1: schema 2, expected 1"),
            ("\"context\":1024", "\"context\":-1", "line 1: "),
            ("\"eval\":\"needle\"", "\"eval\":\"x\"", "line 1: unknown variant `x`"),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn every_kind_of_row_has_its_picture_and_no_row_none() {
        let folder = tempfile::tempdir().unwrap();
        let files = draw_eval(&rows(), folder.path()).unwrap();
        let names: Vec<_> =
            files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        let expected = ["needles", "perplexity", "overlap"];
        let expected: Vec<_> = expected
            .iter()
            .flat_map(|name| ["svg", "png", "csv"].map(|end| format!("{name}.{end}")))
            .collect();
        assert_eq!(names, expected);
        for (name, has) in [
            ("needles.svg", "0.25"),
            ("needles.svg", "all *"),
            ("needles.csv", "1024,0,false,0.25\n"),
            ("perplexity.svg", "16 keys, FS"),
            ("perplexity.csv", "\"sparse\",16,\"FS\",7,2.5,0.1,0.5\n"),
            ("overlap.svg", "random choices would share 0.100"),
            ("overlap.csv", "1,1,1,9,0.5,0.1\n"),
        ] {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(text.contains(has) && !text.contains('\u{1b}'), "{name}: {text}");
        }
        assert!(matches!(draw_eval(&[], folder.path()), Err(Error::Nothing { .. })));
    }
}
