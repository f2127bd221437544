//! Pictures of evaluations: planted sentences and overlaps as maps, the quality of predictions as bars.

use super::panel::{BODY, HEAD, SMALL, TITLE, colors, footer, footer_height};
use super::scene::{Align, At, Scene};
use super::{Picture, cell, short};
use crate::Error;
use crate::eval::{EvalRow, Measured};
use crate::findings::tokens;
use dsa_files::printable;
use plotters::style::RGBColor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LEFT: f64 = 300.0;
const TOP: f64 = 130.0;
/// Width and height of a map's cells, where there are few.
const CELL: (f64, f64) = (90.0, 46.0);
/// Most cells of a map, and bars.
const MOST: usize = 128;

/// Draws the pictures of `rows`: `needles`, `perplexity`, `overlap`, those for which there are any; gives back the
/// files written.
///
/// # Errors
/// [`Error::Nothing`] if there is nothing to draw; [`Error::Value`] for more than a picture has room for; if a file cannot be
/// written.
pub fn draw_eval(rows: &[EvalRow], folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut pictures = Vec::new();
    for picture in [needles, quality, overlap] {
        pictures.extend(picture(rows)?);
    }
    if pictures.is_empty() {
        return Err(Error::Nothing { picture: "draw_eval", expected: "rows of an evaluation" });
    }
    super::write(&pictures, folder)
}

