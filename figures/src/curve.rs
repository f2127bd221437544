//! Piecewise-linear curves: fits, the knee, crossovers.

use crate::Error;

/// By how much the slope falls at a knee, at least. A cost curve that merely leans is not one.
const KNEE_BEND: f64 = 2.0;

/// Fewest points in which a knee is looked for. Three points always fit two segments exactly.
pub const KNEE_POINTS: usize = 5;
/// A single line whose root-mean-square error is below this share of the curve's height describes
/// the curve; it has no knee.
pub const KNEE_LINE_ERROR: f64 = 0.01;
/// The two segments must leave at most this share of the single line's squared error.
pub const KNEE_ERROR_LEFT: f64 = 0.25;

/// A curve that is straight between its points. At least two; x finite and rising; y finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

/// A least-squares line y = intercept + slope * x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// y at x = 0.
    pub intercept: f64,
    /// Change of y for a change of x by 1.
    pub slope: f64,
    /// Share of the variance that the line explains, 1 being all of it.
    pub r2: f64,
}

/// Where a curve changes slope.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knee {
    /// The x of the knee.
    pub x: f64,
    /// The y of the two segments there.
    pub y: f64,
    /// Slope to the left of it.
    pub slope_before: f64,
    /// Slope to the right of it.
    pub slope_after: f64,
}

impl Curve {
    /// Takes the points in rising order of x.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self, Error> {
        if points.len() < 2 {
            return Err(Error::value("curve", points.len(), "at least 2 points"));
        }
        if let Some(bad) = points.iter().find(|(x, y)| !x.is_finite() || !y.is_finite()) {
            return Err(Error::value("curve", format!("{bad:?}"), "finite points"));
        }
        if let Some(pair) = points.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            let value = format!("{} before {}", pair[0].0, pair[1].0);
            return Err(Error::value("curve", value, "x to rise from point to point"));
        }
        Ok(Curve { points })
    }

    /// The points in rising order of x; at least two.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// Smallest x.
    pub fn start(&self) -> f64 {
        self.points[0].0
    }

    /// Largest x.
    pub fn end(&self) -> f64 {
        self.points[self.points.len() - 1].0
    }

    /// Largest y.
    pub fn top(&self) -> f64 {
        self.points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The curve's y at this x; none outside the curve.
    pub fn at(&self, x: f64) -> Option<f64> {
        let pair = self.points.windows(2).find(|pair| pair[0].0 <= x && x <= pair[1].0)?;
        let share = (x - pair[0].0) / (pair[1].0 - pair[0].0);
        Some(pair[0].1 + share * (pair[1].1 - pair[0].1))
    }

    /// The same curve at `count` evenly spaced x (at least 2), both ends included.
    pub fn sampled(&self, count: usize) -> Curve {
        let last = count.max(2) - 1;
        let x = |i: usize| self.start() + (self.end() - self.start()) * i as f64 / last as f64;
        let points = (0..=last)
            .map(|i| if i == last { self.end() } else { x(i) })
            .filter_map(|x| Some((x, self.at(x)?)))
            .collect();
        Curve { points }
    }

    /// The least-squares line through all points.
    pub fn line(&self) -> Line {
        fit_line(&self.points)
    }

    /// The knee of the best two joined segments, by least squares over every place of the joint.
    ///
    /// None when there are fewer than [`KNEE_POINTS`] points, when one line is good enough
    /// ([`KNEE_LINE_ERROR`]), or when two segments are not much better ([`KNEE_ERROR_LEFT`]).
    /// The slope must fall to a half at least. A smooth bend that does passes too: the knee then sits where two
    /// lines imitate it best.
    pub fn knee(&self) -> Option<Knee> {
        if self.points.len() < KNEE_POINTS {
            return None;
        }
        let line = self.line();
        let line_error = squared_error(&self.points, |x| line.intercept + line.slope * x);
        let lowest = self.points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let height = self.top() - lowest;
        let rms = (line_error / self.points.len() as f64).sqrt();
        if rms <= KNEE_LINE_ERROR * height {
            return None;
        }
        let hinges = joints(&self.points).into_iter().filter_map(|x| hinge(&self.points, x));
        let (error, knee) = hinges.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let bends = knee.slope_after * KNEE_BEND <= knee.slope_before;
        (error <= KNEE_ERROR_LEFT * line_error && bends).then_some(knee)
    }

    /// Every x at which the two curves change places, in rising order, interpolated.
    pub fn crossovers(&self, other: &Curve) -> Vec<f64> {
        let mut xs: Vec<f64> = self.points.iter().chain(&other.points).map(|p| p.0).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let gaps: Vec<(f64, f64)> =
            xs.into_iter().filter_map(|x| Some((x, self.at(x)? - other.at(x)?))).collect();
        let crosses = |pair: &&[(f64, f64)]| {
            let (a, b) = (pair[0].1, pair[1].1);
            (a < 0.0 && b >= 0.0) || (a > 0.0 && b <= 0.0)
        };
        let place = |pair: &[(f64, f64)]| {
            let ((x0, a), (x1, b)) = (pair[0], pair[1]);
            x0 + (x1 - x0) * a / (a - b)
        };
        gaps.windows(2).filter(crosses).map(place).collect()
    }
}

/// How much steeper a straight curve is than a bent one: the slope of `dense` over the slope of
/// `sparse` to the right of its knee (over its whole slope when it has none). None when the
/// latter is not positive.
pub fn slope_ratio(dense: &Curve, sparse: &Curve) -> Option<f64> {
    let after = sparse.knee().map_or_else(|| sparse.line().slope, |knee| knee.slope_after);
    (after > 0.0).then(|| dense.line().slope / after)
}

