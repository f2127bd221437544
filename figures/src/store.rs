//! The file of rows: one JSON object a line. Reading it; [`crate::append`] writes it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dsa_files::printable;

use crate::{Error, Row};

/// Most bytes of a file of rows that is read: some 200,000 rows.
pub const LIMIT: u64 = 256 << 20;

/// What a file of rows holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Its rows, the oldest first.
    pub rows: Vec<Row>,
    /// A last line that is not whole; it is no row, and the next row takes its place.
    pub torn: Option<Torn>,
}

/// The last line of a file of rows, cut off before its end: whoever wrote it was killed or had a full disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// Where it starts, bytes.
    pub start: usize,
    /// How long it is, bytes.
    pub bytes: usize,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = printable(&self.path.to_string_lossy(), 500);
        let Torn { line, bytes, .. } = self;
        write!(f, "{path}, line {line}: torn after {bytes} bytes and dropped; it is no whole row")
    }
}

/// Reads a file of rows. A line that is no row stops it, and the error names the line; empty lines are
/// passed over, and so is a byte order mark. A torn last line is dropped and told.
///
/// serde_json reads a float to within its last bit, so a row read back has the same key as the one
/// written, but not always the same last digit of a time.
pub fn read_all(path: &Path) -> Result<Rows, Error> {
    let bytes = dsa_files::read(path, LIMIT)?;
    let Parsed { lines, torn } = parse(path, &bytes)?;
    Ok(Rows { rows: lines.into_iter().map(|(_, row)| row).collect(), torn })
}

/// The rows of [`read_all`], for who has nobody to tell of a torn line.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    Ok(read_all(path)?.rows)
}

/// The lines of a file that are rows, each with its place in the bytes.
pub(crate) struct Parsed {
    pub lines: Vec<(Range<usize>, Row)>,
    pub torn: Option<Torn>,
}

pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, Error> {
    let mut lines = Vec::new();
    let mut start = if bytes.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
    let mut line = 0;
    while start < bytes.len() {
        line += 1;
        let length = bytes[start..].iter().position(|byte| *byte == b'\n');
        let end = length.map_or(bytes.len(), |length| start + length);
        let refused = |reason: String| {
            let reason = printable(&reason, 300);
            Error::Line { path: path.to_owned(), line, reason }
        };
        let text = std::str::from_utf8(&bytes[start..end]);
        let torn = Torn { path: path.to_owned(), line, start, bytes: end - start };
        let torn = Parsed { lines: Vec::new(), torn: Some(torn) };
        let text = match text {
            Ok(text) => text,
            Err(_) if length.is_none() => return Ok(Parsed { lines, ..torn }),
            Err(_) => return Err(refused("not UTF-8".into())),
        };
        if !text.trim().is_empty() {
            match serde_json::from_str(text) {
                Ok(row) => lines.push((start..end, row)),
                // Every beginning of an object is bad JSON; a whole object that is no row was not torn.
                Err(_) if length.is_none() && !is_json(text) => {
                    return Ok(Parsed { lines, ..torn });
                }
                Err(error) => return Err(refused(error.to_string())),
            }
        }
        start = end + 1;
    }
    Ok(Parsed { lines, torn: None })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// For each place (the key without the kernel's hash) its newest row, the order otherwise kept.
/// Later in the file is newer.
pub fn latest(rows: &[Row]) -> Vec<Row> {
    let newest: BTreeMap<_, usize> =
        rows.iter().enumerate().map(|(i, row)| (row.what().place(), i)).collect();
    let mut order: Vec<usize> = newest.into_values().collect();
    order.sort_unstable();
    order.into_iter().map(|i| rows[i].clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests;
