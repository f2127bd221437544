//! Picture: US$ per million tokens against the context, dense and sparse, prefill and decode.
//!
//! First row: what was measured, on its own axis. Second: the paper's figure, and a projection. Third: what sparse
//! attention saves, measured and published on one axis.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use dsa_files::printable;
use plotters::style::RGBColor;

use super::panel::{Flag, HEAD, Panel, Swatch, TITLE, colors, footer, footer_height, legend};
use super::scene::{Align, Marker, Scene, Stroke};
use super::{Options, Picture, check_price, mixture, provenance, ratio, spoken};
use crate::cost::{Batch, Peaks, project, usd_per_mtok};
use crate::curve::Curve;
use crate::findings::{Findings, advantage};
use crate::official::{Official, PRICE_PER_HOUR};
use crate::row::COST_BENCH;
use crate::{Error, Noise, Row, Stage, Variant};

const NAME: &str = "cost_vs_context";

/// The measured curves of a picture, before it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct CostFigure {
    measured: BTreeMap<(Stage, Variant), Measured>,
}

/// US$ per million tokens: of the medians, of the fastest and of the slowest samples.
#[derive(Debug, Clone, PartialEq)]
struct Measured {
    median: Curve,
    low: Vec<f64>,
    high: Vec<f64>,
}

impl CostFigure {
    /// Collects the rows of the bench [`COST_BENCH`]; each needs `context` and `tokens` (a call)
    /// in its shape. A stage and variant with fewer than two contexts makes no curve.
    pub fn new(rows: &[Row], price_per_hour: f64) -> Result<Self, Error> {
        check_price(price_per_hour)?;
        let mut points: BTreeMap<(Stage, Variant), BTreeMap<u64, [f64; 3]>> = BTreeMap::new();
        for row in cost_rows(rows) {
            let what = row.what();
            let per_call = size(row, "tokens")? as f64;
            let context = size(row, "context")?;
            let timing = row.timing();
            let cost = [timing.median_s(), timing.min_s(), timing.max_s()]
                .map(|s| usd_per_mtok(price_per_hour, s / per_call));
            let curve = points.entry((what.stage, what.variant)).or_default();
            if curve.insert(context, cost).is_some() {
                let (stage, variant) = (what.stage.name(), what.variant.name());
                let point = format!("{stage} {variant} at context {context}");
                return Err(Error::Ambiguous { picture: NAME, point });
            }
        }
        let mut measured = BTreeMap::new();
        for (which, points) in points.into_iter().filter(|(_, points)| points.len() > 1) {
            let medians = points.iter().map(|(x, cost)| (*x as f64, cost[0])).collect();
            let (low, high) = points.values().map(|cost| (cost[1], cost[2])).unzip();
            measured.insert(which, Measured { median: Curve::new(medians)?, low, high });
        }
        if measured.is_empty() {
            let expected = "rows of cost_vs_context at two contexts or more";
            return Err(Error::Nothing { picture: NAME, expected });
        }
        Ok(CostFigure { measured })
    }

    /// The measured curve: US$ per million tokens against context in tokens.
    pub fn curve(&self, stage: Stage, variant: Variant) -> Option<&Curve> {
        self.measured.get(&(stage, variant)).map(|m| &m.median)
    }

    /// Knee, crossover and slopes of what was measured.
    pub fn findings(&self, stage: Stage) -> Findings {
        let curve = |variant| self.curve(stage, variant);
        Findings::new(stage, curve(Variant::V31Terminus), curve(Variant::V32Exp))
    }

    /// The R² of the dense lines; two points always lie on one.
    pub fn dense_lines(&self) -> Vec<(Stage, f64)> {
        let line = |stage| {
            let dense = self.curve(stage, Variant::V31Terminus)?;
            (dense.points().len() > 2).then(|| (stage, dense.line().r2))
        };
        Stage::ALL.into_iter().filter_map(line).collect()
    }

    /// What makes the measured curves noisy, if anything does; of the rows that the figure was made from.
    pub fn noise(&self, rows: &[Row]) -> Option<Noise> {
        let used: Vec<&Row> = cost_rows(rows).collect();
        Noise::of(&used, &self.dense_lines())
    }
}

/// The rows that make the curves.
pub(super) fn cost_rows(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| {
        let what = row.what();
        what.bench == COST_BENCH && what.variant != Variant::Neither
    })
}

/// A size that a cost row must have in its shape; `tokens` must not be 0.
pub(super) fn size(row: &Row, name: &'static str) -> Result<u64, Error> {
    match row.what().shape.get(name) {
        Some(size) if *size > 0 || name != "tokens" => Ok(*size),
        Some(size) => Err(Error::value("shape.tokens", size, "at least 1 token a call")),
        None => {
            let value = format!("without {name}: {}", row.what().place());
            Err(Error::value("shape", value, "context and tokens in rows of cost_vs_context"))
        }
    }
}

