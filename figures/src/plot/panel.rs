//! Axes, legends and flags: what the pictures share.

use dsa_files::printable;
use plotters::style::RGBColor;

use super::scene::{Align, At, Scene, Stroke, text_width};
use crate::findings::tokens;

/// The colours of Okabe and Ito, which people who cannot tell red from green can tell apart.
pub(crate) mod colors {
    use plotters::style::RGBColor;

    pub const BLACK: RGBColor = RGBColor(0, 0, 0);
    pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
    pub const SKY: RGBColor = RGBColor(86, 180, 233);
    pub const GREEN: RGBColor = RGBColor(0, 158, 115);
    pub const YELLOW: RGBColor = RGBColor(240, 228, 66);
    pub const BLUE: RGBColor = RGBColor(0, 114, 178);
    pub const VERMILION: RGBColor = RGBColor(213, 94, 0);
    pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
    pub const GREY: RGBColor = RGBColor(85, 85, 85);
    pub const PALE: RGBColor = RGBColor(225, 225, 225);
}
use colors::{BLACK, GREY, PALE};

pub(crate) const TITLE: u32 = 34;
pub(crate) const HEAD: u32 = 26;
pub(crate) const BODY: u32 = 22;
pub(crate) const SMALL: u32 = 20;

/// A pair of axes from 0; the x axis is a context in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub x_max: f64,
    pub y_max: f64,
}

/// A place worth naming: a pole stands on it and carries a text.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    pub x: f64,
    pub y: f64,
    pub text: String,
}

impl Panel {
    pub fn px(&self, (x, y): (f64, f64)) -> At {
        let right = self.width * x / self.x_max;
        (self.left + right, self.top + self.height * (1.0 - y / self.y_max))
    }

    pub fn all(&self, points: &[(f64, f64)]) -> Vec<At> {
        points.iter().map(|p| self.px(*p)).collect()
    }

    /// Grid, ticks, labels, and a head above the panel: bold words left, small ones right.
    pub fn axes(&self, scene: &mut Scene, head: &str, note: &str, y_label: &str) {
        let bottom = self.top + self.height;
        let right = self.left + self.width;
        let step = context_step(self.x_max);
        for x in ticks(self.x_max, step) {
            let (at, _) = self.px((x, 0.0));
            scene.line(&[(at, self.top), (at, bottom)], PALE, 1);
            scene.line(&[(at, bottom), (at, bottom + 6.0)], GREY, 1);
            scene.text((at, bottom + 20.0), SMALL, BLACK, Align::Middle, &tokens(x));
        }
        let step = nice_step(self.y_max);
        for y in ticks(self.y_max, step) {
            let (_, at) = self.px((0.0, y));
            scene.line(&[(self.left, at), (right, at)], PALE, 1);
            let label = number(y, step);
            scene.text((self.left - 10.0, at), SMALL, BLACK, Align::Right, &label);
        }
        scene.line(&[(self.left, self.top), (self.left, bottom), (right, bottom)], GREY, 2);
        let below = (self.left + self.width / 2.0, bottom + 46.0);
        scene.text(below, SMALL, BLACK, Align::Middle, "context (tokens, K = 1024)");
        let beside = (self.left - 88.0, self.top + self.height / 2.0);
        scene.turned_text(beside, SMALL, BLACK, y_label);
        scene.text((self.left, self.top - 20.0), HEAD, BLACK, Align::Left, head);
        scene.text((right, self.top - 19.0), SMALL, GREY, Align::Right, note);
    }

    /// Flags: the leftmost has the tallest pole, so that no pole goes through a text.
    pub fn flags(&self, scene: &mut Scene, mut flags: Vec<Flag>) {
        flags.sort_by(|a, b| a.x.total_cmp(&b.x));
        for (level, flag) in flags.iter().enumerate() {
            let (x, y) = self.px((flag.x, flag.y));
            let top = self.top + 18.0 + 30.0 * level as f64;
            scene.line(&[(x, y), (x, top)], GREY, 1);
            scene.ring((x, y), 9, BLACK);
            let width = text_width(&flag.text, SMALL);
            let fits = x + 8.0 + width < self.left + self.width;
            let (from, align) = if fits { (x + 8.0, Align::Left) } else { (x - 8.0, Align::Right) };
            scene.text((from, top), SMALL, BLACK, align, &flag.text);
        }
    }

    /// The words of an empty panel.
    pub fn empty(&self, scene: &mut Scene, text: &str) {
        let middle = (self.left + self.width / 2.0, self.top + self.height / 2.0);
        scene.text(middle, BODY, GREY, Align::Middle, text);
    }
}

/// What stands before a legend's words.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Swatch {
    Line(Stroke),
    Fill(RGBColor),
}