/// The mean of those that are there.
fn mean(values: &[Option<f64>]) -> Option<f64> {
    let there: Vec<f64> = values.iter().flatten().copied().collect();
    (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
}

/// Who, when, which commit, of which text.
fn provenance(rows: &[&EvalRow]) -> Vec<String> {
    let Some(row) = rows.last() else { return vec![] };
    let (subject, origin) = (&row.subject, &row.origin);
    let shown = |text: &str| printable(text, 100);
    let dirty = if origin.dirty { "+dirty" } else { "" };
    let day = origin.created.get(..10).unwrap_or("no date");
    vec![
        format!(
            "{}, {} in {}; {day}; commit {}{dirty}; text {}",
            shown(&subject.checkpoint),
            shown(&subject.device),
            shown(&subject.dtype),
            short(&origin.commit),
            printable(&subject.text, 24),
        ),
        printable(&origin.command, 400),
    ]
}

/// A map: rows of cells with a number from 0 to 1, or none, and a word for each.
struct Map<'a> {
    stem: &'static str,
    title: &'a str,
    columns: (&'a str, Vec<String>),
    rows: (&'a str, Vec<String>),
    /// By row and column.
    cells: Vec<Vec<Option<(f64, String)>>>,
}

impl Map<'_> {
    fn draw(&self, foot: &[String], csv: String) -> Result<Picture, Error> {
        let (wide, high) = (self.columns.1.len(), self.rows.1.len());
        if wide.max(high) > MOST {
            return Err(Error::value("rows or columns of a map", wide.max(high), "at most 128"));
        }
        let (width, height) =
            if wide > 16 { (1240.0 / wide as f64, 1240.0 / wide as f64) } else { CELL };
        let (bottom, right) = (TOP + height * high as f64, LEFT + width * wide as f64);
        let across = (right + 60.0).max(1400.0);
        let all = bottom + 100.0 + footer_height(across, foot);
        let mut scene = Scene::new(across as u32, all as u32);
        scene.text((30.0, 38.0), TITLE, colors::BLACK, Align::Left, self.title);
        scene.text((LEFT, TOP - 26.0), SMALL, colors::GREY, Align::Left, self.rows.0);
        for (y, (name, cells)) in self.rows.1.iter().zip(&self.cells).enumerate() {
            let top = TOP + height * y as f64;
            if height > 20.0 || y % 4 == 0 {
                let at = (LEFT - 12.0, top + height / 2.0);
                scene.text(at, SMALL, colors::BLACK, Align::Right, name);
            }
            for (x, cell) in cells.iter().enumerate() {
                let from = (LEFT + width * x as f64, top);
                paint(&mut scene, from, (width, height), cell.as_ref());
            }
        }
        for (x, name) in self.columns.1.iter().enumerate() {
            if width > 40.0 || x % 4 == 0 {
                let at = (LEFT + width * (x as f64 + 0.5), bottom + 20.0);
                scene.text(at, SMALL, colors::BLACK, Align::Middle, name);
            }
        }
        let below = ((LEFT + right) / 2.0, bottom + 50.0);
        scene.text(below, BODY, colors::BLACK, Align::Middle, self.columns.0);
        footer(&mut scene, bottom + 90.0, foot);
        scene.finish(self.stem, csv)
    }
}

/// A cell: the more, the bluer.
fn paint(scene: &mut Scene, from: At, (width, height): At, cell: Option<&(f64, String)>) {
    let to = (from.0 + width - 1.0, from.1 + height - 1.0);
    let Some((value, word)) = cell else {
        scene.rectangle(from, to, colors::PALE, 0.5);
        return;
    };
    let value = value.clamp(0.0, 1.0);
    let mix = |dark: u8| (255.0 + (f64::from(dark) - 255.0) * value).round() as u8;
    let RGBColor(red, green, blue) = colors::BLUE;
    scene.rectangle(from, to, RGBColor(mix(red), mix(green), mix(blue)), 1.0);
    if width > 40.0 {
        let color = if value > 0.6 { RGBColor(255, 255, 255) } else { colors::BLACK };
        let at = (from.0 + width / 2.0, from.1 + height / 2.0);
        scene.text(at, SMALL - 2, color, Align::Middle, word);
    }
}

/// The map of planted sentences: context across, depth down.
fn needles(rows: &[EvalRow]) -> Result<Option<Picture>, Error> {
    let mut cells = BTreeMap::new();
    let mut used = Vec::new();
    let mut csv = String::from("context,depth,found,selected\n");
    for row in rows {
        if let Measured::Needle { context, depth, found, selected } = &row.measured {
            let share = mean(selected);
            let shown = share.map_or("all".to_string(), |share| format!("{share:.2}"));
            csv += &format!("{context},{depth},{found},{shown}\n");
            let word = format!("{shown}{}", if *found { " *" } else { "" });
            // Depths are told apart by thousandths.
            let depth = (depth * 1000.0).round() as usize;
            cells.insert((depth, *context), (share.unwrap_or(1.0), word));
            used.push(row);
        }
    }
    if used.is_empty() {
        return Ok(None);
    }
    let sorted = |mut values: Vec<usize>| {
        values.sort_unstable();
        values.dedup();
        values
    };
    let contexts = sorted(cells.keys().map(|(_, context)| *context).collect());
    let depths = sorted(cells.keys().map(|(depth, _)| *depth).collect());
    let of = |depth: &usize| -> Vec<_> {
        contexts.iter().map(|context| cells.get(&(*depth, *context)).cloned()).collect()
    };
    let map = Map {
        stem: "needles",
        title: "A planted sentence: the share of its tokens that are selected; *: the answer has it",
        columns: ("context (tokens)", contexts.iter().map(|n| tokens(*n as f64)).collect()),
        rows: (
            "depth of the sentence, mean over the layers",
            depths.iter().map(|d| format!("{} %", *d as f64 / 10.0)).collect(),
        ),
        cells: depths.iter().map(of).collect(),
    };
    map.draw(&provenance(&used), csv).map(Some)
}

/// The map of overlaps: layer by layer, and beside it each layer with itself one token later.
fn overlap(rows: &[EvalRow]) -> Result<Option<Picture>, Error> {
    let mut cells = BTreeMap::new();
    let (mut used, mut layers, mut looked, mut chances) = (Vec::new(), 0, 0, 0.0);
    let mut csv = String::from("layer,other,later,tokens,share,chance\n");
    for row in rows {
        if let Measured::Overlap { layer, other, later, tokens, share, chance } = row.measured {
            csv += &format!("{layer},{other},{later},{tokens},{share},{chance}\n");
            layers = layers.max(layer.max(other) + 1);
            (looked, chances) = (tokens, chance);
            let word = format!("{share:.2}");
            match later {
                0 => {
                    cells.insert((layer, other), (share, word.clone()));
                    cells.insert((other, layer), (share, word));
                }
                _ => {
                    cells.insert((layer, usize::MAX), (share, word));
                }
            }
            used.push(row);
        }
    }
    if used.is_empty() {
        return Ok(None);
    }
    let columns: Vec<usize> = (0..layers).chain([usize::MAX]).collect();
    let of = |layer: usize| -> Vec<_> {
        columns.iter().map(|other| cells.get(&(layer, *other)).cloned()).collect()
    };
    let name = |layer: &usize| match *layer {
        usize::MAX => "next".to_string(),
        layer => layer.to_string(),
    };
    let map = Map {
        stem: "overlap",
        title: "Chosen keys that two layers share",
        columns: (
            "layer; next: the same layer one token later",
            columns.iter().map(name).collect(),
        ),
        rows: ("layer", (0..layers).map(|layer| layer.to_string()).collect()),
        cells: (0..layers).map(of).collect(),
    };
    let mut foot = provenance(&used);
    foot.insert(0, format!("mean of {looked} tokens with more keys than are chosen; random choices would share {chances:.3}"));
    map.draw(&foot, csv).map(Some)
}

/// The quality of predictions as bars: the divergence from dense attention.
fn quality(rows: &[EvalRow]) -> Result<Option<Picture>, Error> {
    let mut bars = Vec::new();
    let mut used = Vec::new();
    let mut csv = String::from("attention,topk,pattern,tokens,perplexity,kl,same_top\n");
    for row in rows {
        if let Measured::Quality { attention, topk, pattern, tokens, perplexity, kl, same_top } =
            &row.measured
        {
            let (shown, pattern) = (cell(attention), printable(pattern, 200));
            csv += &format!(
                "{shown},{topk},{},{tokens},{perplexity},{kl},{same_top}\n",
                cell(&pattern)
            );
            let name = if *topk == 0 {
                "dense".to_string()
            } else {
                format!("{topk} keys, {}", printable(&pattern, 24))
            };
            let words = format!(
                "perplexity {perplexity:.4}, KL {kl:.3e}, same token {:.1} %",
                100.0 * same_top
            );
            bars.push((name, *kl, words));
            used.push(row);
        }
    }
    if used.is_empty() {
        return Ok(None);
    }
    if bars.len() > MOST {
        return Err(Error::value("bars of a picture", bars.len(), "at most 128"));
    }
    let foot = provenance(&used);
    let bottom = TOP + CELL.1 * bars.len() as f64;
    let mut scene = Scene::new(1400, (bottom + 60.0 + footer_height(1400.0, &foot)) as u32);
    let title = "What sparse attention changes of a text's predictions";
    scene.text((30.0, 38.0), TITLE, colors::BLACK, Align::Left, title);
    let head = "divergence from dense attention, nats a token";
    scene.text((LEFT + 60.0, TOP - 30.0), HEAD - 4, colors::GREY, Align::Left, head);
    let most = bars.iter().map(|(_, kl, _)| *kl).fold(f64::MIN_POSITIVE, f64::max);
    for (n, (name, kl, words)) in bars.iter().enumerate() {
        let (top, left) = (TOP + CELL.1 * n as f64, LEFT + 60.0);
        scene.text((left - 12.0, top + 20.0), SMALL, colors::BLACK, Align::Right, name);
        let end = left + 420.0 * (kl / most).clamp(0.0, 1.0);
        scene.rectangle((left, top + 4.0), (end.max(left + 1.0), top + 36.0), colors::BLUE, 0.9);
        scene.text((end.max(left) + 12.0, top + 20.0), SMALL, colors::BLACK, Align::Left, words);
    }
    footer(&mut scene, bottom + 40.0, &foot);
    scene.finish("perplexity", csv).map(Some)
}
