//! Comparison of a kernel's outputs with the reference's.

use crate::case::{HostTensor, Outputs};
use crate::tolerance::{Tolerance, tolerance_on};
use dsa_kernels::tile::MatrixUnit;

/// How close one output is.
#[derive(Clone, Debug, PartialEq)]
pub struct Closeness {
    /// The output.
    pub output: String,
    /// The largest error as a share of what the tolerance allows: at most 1 passes.
    pub worst: f64,
    /// Where it is: row-major index in the output.
    pub worst_at: Vec<usize>,
    /// The kernel's value there.
    pub got: f64,
    /// The reference's value there.
    pub expected: f64,
    /// The whole tensor's `1 - 2 Σxy / Σ(x² + y²)`.
    pub cos: f64,
    /// What is allowed.
    pub tolerance: Tolerance,
}

impl std::fmt::Display for Closeness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { output, worst_at, got, expected, worst, tolerance: by, .. } = self;
        write!(f, "{output}{worst_at:?} is {got} where {expected} is expected: ")?;
        match (by.abs == 0.0 && by.rel == 0.0, worst.is_finite()) {
            (true, _) => write!(f, "it must be equal")?,
            (false, false) if got.is_finite() && expected.is_finite() => {
                write!(f, "the tolerance there is 0")?;
            }
            (false, false) => write!(f, "the other is no finite number")?,
            (false, true) => {
                let digits = if *worst < 100.0 { 2 } else { 0 };
                let of_row = if by.of_row { " of the row's largest" } else { "" };
                write!(f, "{worst:.digits$} × the tolerance (abs {:e}{of_row}, ", by.abs)?;
                write!(f, "rel {:e})", by.rel)?;
            }
        }
        write!(f, "; difference of the whole {:.2e}, allowed {:.0e}", self.cos, by.cos)?;
        write!(f, "; {}", by.source)
    }
}

/// Why outputs do not agree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mismatch {
    /// An output is missing, or has another shape or type.
    #[error("output {output} is {got}, expected {expected}")]
    Form {
        /// The output.
        output: String,
        /// Its type and shape.
        got: String,
        /// The reference's.
        expected: String,
    },
    /// An output's values are too far off.
    #[error("{0}")]
    Values(Box<Closeness>),
}

/// Compares `got` with `expected` by the table's tolerances for plain arithmetic. Returns how close
/// each output is.
pub fn compare(
    kernel: &str,
    got: &Outputs,
    expected: &Outputs,
) -> Result<Vec<Closeness>, Mismatch> {
    compare_on(MatrixUnit::Plain, kernel, got, expected)
}

/// [`compare`] by the tolerances of the matrix unit that multiplied.
pub fn compare_on(
    unit: MatrixUnit,
    kernel: &str,
    got: &Outputs,
    expected: &Outputs,
) -> Result<Vec<Closeness>, Mismatch> {
    let mut all = Vec::new();
    for (output, want) in expected {
        let form = |got: String| Mismatch::Form {
            output: output.to_string(),
            got,
            expected: format!("{want:?}"),
        };
        let have = got.get(output).ok_or_else(|| form("missing".to_string()))?;
        if have.shape != want.shape || have.dtype != want.dtype {
            return Err(form(format!("{have:?}")));
        }
        let closeness = close(output, have, want, tolerance_on(unit, kernel, output, want.dtype));
        if closeness.worst > 1.0 || closeness.cos > closeness.tolerance.cos {
            return Err(Mismatch::Values(Box::new(closeness)));
        }
        all.push(closeness);
    }
    Ok(all)
}

/// The error of each element of `got`, which has the shape of `want`, as a share of what is allowed.
pub fn shares(got: &HostTensor, want: &HostTensor, by: Tolerance) -> Vec<f64> {
    let (x, y) = (got.to_f32(), want.to_f32());
    let cols = want.shape.last().copied().unwrap_or(1).max(1);
    let mut shares = Vec::with_capacity(y.len());
    for (x, y) in x.chunks(cols).zip(y.chunks(cols)) {
        let largest =
            y.iter().filter(|y| y.is_finite()).fold(0.0f64, |m, y| m.max(f64::from(*y).abs()));
        let abs = if by.of_row { by.abs * largest } else { by.abs };
        let of = |(x, y): (&f32, &f32)| share(f64::from(*x), f64::from(*y), abs, by.rel);
        shares.extend(x.iter().zip(y).map(of));
    }
    shares
}

/// How close `got` is to `want`, which has the same shape.
pub fn close(output: &str, got: &HostTensor, want: &HostTensor, by: Tolerance) -> Closeness {
    let (x, y) = (got.to_f32(), want.to_f32());
    let mut result = Closeness {
        output: output.to_string(),
        worst: 0.0,
        worst_at: vec![],
        got: 0.0,
        expected: 0.0,
        cos: 0.0,
        tolerance: by,
    };
    let (mut xy, mut squares) = (0.0f64, 0.0f64);
    for (at, share) in shares(got, want, by).into_iter().enumerate() {
        let (x, y) = (f64::from(x[at]), f64::from(y[at]));
        if x.is_finite() && y.is_finite() {
            xy += x * y;
            squares += x * x + y * y;
        }
        if share > result.worst || (share == 0.0 && result.worst_at.is_empty()) {
            result.worst = share;
            result.worst_at = unravel(at, &want.shape);
            (result.got, result.expected) = (x, y);
        }
    }
    if squares > 0.0 {
        result.cos = 1.0 - 2.0 * xy / squares;
    }
    result
}

/// The error of one element as a share of what is allowed.
fn share(x: f64, y: f64, abs: f64, rel: f64) -> f64 {
    if x.is_nan() && y.is_nan() || x == y {
        return 0.0;
    }
    let error = (x - y).abs();
    let allowed = abs + rel * y.abs();
    if !error.is_finite() || allowed == 0.0 { f64::INFINITY } else { error / allowed }
}

fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, size) in shape.iter().enumerate().rev() {
        index[i] = at % size.max(&1);
        at /= size.max(&1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsa_kernels::DType;

    fn said(got: f32, expected: f32) -> String {
        let of = |value| [("out", HostTensor::new(DType::F32, &[1], &[value]))].into();
        compare("rms_norm", &of(got), &of(expected)).unwrap_err().to_string()
    }

    #[test]
    fn an_error_is_told_in_tolerances_where_there_is_one() {
        assert!(said(2.0, 1.0).contains(" × the tolerance (abs "), "{}", said(2.0, 1.0));
        assert!(said(f32::NAN, 1.0).contains("the other is no finite number"));
        let of = |value| [("order", HostTensor::i32(&[1], &[value]))].into();
        let wrong = compare("dispatch", &of(606), &of(194)).unwrap_err().to_string();
        assert!(
            wrong.starts_with("order[0] is 606 where 194 is expected: it must be equal"),
            "{wrong}"
        );
    }
}