/// Least squares of at least two points with different x.
fn fit_line(points: &[(f64, f64)]) -> Line {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let sxx: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let sxy: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let slope = sxy / sxx;
    let intercept = mean_y - slope * mean_x;
    let total = squared_error(points, |_| mean_y);
    let left = squared_error(points, |x| intercept + slope * x);
    let r2 = if total > 0.0 { 1.0 - left / total } else { 1.0 };
    Line { intercept, slope, r2 }
}

fn squared_error(points: &[(f64, f64)], model: impl Fn(f64) -> f64) -> f64 {
    points.iter().map(|&(x, y)| (y - model(x)).powi(2)).sum()
}

/// Where the joint of the best two segments can be: at an inner point, or, between two points,
/// where the lines fitted to either side of the gap meet.
fn joints(points: &[(f64, f64)]) -> Vec<f64> {
    let mut found: Vec<f64> = points[1..points.len() - 1].iter().map(|p| p.0).collect();
    for split in 2..=points.len() - 2 {
        let (left, right) = points.split_at(split);
        let (a, b) = (fit_line(left), fit_line(right));
        let meet = (b.intercept - a.intercept) / (a.slope - b.slope);
        if meet > left[split - 1].0 && meet < right[0].0 {
            found.push(meet);
        }
    }
    found
}

/// Least squares of y = a + b*x + c*max(0, x - joint), by its three normal equations; with its
/// squared error. x is scaled to 0..1 first, which keeps the equations well conditioned.
fn hinge(points: &[(f64, f64)], joint: f64) -> Option<(f64, Knee)> {
    let scale = points[points.len() - 1].0.abs().max(points[0].0.abs());
    let basis = |x: f64| [1.0, x / scale, ((x - joint) / scale).max(0.0)];
    let mut m = [[0.0; 4]; 3];
    for &(x, y) in points {
        let b = basis(x);
        for i in 0..3 {
            for j in 0..3 {
                m[i][j] += b[i] * b[j];
            }
            m[i][3] += b[i] * y;
        }
    }
    let c = solve(m)?;
    let model = |x: f64| basis(x).iter().zip(c).map(|(b, c)| b * c).sum::<f64>();
    let knee = Knee {
        x: joint,
        y: model(joint),
        slope_before: c[1] / scale,
        slope_after: (c[1] + c[2]) / scale,
    };
    Some((squared_error(points, model), knee))
}

/// Gauss elimination with the largest pivot of each column; none when singular.
fn solve(mut m: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let size = |row: &usize| m[*row][column].abs();
        let pivot = (column..3).max_by(|a, b| size(a).total_cmp(&size(b)))?;
        m.swap(column, pivot);
        if m[column][column].abs() < 1e-300 {
            return None;
        }
        let top = m[column];
        for (_, row) in m.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / top[column];
            for (value, above) in row.iter_mut().zip(top) {
                *value -= factor * above;
            }
        }
    }
    Some([m[0][3] / m[0][0], m[1][3] / m[1][1], m[2][3] / m[2][2]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(y: impl Fn(f64) -> f64) -> Curve {
        Curve::new((0..40).map(|i| 1000.0 * f64::from(i)).map(|x| (x, y(x))).collect()).unwrap()
    }

    #[test]
    fn refuses_what_is_no_curve() {
        for bad in [vec![], vec![(0.0, 1.0)], vec![(1.0, 0.0), (1.0, 0.0)]] {
            assert!(Curve::new(bad).is_err());
        }
        assert!(Curve::new(vec![(0.0, 1.0), (1.0, f64::NAN)]).is_err());
    }

    #[test]
    fn a_knee_between_two_points_is_found() {
        let knee = curve(|x| 1.0 + 3e-4 * x.min(5300.0) + 1e-5 * x).knee().unwrap();
        assert!((knee.x - 5300.0).abs() < 1e-3, "{knee:?}");
        assert!((knee.slope_before / 3.1e-4 - 1.0).abs() < 1e-6);
        assert!((knee.slope_after / 1e-5 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_noisy_knee_is_found_near_its_place() {
        let noise = |x: f64| 1.0 + 0.01 * (x * 12.9898).sin();
        let knee = curve(|x| (1.0 + 3e-4 * x.min(8000.0) + 2e-5 * x) * noise(x)).knee().unwrap();
        assert!((knee.x - 8000.0).abs() < 500.0, "{knee:?}");
    }

    #[test]
    fn a_line_has_no_knee_even_with_noise() {
        assert_eq!(curve(|x| 2.0 + 1e-4 * x).knee(), None);
        assert_eq!(curve(|_| 2.0).knee(), None);
        assert_eq!(curve(|x| 2.0 + 1e-4 * x + 0.3 * (x * 12.9898).sin()).knee(), None);
        assert!(curve(|x| 2.0 + 1e-4 * x).line().r2 > 0.999_999);
    }

    #[test]
    fn crossovers_are_interpolated() {
        let flat = Curve::new(vec![(0.0, 1.0), (100.0, 1.0)]).unwrap();
        let wave = Curve::new(vec![(0.0, 0.0), (10.0, 2.0), (20.0, 0.0)]).unwrap();
        assert_eq!(wave.crossovers(&flat), [5.0, 15.0]);
        assert!(flat.crossovers(&flat).is_empty());
    }
}
