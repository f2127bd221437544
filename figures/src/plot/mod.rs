//! The pictures. Each is written as SVG, PNG and a CSV of what is drawn.

mod cost_vs_context;
mod eval;
mod files;
mod panel;
mod ratio;
mod roofline;
mod scene;
mod time_stack;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cost_vs_context::cost_vs_context;
use files::{Picture, write};
use roofline::roofline;
use time_stack::time_stack;

pub use cost_vs_context::CostFigure;
pub use eval::draw_eval;
pub use files::ready;

use dsa_files::printable;

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

/// Draws every picture for which there are rows, each as `NAME`.{svg,png,csv} in the folder, which is made
/// if it is not there; gives back the files written.
///
/// No picture at all is an error; a picture without rows is left out. All are drawn before the first
/// file is written, and each file is written whole or stays as it was.
pub fn draw(rows: &[Row], folder: &Path, options: &Options) -> Result<Vec<PathBuf>, Error> {
    check_price(options.price_per_hour)?;
    let mut pictures = Vec::new();
    for picture in [cost_vs_context, time_stack, roofline] {
        match picture(rows, options) {
            Ok(drawn) => pictures.push(drawn),
            Err(Error::Nothing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if pictures.is_empty() {
        let expected = "rows of cost_vs_context at two contexts, or rows with a measured peak";
        return Err(Error::Nothing { picture: "draw", expected });
    }
    write(&pictures, folder)
}

/// Whether a price can be one: US$ an hour.
pub fn check_price(price_per_hour: f64) -> Result<(), Error> {
    if !(1e-6..=1e9).contains(&price_per_hour) {
        return Err(Error::value("price", price_per_hour, "US$ per hour, from 1e-6 to 1e9"));
    }
    Ok(())
}

/// A cell of a CSV file whose text comes from a row: quoted, and never a formula. A spreadsheet runs what
/// starts with one of these signs, quoted or not; behind an apostrophe it is text.
fn cell(text: &str) -> String {
    let text = printable(text, 300).replace('"', "\"\"");
    let formula = text.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    format!("\"{}{text}\"", if formula { "'" } else { "" })
}

/// Refuses rows that must not share a picture, or says in a sentence what is mixed.
fn mixture(picture: &'static str, rows: &[&Row], allowed: bool) -> Result<Option<String>, Error> {
    let mut hashes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut devices: BTreeSet<String> = BTreeSet::new();
    for row in rows {
        let what = row.what();
        devices.insert(printable(&what.device.name, 100));
        hashes.entry(&what.bench).or_default().insert(short(&what.kernel_hash));
    }
    let mut groups = vec![("devices".to_string(), devices)];
    for (bench, found) in hashes {
        groups.push((format!("versions of the kernel of {}", printable(bench, 60)), found));
    }
    groups.retain(|(_, found)| found.len() > 1);
    let list = |found: &BTreeSet<String>| {
        let shown: Vec<&str> = found.iter().take(10).map(String::as_str).collect();
        let more = if found.len() > 10 { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    };
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
        let (name, driver) = (printable(&device.name, 100), printable(&device.driver, 100));
        format!("{name} ({kind}, {} cores, driver {driver})", device.cores)
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
    let kernel = list(&|row| short(&row.what().kernel_hash));
    let gate = list(&|row| printable(row.gate().against(), 200));
    let rows = rows.len();
    let mut lines = vec![
        format!("{device}; {day}; commit {commit}; kernel source {kernel}"),
        format!("{rows} rows, each passed its gate against: {gate}"),
    ];
    lines.extend(mixed);
    lines
}

/// The start of a hash.
fn short(hash: &str) -> String {
    hash.chars().take(10).collect()
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
