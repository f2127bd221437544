//! Panels of what sparse attention saves: the dense cost over the sparse one, measured and published on one axis. The
//! context is drawn by its logarithm, since the curves bend and cross at its beginning.

use super::cost_vs_context::csv_line;
use super::panel::{HEAD, Panel, SMALL, Swatch, colors, nice_step, ticks};
use super::scene::{Align, At, Marker, Scene, Stroke};
use crate::Stage;
use crate::curve::Curve;
use crate::findings::tokens;

/// The curves, by the names they have in legends and tables.
const CURVES: [&str; 2] = ["measured", "official"];
/// Contexts of the table, a row of which stands below its axis: the powers of two from here on.
const SHORTEST: f64 = 1024.0;
/// Points of a published curve between two powers of two.
const STEPS: i32 = 8;

/// The curve of each of [`CURVES`].
fn stroke(curve: usize) -> Stroke {
    match curve {
        0 => Stroke { color: colors::GREEN, width: 3, dash: None, marker: Some(Marker::Disc) },
        _ => Stroke { color: colors::BLACK, width: 3, dash: Some((18.0, 9.0)), marker: None },
    }
}

/// What the legend of the panels says.
pub(super) fn legend_entries() -> Vec<(Swatch, String)> {
    let words = ["measured, this layer", "official, the whole model"];
    words.into_iter().enumerate().map(|(i, w)| (Swatch::Line(stroke(i)), w.into())).collect()
}

/// Dense over sparse where both curves are, at this context. The published curves end a token before 128K.
fn ratio((dense, sparse): &(Curve, Curve), x: f64) -> Option<f64> {
    let end = dense.end().min(sparse.end());
    let x = if x > end && x < end * 1.001 { end } else { x };
    let (dense, sparse) = (dense.at(x)?, sparse.at(x)?);
    (sparse > 0.0).then(|| dense / sparse)
}

/// The points of a pair's ratio: where it was measured, or close together where lines are known.
fn points(pair: &(Curve, Curve), measured: bool) -> Vec<(f64, f64)> {
    let (from, to) = (pair.0.start().max(pair.1.start()), pair.0.end().min(pair.1.end()));
    let contexts: Vec<f64> = match measured {
        true => pair.0.points().iter().map(|(x, _)| *x).collect(),
        false => {
            let first = SHORTEST.max(from);
            let steps = (0..64 * STEPS).map(|i| first * 2f64.powf(f64::from(i) / f64::from(STEPS)));
            steps.take_while(|x| *x < to).chain([to]).collect()
        }
    };
    let within = contexts.into_iter().filter(|x| (from.max(1.0)..=to).contains(x));
    within.filter_map(|x| Some((x, ratio(pair, x)?))).collect()
}

/// Draws the panel of a stage: dense and sparse costs, measured and published, of which each may be missing.
pub(super) fn draw(
    scene: &mut Scene,
    panel: Panel,
    stage: Stage,
    pairs: [Option<(Curve, Curve)>; 2],
    csv: &mut String,
) {
    let drawn: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(i, pair)| pair.as_ref().map_or(Vec::new(), |pair| points(pair, i == 0)))
        .collect();
    let all = || drawn.iter().flatten();
    let first = all().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let last = all().map(|(x, _)| *x).fold(0.0, f64::max);
    if !(first >= 1.0 && last > first) {
        panel.empty(scene, &format!("no costs of both models: {}", stage.name()));
        return;
    }
    let y_max = 1.08 * all().map(|(_, y)| *y).fold(1.0, f64::max);
    // The panel's axis is that of the logarithm, from the first context on.
    let panel = Panel { x_max: (last / first).log2(), y_max, ..panel };
    let at = |(x, y): (f64, f64)| -> At { panel.px(((x / first).log2(), y)) };
    let (bottom, right) = (panel.top + panel.height, panel.left + panel.width);
    let step = nice_step(y_max);
    for y in ticks(y_max, step) {
        let (_, y_at) = at((first, y));
        scene.line(&[(panel.left, y_at), (right, y_at)], colors::PALE, 1);
        let label = format!("{y:.*}×", usize::from(step < 1.0));
        scene.text((panel.left - 10.0, y_at), SMALL, colors::BLACK, Align::Right, &label);
    }
    let (_, even) = at((first, 1.0));
    scene.line(&[(panel.left, even), (right, even)], colors::GREY, 2);
    let powers: Vec<f64> =
        (0..64).map(|i| 2f64.powi(i)).filter(|x| (first..=last).contains(x)).collect();
    for (row, name) in CURVES.iter().enumerate() {
        let y = bottom + 84.0 + 28.0 * row as f64;
        scene.text((panel.left - 34.0, y), SMALL, stroke(row).color, Align::Right, name);
    }
    for x in powers {
        let (x_at, _) = at((x, 0.0));
        scene.line(&[(x_at, panel.top), (x_at, bottom)], colors::PALE, 1);
        scene.line(&[(x_at, bottom), (x_at, bottom + 6.0)], colors::GREY, 1);
        scene.text((x_at, bottom + 20.0), SMALL, colors::BLACK, Align::Middle, &tokens(x));
        for (row, pair) in pairs.iter().enumerate() {
            let Some(ratio) = pair.as_ref().and_then(|pair| ratio(pair, x)) else { continue };
            let place = (x_at, bottom + 84.0 + 28.0 * row as f64);
            scene.text(place, SMALL, stroke(row).color, Align::Middle, &format!("{ratio:.2}"));
        }
    }
    let below = (panel.left + panel.width / 2.0, bottom + 48.0);
    scene.text(below, SMALL, colors::BLACK, Align::Middle, "context (tokens, K = 1024)");
    scene.line(&[(panel.left, panel.top), (panel.left, bottom), (right, bottom)], colors::GREY, 2);
    scene.turned_text(
        (panel.left - 88.0, panel.top + panel.height / 2.0),
        SMALL,
        colors::BLACK,
        "dense over sparse",
    );
    let head = (panel.left, panel.top - 20.0);
    scene.text(head, HEAD, colors::BLACK, Align::Left, stage.name());
    for (i, points) in drawn.iter().enumerate() {
        let px: Vec<At> = points.iter().copied().map(at).collect();
        scene.curve(&px, stroke(i));
        for point in points {
            csv_line(csv, stage, &format!("dense over sparse {}", CURVES[i]), *point, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_where_both_curves_are() {
        let curve = |points: &[(f64, f64)]| Curve::new(points.to_vec()).unwrap();
        let dense = curve(&[(1024.0, 1.0), (4096.0, 4.0), (8192.0, 8.0)]);
        let pair = (dense, curve(&[(2048.0, 2.0), (4096.0, 2.0)]));
        assert_eq!(points(&pair, true), [(4096.0, 2.0)]);
        let close = points(&pair, false);
        assert_eq!(close.len(), STEPS as usize + 1);
        assert_eq!((close[0], close[STEPS as usize]), ((2048.0, 1.0), (4096.0, 2.0)));
        assert_eq!((ratio(&pair, 1500.0), ratio(&pair, 5000.0)), (None, None));
        assert_eq!(ratio(&pair, 4097.0), Some(2.0));
    }
}
