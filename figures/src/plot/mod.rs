//! The pictures. Each is written as SVG, PNG and a CSV of what is drawn.

mod cost_vs_context;
mod panel;
mod roofline;
mod scene;
mod time_stack;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use cost_vs_context::{CostFigure, cost_vs_context};
pub use roofline::roofline;
pub use time_stack::time_stack;

use crate::{Error, Row, Variant, official};

/// What the reader of the pictures may choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Price of an hour of the measured device, US$.
    pub price_per_hour: f64,
    /// Draw rows of several devices, or of several versions of a kernel, and say so.
    pub allow_mixed: bool,
}

impl Default for Options {
    /// The paper's price, and nothing mixed.
    fn default() -> Self {
        Options { price_per_hour: official::PRICE_PER_HOUR, allow_mixed: false }
    }
}

/// Draws every picture for which there are rows, and gives back the files written.
///
/// No picture at all is an error; a picture without rows is left out.
pub fn draw(rows: &[Row], folder: &Path, options: &Options) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for picture in [cost_vs_context, time_stack, roofline] {
        match picture(rows, folder, options) {
            Ok(written) => files.extend(written),
            Err(Error::Nothing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if files.is_empty() {
        let expected = "rows of cost_vs_context at two contexts, or rows with a measured peak";
        return Err(Error::Nothing { picture: "draw", expected });
    }
    Ok(files)
}

/// Refuses rows that must not share a picture, or says in a sentence what is mixed.
fn mixture(picture: &'static str, rows: &[&Row], allowed: bool) -> Result<Option<String>, Error> {
    let mut hashes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut devices: BTreeSet<String> = BTreeSet::new();
    for row in rows {
        let what = row.what();
        devices.insert(what.device.name.clone());
        hashes.entry(&what.bench).or_default().insert(short(&what.kernel_hash).into());
    }
    let mut groups = vec![("devices".to_string(), devices)];
    for (bench, found) in hashes {
        groups.push((format!("versions of the kernel of {bench}"), found));
    }
    groups.retain(|(_, found)| found.len() > 1);
    let list = |found: &BTreeSet<String>| found.iter().cloned().collect::<Vec<_>>().join(", ");
    if let (false, Some((what, found))) = (allowed, groups.first()) {
        let (what, count) = (what.clone(), found.len());
        return Err(Error::Mixed { picture, what, count, found: list(found) });
    }
    let said: Vec<String> = groups
        .iter()
        .map(|(what, found)| format!("{} {what} ({})", found.len(), list(found)))
        .collect();
    Ok((!said.is_empty()).then(|| format!("MIXED: {}", said.join("; "))))
}

/// Who, when, which commit, which kernel, against what it was checked.
fn provenance(rows: &[&Row], mixed: Option<String>) -> Vec<String> {
    let list = |text: &dyn Fn(&Row) -> String| {
        let all: BTreeSet<String> = rows.iter().map(|row| text(row)).collect();
        let shown: Vec<String> = all.iter().take(3).cloned().collect();
        let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { "".into() };
        format!("{}{more}", shown.join(", "))
    };
    let device = list(&|row| {
        let device = &row.what().device;
        let kind = format!("{:?}", device.kind).to_uppercase();
        format!("{} ({kind}, {} cores, driver {})", device.name, device.cores, device.driver)
    });
    let days: BTreeSet<&str> =
        rows.iter().filter_map(|row| row.origin().created.get(..10)).collect();
    let day = match (days.first(), days.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(first), _) => (*first).to_string(),
        (None, _) => "no date".into(),
    };
    let commit = list(&|row| {
        let dirty = if row.origin().dirty { "+dirty" } else { "" };
        format!("{}{dirty}", short(&row.origin().commit))
    });
    let kernel = list(&|row| short(&row.what().kernel_hash).into());
    let gate = list(&|row| row.gate().against().into());
    let rows = rows.len();
    let mut lines = vec![
        format!("{device}; {day}; commit {commit}; kernel source {kernel}"),
        format!("{rows} rows, each passed its gate against: {gate}"),
    ];
    lines.extend(mixed);
    lines
}

/// The start of a hash.
fn short(hash: &str) -> &str {
    hash.get(..10).unwrap_or(hash)
}

/// "dense, V3.1-Terminus" and the like.
fn spoken(variant: Variant) -> &'static str {
    match variant {
        Variant::V31Terminus => "V3.1-Terminus (dense)",
        Variant::V32Exp => "V3.2-Exp (sparse)",
        Variant::Neither => "",
    }
}

#[cfg(test)]
mod tests;
