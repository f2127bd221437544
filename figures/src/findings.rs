//! What a pair of cost curves says, in numbers: knee, crossover, slopes.

use std::fmt;

use crate::Stage;
use crate::curve::{Curve, Knee, slope_ratio};
use crate::official::Official;
use crate::{Error, Variant};

/// Points at which a drawn curve is sampled before its knee is looked for.
const SAMPLES: usize = 1025;

/// The numbers of one panel: dense (V3.1) against sparse (V3.2) in one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// Prefill or decode.
    pub stage: Stage,
    /// Where the sparse curve bends; x in tokens, y in the curves' unit.
    pub knee: Option<Knee>,
    /// Last context at which dense and sparse cost the same, tokens.
    pub crossover: Option<f64>,
    /// The unit both cost there.
    pub crossover_y: Option<f64>,
    /// Slope of dense over slope of sparse after its knee.
    pub slope_ratio: Option<f64>,
    /// R² of a straight line through the dense curve.
    pub dense_r2: Option<f64>,
    /// Smallest context that both curves have, and dense over sparse there.
    pub at_the_start: Option<(f64, f64)>,
    /// Largest context that both curves have, and dense over sparse there.
    pub at_the_end: Option<(f64, f64)>,
}

impl Findings {
    /// Looks at the curves that there are. Measured curves are taken point by point.
    pub fn new(stage: Stage, dense: Option<&Curve>, sparse: Option<&Curve>) -> Self {
        let both = dense.zip(sparse);
        let crossover = both.and_then(|(d, s)| s.crossovers(d).last().copied());
        let at_the = |x: fn(&Curve, &Curve) -> f64| {
            both.and_then(|(d, s)| Some((x(d, s), d.at(x(d, s))? / s.at(x(d, s))?)))
        };
        Findings {
            stage,
            knee: sparse.and_then(Curve::knee),
            crossover,
            crossover_y: crossover.zip(sparse).and_then(|(x, s)| s.at(x)),
            slope_ratio: both.and_then(|(d, s)| slope_ratio(d, s)),
            dense_r2: dense.map(|d| d.line().r2),
            at_the_start: at_the(|d, s| d.start().max(s.start())),
            at_the_end: at_the(|d, s| d.end().min(s.end())),
        }
    }

    /// The findings of the paper's figure.
    pub fn official(official: &Official, stage: Stage) -> Self {
        let curve = |variant| official.curve(stage, variant).map(|c| c.sampled(SAMPLES));
        let (dense, sparse) = (curve(Variant::V31Terminus), curve(Variant::V32Exp));
        Findings::new(stage, dense.as_ref(), sparse.as_ref())
    }

    /// Ratios in one short line, for the head of a panel. Empty when there is nothing to say.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.at_the_end.map(advantage));
        if let Some(ratio) = self.slope_ratio {
            parts.push(format!("slopes {ratio:.1} : 1"));
        }
        parts.join(", ")
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
        let knee = or_none(self.knee.map(|k| format!("{:.0} tokens", k.x)));
        let crossover = or_none(self.crossover.map(|x| format!("{x:.0} tokens")));
        write!(f, "{}: knee {knee}, crossover {crossover}", self.stage.name())?;
        if let Some(r2) = self.dense_r2 {
            write!(f, ", dense R2 {r2:.4}")?;
        }
        if let Some(start) = self.at_the_start {
            write!(f, ", {}", advantage(start))?;
        }
        let summary = self.summary();
        if summary.is_empty() { Ok(()) } else { write!(f, ", {summary}") }
    }
}

/// "sparse 3.56x cheaper at 128K", of a context and dense over sparse there.
pub(crate) fn advantage((context, ratio): (f64, f64)) -> String {
    let (word, ratio) = if ratio >= 1.0 { ("cheaper", ratio) } else { ("dearer", 1.0 / ratio) };
    format!("sparse {ratio:.2}x {word} at {}", tokens(context))
}

/// A number of tokens with a K for 1024, one decimal where it is needed: "128K", "4.8K", "512".
pub fn tokens(count: f64) -> String {
    let k = count / 1024.0;
    if count < 1024.0 {
        format!("{count:.0}")
    } else if (k - k.round()).abs() < 0.05 {
        format!("{k:.0}K")
    } else {
        format!("{k:.1}K")
    }
}

/// The findings of every stage of the paper's figure.
pub fn official_findings() -> Result<Vec<Findings>, Error> {
    let official = Official::load()?;
    Ok(Stage::ALL.iter().map(|stage| Findings::official(&official, *stage)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_figure_in_words() {
        let text: Vec<String> =
            official_findings().unwrap().iter().map(ToString::to_string).collect();
        assert!(text[0].starts_with("prefill: knee 6747 tokens, crossover 106"), "{}", text[0]);
        assert!(text[1].contains("sparse 8.65x cheaper at 128K, slopes 19.8 : 1"), "{}", text[1]);
    }

    #[test]
    fn half_a_panel_is_no_error() {
        let curve = Curve::new(vec![(0.0, 1.0), (10.0, 2.0)]).unwrap();
        let found = Findings::new(Stage::Decode, None, Some(&curve));
        assert_eq!(found.to_string(), "decode: knee none, crossover none");
        assert_eq!([512.0, 2105.0, 131_071.0].map(tokens), ["512", "2.1K", "128K"]);
    }
}