/// The picture `cost_vs_context`.
pub(super) fn cost_vs_context(rows: &[Row], options: &Options) -> Result<Picture, Error> {
    let used: Vec<&Row> = cost_rows(rows).collect();
    let mixed = mixture(NAME, &used, options.allow_mixed)?;
    let figure = CostFigure::new(rows, options.price_per_hour)?;
    let official = Official::load()?;
    let mut foot = provenance(&used, mixed);
    let price = options.price_per_hour;
    foot.insert(
        0,
        format!(
            "First row at {price} US$ per hour of the measured device; lines are \
        medians, bands run from the fastest to the slowest sample."
        ),
    );
    foot.push(format!(
        "Official: DeepSeek-V3.2-Exp paper, its cost figure, H800 at \
        {PRICE_PER_HOUR} US$ per GPU-hour. Projection: rates fitted to that figure, scaled by \
        data-sheet peaks at the same price, large batches; not measured."
    ));
    foot.extend(figure.noise(rows).map(|noise| noise.to_string()));

    let width = 1600.0;
    let height = 1950.0 + footer_height(width, &foot);
    let mut scene = Scene::new(width as u32, height as u32);
    let title = "Cost of a token against its position in the context";
    scene.text((30.0, 38.0), TITLE, colors::BLACK, Align::Left, title);
    let mut csv = String::from("panel,curve,context_tokens,usd_per_mtok,low,high\n");
    let devices: BTreeSet<&str> = used.iter().map(|r| r.what().device.name.as_str()).collect();
    let device = if devices.len() > 1 { "several" } else { devices.first().unwrap_or(&"") };
    let head = format!("Measured: this layer on this device ({})", printable(device, 70));
    scene.text((30.0, 96.0), HEAD, colors::BLACK, Align::Left, &head);
    legend(&mut scene, (30.0, 132.0), 1570.0, &measured_legend());
    let head = "For comparison: the whole model as published, and a projection";
    scene.text((30.0, 710.0), HEAD, colors::BLACK, Align::Left, head);
    legend(&mut scene, (30.0, 746.0), 1570.0, &official_legend());
    let head = "What sparse attention saves: the cost of V3.1-Terminus over that of V3.2-Exp";
    scene.text((30.0, 1330.0), HEAD, colors::BLACK, Align::Left, head);
    legend(&mut scene, (30.0, 1366.0), 1570.0, &ratio::legend_entries());
    for (column, stage) in Stage::ALL.into_iter().enumerate() {
        let panel = Panel {
            left: 135.0 + 795.0 * column as f64,
            top: 210.0,
            width: 640.0,
            height: 390.0,
            x_max: 1.0,
            y_max: 1.0,
        };
        let head = per_call(&used, stage);
        draw_measured(&mut scene, panel, &figure, stage, &head, &mut csv);
        let panel = Panel { top: 850.0, height: 360.0, ..panel };
        draw_official(&mut scene, panel, &official, stage, &mut csv)?;
        let panel = Panel { top: 1450.0, height: 330.0, ..panel };
        let of = |figure: &dyn Fn(Variant) -> Option<Curve>| {
            figure(Variant::V31Terminus).zip(figure(Variant::V32Exp))
        };
        let measured = of(&|variant| figure.curve(stage, variant).cloned());
        let published = of(&|variant| official.curve(stage, variant).cloned());
        ratio::draw(&mut scene, panel, stage, [measured, published], &mut csv);
    }
    footer(&mut scene, 1960.0, &foot);
    scene.finish(NAME, csv)
}

/// "prefill, chunks of 1024 tokens" and the like: without it a curve means nothing.
fn per_call(rows: &[&Row], stage: Stage) -> String {
    let of_stage = rows.iter().filter(|row| row.what().stage == stage);
    let tokens = of_stage.filter_map(|row| row.what().shape.get("tokens")).max();
    match (stage, tokens) {
        (_, None) => stage.name().to_string(),
        (Stage::Prefill, Some(tokens)) => format!("prefill, chunks of {tokens} tokens"),
        (Stage::Decode, Some(tokens)) => format!("decode, {tokens} requests"),
    }
}

fn color(variant: Variant) -> RGBColor {
    if variant == Variant::V32Exp { colors::BLUE } else { colors::VERMILION }
}

fn measured_stroke(variant: Variant) -> Stroke {
    let sparse = variant == Variant::V32Exp;
    let marker = Some(if sparse { Marker::Square } else { Marker::Disc });
    Stroke { color: color(variant), width: 3, dash: None, marker }
}

fn official_stroke(variant: Variant) -> Stroke {
    Stroke { color: color(variant), width: 3, dash: Some((18.0, 9.0)), marker: None }
}

/// A projection is dotted; its colour tells the model.
fn projected_stroke(variant: Variant) -> Stroke {
    let (dash, marker) = (Some((3.0, 7.0)), Some(Marker::Triangle));
    Stroke { color: color(variant), width: 2, dash, marker }
}

fn measured_legend() -> Vec<(Swatch, String)> {
    let entry = |variant| (Swatch::Line(measured_stroke(variant)), spoken(variant).to_string());
    Variant::MODELS.map(entry).into()
}