/// A legend from left to right, broken into lines at `right`; gives back the y below it.
pub(crate) fn legend(
    scene: &mut Scene,
    (left, top): At,
    right: f64,
    entries: &[(Swatch, String)],
) -> f64 {
    let (mut x, mut y) = (left, top);
    for (swatch, text) in entries {
        let width = 60.0 + text_width(text, SMALL) + 34.0;
        if x > left && x + width > right {
            (x, y) = (left, y + 30.0);
        }
        match swatch {
            Swatch::Line(stroke) => {
                scene.curve(&[(x, y), (x + 48.0, y)], Stroke { marker: None, ..*stroke });
                if let Some(marker) = stroke.marker {
                    scene.marker((x + 24.0, y), marker, stroke.color);
                }
            }
            Swatch::Fill(color) => {
                let (from, to) = ((x + 10.0, y - 10.0), (x + 48.0, y + 10.0));
                let (low, high) = ([(from.0, to.1), (to.0, to.1)], [from, (to.0, from.1)]);
                fill(scene, &low, &high, *color);
            }
        }
        scene.text((x + 58.0, y), SMALL, BLACK, Align::Left, text);
        x += width;
    }
    y + 30.0
}

/// Fills between two lines over the same x, in pixels.
pub(crate) fn fill(scene: &mut Scene, low: &[At], high: &[At], color: RGBColor) {
    let outline: Vec<At> = low.iter().chain(high.iter().rev()).copied().collect();
    scene.polygon(&outline, color, 0.9);
}

/// Small grey lines at the foot of a picture; a long one is broken between words.
pub(crate) fn footer(scene: &mut Scene, top: f64, lines: &[String]) {
    let room = scene.width() - 60.0;
    let mut y = top;
    for line in wrapped(lines, room) {
        scene.text((30.0, y), SMALL, GREY, Align::Left, &line);
        y += 26.0;
    }
}

/// Height of a footer in pixels.
pub(crate) fn footer_height(width: f64, lines: &[String]) -> f64 {
    26.0 * wrapped(lines, width - 60.0).len() as f64 + 10.0
}

fn wrapped(lines: &[String], room: f64) -> Vec<String> {
    let mut out = Vec::new();
    for line in lines {
        let mut current = String::new();
        for word in line.split(' ') {
            // One word alone can be a line long where it comes from a file.
            let word = &printable(word, 100);
            if !current.is_empty() && text_width(&format!("{current} {word}"), SMALL) > room {
                out.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
        out.push(current);
    }
    out
}

/// 0, step, 2·step, … up to `max`. A hair of slack lets 131071 carry the tick of 131072. A step is chosen
/// for a dozen ticks; whatever it is, there are no more than 50.
pub(crate) fn ticks(max: f64, step: f64) -> impl Iterator<Item = f64> {
    let count = (max * 1.001 / step).floor().clamp(0.0, 50.0) as u32;
    (0..=count).map(move |i| f64::from(i) * step)
}

/// About three digits.
pub(crate) fn digits(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A power of two that gives three to six ticks.
fn context_step(max: f64) -> f64 {
    let fits = |step: &f64| max / step <= 6.0;
    (0..64).map(|power| 2f64.powi(power)).find(fits).unwrap_or(max)
}

/// 1, 2 or 5 times a power of ten, giving four to ten ticks.
pub(crate) fn nice_step(max: f64) -> f64 {
    let power = 10f64.powf((max / 5.0).log10().floor());
    let fits = |factor: &f64| max / (factor * power) <= 6.0;
    [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0) * power
}

/// A tick's number with as many decimals as its step needs; thousands of thousands as powers.
fn number(value: f64, step: f64) -> String {
    if !(1e-4..1e5).contains(&step) {
        return if value == 0.0 { "0".into() } else { format!("{value:.1e}") };
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_fall_on_round_places() {
        assert_eq!(context_step(131_072.0), 32_768.0);
        assert_eq!(ticks(131_071.0, 32_768.0).last(), Some(131_072.0));
        assert_eq!((context_step(5.0), context_step(2f64.powi(64))), (1.0, 2f64.powi(62)));
        for step in [0.0, f64::NAN, f64::INFINITY, 1e-300] {
            assert!(ticks(1e300, step).count() <= 51);
            assert!(ticks(f64::INFINITY, step).count() <= 51);
        }
        assert!([f64::NAN, f64::INFINITY].map(context_step).iter().all(|step| !step.is_normal()));
        assert_eq!(nice_step(2.2), 0.5);
        assert_eq!(nice_step(0.7), 0.2);
        assert_eq!(number(0.4, 0.2), "0.4");
        assert_eq!(number(150.0, 50.0), "150");
    }

    #[test]
    fn long_lines_are_broken() {
        let lines = wrapped(&["word ".repeat(40)], 400.0);
        assert!(lines.len() > 3);
        assert!(lines.iter().all(|line| text_width(line, SMALL) <= 400.0));
    }
}
