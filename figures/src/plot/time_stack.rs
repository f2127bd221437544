//! Picture: where the time of a token goes, by stage of the layer, over the context.

use std::collections::BTreeMap;
use std::fmt::Write;

use plotters::style::RGBColor;

use super::cost_vs_context::{cost_rows, size};
use super::panel::{Panel, Swatch, TITLE, colors, digits, fill, footer, footer_height, legend};
use super::scene::{Align, Scene};
use super::{Options, Picture, cell, mixture, provenance, spoken};
use crate::findings::tokens;
use crate::{Error, Noise, Row, Stage, Variant};

const NAME: &str = "time_stack";

/// What the samples hold beyond the stages.
const REST: &str = "rest of the call";

/// Known stages, from the bottom of the stack to its top.
const KNOWN: [(&str, RGBColor); 8] = [
    ("experts", colors::PURPLE),
    ("feed_forward", colors::PURPLE),
    ("norms", colors::GREY),
    ("projections", colors::SKY),
    ("indexer", colors::ORANGE),
    ("top_k", colors::YELLOW),
    ("attention", colors::BLUE),
    (REST, colors::PALE),
];

/// Microseconds per token of each stage at each context.
type Stack = BTreeMap<u64, BTreeMap<String, f64>>;

/// The picture `time_stack`, from the rows of the bench `cost_vs_context` that hold the seconds of each
/// stage.
pub(super) fn time_stack(rows: &[Row], options: &Options) -> Result<Picture, Error> {
    let used: Vec<&Row> = cost_rows(rows).filter(|row| row.stages_s().is_some()).collect();
    let mixed = mixture(NAME, &used, options.allow_mixed)?;
    let mut stacks: BTreeMap<(Stage, Variant), Stack> = BTreeMap::new();
    for row in &used {
        let what = row.what();
        let context = size(row, "context")?;
        let stack = stacks.entry((what.stage, what.variant)).or_default();
        if stack.insert(context, layers_of(row)?).is_some() {
            let (stage, variant) = (what.stage.name(), what.variant.name());
            let point = format!("{stage} {variant} at context {context}");
            return Err(Error::Ambiguous { picture: NAME, point });
        }
    }
    stacks.retain(|_, stack| stack.len() > 1);
    if stacks.is_empty() {
        let expected = "rows of cost_vs_context with stages_s at two contexts or more";
        return Err(Error::Nothing { picture: NAME, expected });
    }

    let names = names(&stacks);
    let mut foot = provenance(&used, mixed);
    foot.insert(0, "Dense and sparse of a stage have one vertical axis.".into());
    foot.extend(Noise::of(&used, &[]).map(|noise| noise.to_string()));
    let width = 1600.0;
    let height = 1230.0 + footer_height(width, &foot);
    let mut scene = Scene::new(width as u32, height as u32);
    let title = "Where the time of a token goes, this layer on this device";
    scene.text((30.0, 38.0), TITLE, colors::BLACK, Align::Left, title);
    let entries: Vec<(Swatch, String)> = names.iter().map(|name| entry(&names, name)).collect();
    legend(&mut scene, (30.0, 92.0), 1570.0, &entries);
    let mut csv = String::from("panel,variant,context_tokens,stage,us_per_token\n");
    for (line, stage) in Stage::ALL.into_iter().enumerate() {
        let of_stage = stacks.iter().filter(|((of, _), _)| *of == stage);
        let highest = of_stage.flat_map(|(_, stack)| stack.values().map(total)).fold(0.0, f64::max);
        for (column, variant) in Variant::MODELS.into_iter().enumerate() {
            let panel = Panel {
                left: 135.0 + 795.0 * column as f64,
                top: 205.0 + 530.0 * line as f64,
                width: 640.0,
                height: 400.0,
                x_max: 1.0,
                y_max: 1.06 * highest,
            };
            let head = format!("{}, {}", stage.name(), spoken(variant));
            match stacks.get(&(stage, variant)) {
                None => panel.empty(&mut scene, &format!("no rows with stages: {head}")),
                Some(stack) => {
                    draw_stack(&mut scene, panel, &head, stack, &names);
                    csv_lines(&mut csv, stage, variant, stack);
                }
            }
        }
    }
    footer(&mut scene, 1230.0, &foot);
    scene.finish(NAME, csv)
}

