//! A picture as a list of shapes in pixels, and the one function that paints it.
//!
//! Pictures are laid out here by pixel, not by plotters' chart builder: it cannot put ticks on
//! multiples of 32K, nor a legend outside the axes.

use std::sync::OnceLock;

use dsa_files::printable;
use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{
    DrawingArea, DrawingBackend, IntoDrawingArea, RGBAColor, RGBColor, SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontStyle, FontTransform, IntoFont, ShapeStyle, TextStyle, register_font,
};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use super::Picture;
use crate::Error;

/// Where a text's anchor is, sideways; it is always in the middle up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Middle,
    Right,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stroke {
    pub color: RGBColor,
    /// Pixels; 0 draws the markers only.
    pub width: u32,
    /// Pixels drawn and pixels left out, in turn; None for a solid line.
    pub dash: Option<(f64, f64)>,
    pub marker: Option<Marker>,
}

/// What marks the points of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    Disc,
    Square,
    Triangle,
}

#[derive(Debug)]
enum Shape {
    Line(Vec<(i32, i32)>, RGBAColor, u32),
    Polygon(Vec<(i32, i32)>, RGBAColor),
    Circle((i32, i32), i32, RGBAColor, u32),
    Text((i32, i32), String, TextLook),
}

#[derive(Debug)]
struct TextLook {
    size: u32,
    color: RGBColor,
    align: Align,
    turned: bool,
}

/// A picture being put together. Pixels count from the top left.
#[derive(Debug)]
pub(crate) struct Scene {
    width: u32,
    height: u32,
    shapes: Vec<Shape>,
}

pub(crate) type At = (f64, f64);

impl Scene {
    pub fn new(width: u32, height: u32) -> Self {
        Scene { width, height, shapes: Vec::new() }
    }

    pub fn width(&self) -> f64 {
        f64::from(self.width)
    }

    pub fn text(&mut self, at: At, size: u32, color: RGBColor, align: Align, text: &str) {
        let look = TextLook { size, color, align, turned: false };
        self.shapes.push(Shape::Text(pixel(at), shown(text), look));
    }

    /// Text that reads from the bottom up, its middle at `at`.
    pub fn turned_text(&mut self, at: At, size: u32, color: RGBColor, text: &str) {
        let look = TextLook { size, color, align: Align::Middle, turned: true };
        self.shapes.push(Shape::Text(pixel(at), shown(text), look));
    }

    pub fn line(&mut self, points: &[At], color: RGBColor, width: u32) {
        let points = points.iter().copied().map(pixel).collect();
        self.shapes.push(Shape::Line(points, color.to_rgba(), width));
    }

    pub fn polygon(&mut self, points: &[At], color: RGBColor, opacity: f64) {
        let points = points.iter().copied().map(pixel).collect();
        self.shapes.push(Shape::Polygon(points, color.mix(opacity)));
    }

    pub fn rectangle(&mut self, from: At, to: At, color: RGBColor, opacity: f64) {
        self.polygon(&[from, (to.0, from.1), to, (from.0, to.1)], color, opacity);
    }

    pub fn ring(&mut self, at: At, radius: i32, color: RGBColor) {
        self.shapes.push(Shape::Circle(pixel(at), radius, color.to_rgba(), 2));
    }

    /// A curve through the points, dashed if the stroke says so, and then its markers.
    pub fn curve(&mut self, points: &[At], stroke: Stroke) {
        match stroke.dash {
            _ if stroke.width == 0 => {}
            None => self.line(points, stroke.color, stroke.width),
            Some((on, off)) => {
                for piece in dashes(points, on, off) {
                    self.line(&piece, stroke.color, stroke.width);
                }
            }
        }
        if let Some(marker) = stroke.marker {
            for at in points {
                self.marker(*at, marker, stroke.color);
            }
        }
    }

    pub fn marker(&mut self, (x, y): At, marker: Marker, color: RGBColor) {
        let r = 6.0;
        match marker {
            Marker::Disc => {
                self.shapes.push(Shape::Circle(pixel((x, y)), 6, color.to_rgba(), 0));
            }
            Marker::Square => self.rectangle((x - r, y - r), (x + r, y + r), color, 1.0),
            Marker::Triangle => {
                self.polygon(&[(x - 7.0, y + r), (x, y - 7.0), (x + 7.0, y + r)], color, 1.0);
            }
        }
    }

    /// The picture as the bytes of its three files.
    pub fn finish(&self, stem: &'static str, csv: String) -> Result<Picture, Error> {
        let size = (self.width, self.height);
        let mut svg = String::new();
        self.paint(&SVGBackend::with_string(&mut svg, size).into_drawing_area())?;
        let png = png(&svg)?;
        Ok(Picture { stem, svg, png, csv })
    }

    fn paint<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), Error> {
        register()?;
        area.fill(&plotters::style::WHITE)?;
        for shape in &self.shapes {
            match shape {
                Shape::Line(points, color, width) => {
                    let style = ShapeStyle::from(color).stroke_width(*width);
                    area.draw(&PathElement::new(points.clone(), style))?;
                }
                Shape::Polygon(points, color) => area.draw(&Polygon::new(points.clone(), color))?,
                Shape::Circle(at, radius, color, width) => {
                    let style = match width {
                        0 => ShapeStyle::from(color).filled(),
                        width => ShapeStyle::from(color).stroke_width(*width),
                    };
                    area.draw(&Circle::new(*at, *radius, style))?;
                }
                Shape::Text(at, text, look) => {
                    area.draw(&Text::new(text.clone(), *at, look.style()))?;
                }
            }
        }
        area.present()?;
        Ok(())
    }
}

