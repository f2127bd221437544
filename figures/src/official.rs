//! The cost figure of the DeepSeek-V3.2-Exp paper, as points.
//!
//! The four curves were read from the vector paths of the paper's figure (its Figure 3); they are
//! straight between these points. The paper calls them the cost of its service on H800 at 2 US$
//! per GPU-hour.

use std::collections::BTreeMap;

use crate::curve::Curve;
use crate::{Error, Stage, Variant};

/// The points: phase, model, position in tokens, US$ per million tokens; `#` starts a comment.
pub const CSV: &str = include_str!("../data/official_cost_curve.csv");

/// Price of a GPU-hour in the figure, US$.
pub const PRICE_PER_HOUR: f64 = 2.0;

/// The four curves: US$ per million tokens against the token's position.
#[derive(Debug, Clone, PartialEq)]
pub struct Official {
    curves: BTreeMap<(Stage, Variant), Curve>,
}

impl Official {
    /// The curves that ship with the crate.
    pub fn load() -> Result<Self, Error> {
        Official::parse(CSV)
    }

    /// Reads curves from text in the format of [`CSV`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut points: BTreeMap<(Stage, Variant), Vec<(f64, f64)>> = BTreeMap::new();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        for line in lines.skip(1) {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let point = match cells[..] {
                [stage, variant, position, usd] => point(stage, variant, position, usd),
                _ => None,
            };
            let expected = "prefill|decode,V3.1-Terminus|V3.2-Exp,position,US$ per million tokens";
            let (which, at) =
                point.ok_or_else(|| Error::value("official curve", line, expected))?;
            points.entry(which).or_default().push(at);
        }
        let curve = |(which, points)| Ok((which, Curve::new(points)?));
        Ok(Official { curves: points.into_iter().map(curve).collect::<Result<_, Error>>()? })
    }

    /// One of the curves, if the file has it.
    pub fn curve(&self, stage: Stage, variant: Variant) -> Option<&Curve> {
        self.curves.get(&(stage, variant))
    }
}

type Point = ((Stage, Variant), (f64, f64));

fn point(stage: &str, variant: &str, position: &str, usd: &str) -> Option<Point> {
    let stage = Stage::ALL.into_iter().find(|s| s.name() == stage)?;
    let variant = Variant::MODELS.into_iter().find(|v| v.name() == variant)?;
    Some(((stage, variant), (position.parse().ok()?, usd.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::slope_ratio;

    /// Knee, crossover and slope ratio of the figure, as a reader finds them with a ruler.
    #[test]
    fn knees_and_crossovers() {
        let official = Official::load().unwrap();
        let cases = [(Stage::Prefill, 6747.0, 10647.0, 6.7), (Stage::Decode, 2105.0, 4871.0, 19.8)];
        for (stage, knee, crossover, ratio) in cases {
            let dense = official.curve(stage, Variant::V31Terminus).unwrap();
            let sparse = official.curve(stage, Variant::V32Exp).unwrap().sampled(1025);
            assert_eq!(dense.sampled(1025).knee(), None);
            assert!((sparse.knee().unwrap().x - knee).abs() < 1.0, "{:?}", sparse.knee());
            let crossings = official.curve(stage, Variant::V32Exp).unwrap().crossovers(dense);
            assert_eq!(crossings.len(), 1);
            assert!((crossings[0] - crossover).abs() < 2.0, "{crossings:?}");
            let found = slope_ratio(dense, &sparse).unwrap();
            assert!((found / ratio - 1.0).abs() < 0.01, "{found}");
        }
    }

    #[test]
    fn a_bad_line_is_refused() {
        for bad in ["prefill,V3.3,0,1", "prefill,V3.2-Exp,0", "prefill,V3.2-Exp,zero,1"] {
            assert!(Official::parse(&format!("header\n{bad}\n")).is_err());
        }
    }
}