/// Microseconds per token of one row by stage; what the median holds beyond them is the rest.
fn layers_of(row: &Row) -> Result<BTreeMap<String, f64>, Error> {
    let per_token = 1e6 / size(row, "tokens")? as f64;
    let stages = row.stages_s().into_iter().flatten();
    let mut layers: BTreeMap<String, f64> =
        stages.map(|(name, seconds)| (name.clone(), seconds * per_token)).collect();
    let measured: f64 = layers.values().sum();
    let rest = row.timing().median_s() * per_token - measured;
    layers.insert(REST.into(), rest.max(0.0));
    Ok(layers)
}

/// Every stage that occurs with a time above 0: what grows with no context lowest, others by name before the rest.
fn names(stacks: &BTreeMap<(Stage, Variant), Stack>) -> Vec<String> {
    let mut found: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, us) in stacks.values().flat_map(BTreeMap::values).flatten() {
        *found.entry(name).or_default() += us;
    }
    let mut names: Vec<String> =
        found.into_iter().filter(|(_, us)| *us > 0.0).map(|(name, _)| name.into()).collect();
    let rank = |name: &String| {
        let place = KNOWN.iter().position(|(known, _)| known == name);
        (place.unwrap_or(KNOWN.len() - 2), name.clone())
    };
    names.sort_by_key(rank);
    names
}

/// A known stage has its colour; others take turns with what is left.
fn color(names: &[String], name: &str) -> RGBColor {
    if let Some((_, color)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return *color;
    }
    let place = names.iter().position(|other| other == name).unwrap_or(0);
    [colors::GREEN, colors::VERMILION][place % 2]
}

fn entry(names: &[String], name: &str) -> (Swatch, String) {
    (Swatch::Fill(color(names, name)), name.replace('_', " "))
}

/// Microseconds per token of all stages together.
fn total(layers: &BTreeMap<String, f64>) -> f64 {
    layers.values().sum()
}

fn draw_stack(scene: &mut Scene, panel: Panel, head: &str, stack: &Stack, names: &[String]) {
    let x_max = stack.keys().copied().max().unwrap_or(1) as f64;
    let panel = Panel { x_max, ..panel };
    let note = stack.iter().next_back().map_or(String::new(), |(x, layers)| {
        format!("{} µs at {}", digits(total(layers)), tokens(*x as f64))
    });
    let mut low: Vec<(f64, f64)> = stack.keys().map(|x| (*x as f64, 0.0)).collect();
    let mut areas = Vec::new();
    for name in names {
        let mut high = low.clone();
        for (point, layers) in high.iter_mut().zip(stack.values()) {
            point.1 += layers.get(name).copied().unwrap_or(0.0);
        }
        areas.push((name, low, high.clone()));
        low = high;
    }
    panel.axes(scene, head, &note, "microseconds per token");
    for (name, low, high) in areas {
        let (low, high) = (panel.all(&low), panel.all(&high));
        fill(scene, &low, &high, color(names, name));
        scene.line(&high, colors::BLACK, 1);
    }
    // Small ticks on the axis say where the measurements are.
    for x in stack.keys() {
        let (x, y) = panel.px((*x as f64, 0.0));
        scene.line(&[(x, y - 6.0), (x, y)], colors::BLACK, 2);
    }
}

fn csv_lines(csv: &mut String, stage: Stage, variant: Variant, stack: &Stack) {
    for (context, layers) in stack {
        for (name, us) in layers {
            // Writing to a String cannot fail.
            let (stage, variant, name) = (stage.name(), variant.name(), cell(name));
            let _ = writeln!(csv, "{stage},{variant},{context},{name},{us}");
        }
    }
}