impl TextLook {
    fn style(&self) -> TextStyle<'_> {
        let side = match self.align {
            Align::Left => HPos::Left,
            Align::Middle => HPos::Center,
            Align::Right => HPos::Right,
        };
        let mut font = ("sans-serif", self.size).into_font();
        if self.turned {
            font = font.transform(FontTransform::Rotate270);
        }
        TextStyle::from(font).color(&self.color).pos(Pos::new(side, VPos::Center))
    }
}

/// About how wide a text comes out, in pixels; a little too wide rather than too narrow, because
/// an SVG is shown with the reader's own sans-serif font.
pub(crate) fn text_width(text: &str, size: u32) -> f64 {
    0.5 * f64::from(size) * text.chars().count() as f64
}

/// Ubuntu Light, which ships inside epaint_default_fonts 0.37, so that a bare machine can draw.
fn register() -> Result<(), Error> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    let done = DONE.get_or_init(|| register_font("sans-serif", FontStyle::Normal, font).is_ok());
    if *done { Ok(()) } else { Err(Error::Draw("the font of the pictures is unreadable".into())) }
}

/// Text in a picture may come from a file: nothing that a viewer acts on, nor what XML 1.0 has no way to
/// write (controls and the two noncharacters).
fn shown(text: &str) -> String {
    printable(text, 300).replace(['\u{fffe}', '\u{ffff}'], "?")
}

/// An SVG as a PNG, its text in the font that ships with the program.
fn png(svg: &str) -> Result<Vec<u8>, Error> {
    let failed = |error: String| Error::Draw(error);
    let mut options = Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| face.families.first()).cloned();
    let (family, _) = family.ok_or_else(|| failed("the font has no name".into()))?;
    fonts.set_sans_serif_family(family);
    let tree = Tree::from_str(svg, &options).map_err(|error| failed(error.to_string()))?;
    let size = tree.size().to_int_size();
    let mut pixels = Pixmap::new(size.width(), size.height())
        .ok_or_else(|| failed(format!("a picture of {size:?}, expected pixels")))?;
    resvg::render(&tree, Transform::identity(), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| failed(error.to_string()))
}

/// The nearest pixel. Pictures are a few thousand pixels large; a place far outside is held near them,
/// because plotters would walk there pixel by pixel.
fn pixel((x, y): At) -> (i32, i32) {
    let near = |v: f64| v.round().clamp(-5_000.0, 50_000.0) as i32;
    (near(x), near(y))
}

/// Cuts a line into pieces of `on` pixels with gaps of `off` pixels, around its corners too.
fn dashes(points: &[At], on: f64, off: f64) -> Vec<Vec<At>> {
    // How far along the line each of its points is.
    let mut along = vec![0.0];
    for (pair, i) in points.windows(2).zip(0..) {
        let step: f64 = (pair[1].0 - pair[0].0).hypot(pair[1].1 - pair[0].1);
        along.push(along[i] + step);
    }
    let length = along[along.len() - 1];
    if !length.is_finite() {
        return Vec::new();
    }
    let count = (length / (on + off)).ceil().min(10_000.0) as usize;
    (0..count)
        .map(|i| {
            let from = i as f64 * (on + off);
            let to = (from + on).min(length);
            let corners = along.iter().zip(points);
            let within = corners.filter(|(at, _)| (from..to).contains(*at) && **at > from);
            let ends = (place(points, &along, from), place(points, &along, to));
            let middle = within.map(|(_, corner)| *corner);
            ends.0.into_iter().chain(middle).chain(ends.1).collect()
        })
        .collect()
}

/// The point so many pixels along a line.
fn place(points: &[At], along: &[f64], at: f64) -> Option<At> {
    let i = along.windows(2).position(|pair| pair[0] <= at && at <= pair[1])?;
    let share = (at - along[i]) / (along[i + 1] - along[i]).max(f64::MIN_POSITIVE);
    let (a, b) = (points[i], points[i + 1]);
    Some((a.0 + share * (b.0 - a.0), a.1 + share * (b.1 - a.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_cover_their_share() {
        let pieces = dashes(&[(0.0, 0.0), (95.0, 0.0), (95.0, 105.0)], 10.0, 10.0);
        assert_eq!(pieces.len(), 10);
        assert_eq!(pieces[1], [(20.0, 0.0), (30.0, 0.0)]);
        let length =
            |p: &Vec<At>| p.windows(2).map(|w| (w[1].0 - w[0].0) + (w[1].1 - w[0].1)).sum::<f64>();
        assert!((pieces.iter().map(length).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!(pieces[4].len() == 3 || pieces[5].len() == 2, "{:?}", &pieces[4..6]);
    }

    #[test]
    fn a_line_that_leads_nowhere_ends() {
        assert!(dashes(&[(0.0, 0.0), (f64::NAN, 1.0)], 10.0, 10.0).is_empty());
        assert!(dashes(&[(0.0, 0.0), (f64::INFINITY, 1.0)], 10.0, 10.0).is_empty());
        assert!(dashes(&[], 10.0, 10.0).is_empty() && dashes(&[(1.0, 1.0)], 1.0, 1.0).is_empty());
        assert!(dashes(&[(0.0, 0.0), (1e300, 1.0)], 10.0, 10.0).len() <= 10_000);
        assert_eq!(pixel((f64::INFINITY, f64::NAN)), (50_000, 0));
    }
}