fn official_legend() -> Vec<(Swatch, String)> {
    let mut entries: Vec<_> = Variant::MODELS
        .map(|v| (Swatch::Line(official_stroke(v)), format!("{}, official", v.name())))
        .into();
    let grey = Stroke { color: colors::GREY, ..projected_stroke(Variant::Neither) };
    entries.push((Swatch::Line(grey), "MI355X (projection)".into()));
    entries
}

fn draw_measured(
    scene: &mut Scene,
    panel: Panel,
    figure: &CostFigure,
    stage: Stage,
    head: &str,
    csv: &mut String,
) {
    let of_stage = |variant| figure.measured.get(&(stage, variant));
    let curves: Vec<(Variant, &Measured)> =
        Variant::MODELS.into_iter().filter_map(|v| Some((v, of_stage(v)?))).collect();
    if curves.is_empty() {
        panel.empty(scene, &format!("no measured rows: {}", stage.name()));
        return;
    }
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let x_max = largest(&mut curves.iter().map(|(_, m)| m.median.end()));
    let y_max = 1.08 * largest(&mut curves.iter().flat_map(|(_, m)| m.high.iter().copied()));
    let panel = Panel { x_max, y_max, ..panel };
    let findings = figure.findings(stage);
    let y_label = "US$ per million tokens, this layer";
    panel.axes(scene, head, &findings.summary(), y_label);
    for (variant, measured) in &curves {
        let points = measured.median.points();
        let edge = |ys: &[f64]| -> Vec<(f64, f64)> {
            points.iter().zip(ys).map(|((x, _), y)| (*x, *y)).collect()
        };
        let mut band = panel.all(&edge(&measured.low));
        band.extend(panel.all(&edge(&measured.high)).into_iter().rev());
        scene.polygon(&band, color(*variant), 0.25);
        scene.curve(&panel.all(points), measured_stroke(*variant));
        for ((x, y), (low, high)) in points.iter().zip(measured.low.iter().zip(&measured.high)) {
            let curve = format!("{} measured", variant.name());
            csv_line(csv, stage, &curve, (*x, *y), Some((*low, *high)));
        }
    }
    flags(scene, &panel, &findings, "measured", csv);
}

fn draw_official(
    scene: &mut Scene,
    panel: Panel,
    official: &Official,
    stage: Stage,
    csv: &mut String,
) -> Result<(), Error> {
    let curves: Vec<(Variant, &Curve)> =
        Variant::MODELS.into_iter().filter_map(|v| Some((v, official.curve(stage, v)?))).collect();
    let top = curves.iter().map(|(_, c)| c.top()).fold(0.0, f64::max);
    let panel = Panel { x_max: 131_072.0, y_max: 1.08 * top, ..panel };
    let findings = Findings::official(official, stage);
    let y_label = "US$ per million tokens";
    panel.axes(scene, stage.name(), &findings.summary(), y_label);
    for (variant, curve) in curves {
        scene.curve(&panel.all(curve.points()), official_stroke(variant));
        for point in curve.points() {
            csv_line(csv, stage, &format!("{} official", variant.name()), *point, None);
        }
        // A device with the arithmetic of the H800, as the H200, would lie on the official curve.
        let device = Peaks::MI355X;
        let mut points = Vec::new();
        for context in (0..=131_072).step_by(2048) {
            let cost = project(&device, variant, stage, context, Batch::Production)?;
            points.push((context as f64, cost.usd_per_mtok(PRICE_PER_HOUR)));
        }
        let stroke = projected_stroke(variant);
        let points_px = panel.all(&points);
        scene.curve(&points_px, Stroke { marker: None, ..stroke });
        let marked: Vec<_> = points_px.into_iter().step_by(9).collect();
        scene.curve(&marked, Stroke { width: 0, ..stroke });
        for point in points {
            let curve = format!("{} projection {}", variant.name(), device.name);
            csv_line(csv, stage, &curve, point, None);
        }
    }
    flags(scene, &panel, &findings, "official", csv);
    Ok(())
}

fn flags(scene: &mut Scene, panel: &Panel, findings: &Findings, of: &str, csv: &mut String) {
    let mut flags = Vec::new();
    if let Some(knee) = findings.knee {
        let text = format!("knee of V3.2-Exp at {:.0} tokens", knee.x);
        flags.push(Flag { x: knee.x, y: knee.y, text });
        csv_line(csv, findings.stage, &format!("knee {of}"), (knee.x, knee.y), None);
    }
    if let Some((x, y)) = findings.crossover.zip(findings.crossover_y) {
        let start =
            findings.at_the_start.map_or(String::new(), |at| format!("; {}", advantage(at)));
        let text = format!("crossover at {x:.0}{start}");
        flags.push(Flag { x, y, text });
        csv_line(csv, findings.stage, &format!("crossover {of}"), (x, y), None);
    }
    panel.flags(scene, flags);
}

pub(super) fn csv_line(
    csv: &mut String,
    stage: Stage,
    curve: &str,
    at: (f64, f64),
    band: Option<(f64, f64)>,
) {
    let (x, y) = at;
    let band = band.map_or(",".into(), |(low, high)| format!("{low},{high}"));
    // Writing to a String cannot fail.
    let _ = writeln!(csv, "{},{curve},{x},{y},{band}", stage.name());
}
