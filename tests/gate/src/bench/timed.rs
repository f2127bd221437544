//! Rows of a timed output, drawn by the seed and cut out with the inputs they were computed from.

use crate::case::{Case, CaseError, HostTensor, Outputs};
use dsa_kernels::copy::place_rows;
use dsa_kernels::random::Rng;
use dsa_kernels::{Device, KernelError, Tensor};
use std::ops::Range;

/// The outputs of a call, by the names of [`crate::kernels`].
pub type Named = Vec<(&'static str, Tensor)>;

/// One call of what is measured; returns its outputs.
pub type Call = Box<dyn Fn() -> dsa_kernels::Result<Named> + Send + Sync>;

/// Cuts a case out of the timed inputs, and out of the outputs what the reference should return for it.
pub type Cut = Box<dyn Fn(&Drawn, &Named) -> Result<(Case, Outputs), CaseError> + Send + Sync>;

/// How the rows of a timed call are cut out.
pub struct Timed {
    /// Rows of the output that can be drawn.
    pub rows: usize,
    /// Heads of a row that can be drawn; 1 if it has none.
    pub heads: usize,
    /// Multiplications that the reference makes for one head of one row.
    pub cost: usize,
    /// Cuts them out.
    pub cut: Cut,
}

/// The most rows that are drawn of one timing.
pub const MOST_ROWS: usize = 8;
/// Multiplications that the reference may make for one timing, about a second's, if one head of one row is not
/// more already.
pub const BUDGET: usize = 200_000_000;

/// What was drawn of a timed call.
pub struct Drawn<'a> {
    /// Where its tensors are.
    pub device: &'a Device,
    /// Rows, ascending.
    pub rows: Vec<usize>,
    /// Heads of each of them.
    pub heads: Range<usize>,
}

impl std::fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rows {:?}, heads {:?} of the timed call", self.rows, self.heads)
    }
}

impl Timed {
    /// As many rows as the reference computes in about a second, the last among them, and heads likewise.
    pub fn draw<'a>(&self, device: &'a Device, seed: u64) -> Drawn<'a> {
        let mut rng = Rng::new(seed);
        let affordable = (BUDGET / self.cost.max(1)).max(1);
        let count = affordable.min(MOST_ROWS).min(self.rows);
        let mut rows: Vec<usize> = (self.rows > 0).then(|| self.rows - 1).into_iter().collect();
        while rows.len() < count {
            let row = rng.below(self.rows);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_unstable();
        let count = (affordable / count.max(1)).clamp(1, self.heads.max(1));
        let first = rng.below(self.heads.max(1) - count + 1);
        Drawn { device, rows, heads: first..first + count }
    }
}

impl Drawn<'_> {
    /// The drawn rows of a tensor `[rows, ..]`.
    pub fn rows(&self, tensor: &Tensor) -> Result<HostTensor, CaseError> {
        self.each_row(tensor, Ok)
    }

    /// The drawn heads of the drawn rows of a tensor `[rows, heads, ..]`.
    pub fn rows_and_heads(&self, tensor: &Tensor) -> Result<HostTensor, CaseError> {
        self.each_row(tensor, |row| row.narrow(1, self.heads.start, self.heads.len()))
    }

    /// The drawn heads of a tensor of floats `[n, heads, width]`.
    pub fn heads(&self, tensor: &Tensor) -> Result<HostTensor, CaseError> {
        let some = tensor.narrow(1, self.heads.start, self.heads.len())?;
        if some.is_contiguous() {
            return self.whole(&some);
        }
        let slots: Vec<i32> = (0..some.shape()[0] as i32).collect();
        let packed = self.device.empty(some.shape(), some.dtype())?;
        place_rows(&some, &self.device.upload_i32(&slots, &[slots.len()])?, &packed)?;
        self.whole(&packed)
    }

    /// All of a tensor.
    pub fn whole(&self, tensor: &Tensor) -> Result<HostTensor, CaseError> {
        Ok(HostTensor::download(tensor)?)
    }

    /// The drawn rows of every output.
    pub fn outputs(&self, of: &Named) -> Result<Outputs, CaseError> {
        of.iter().map(|(name, tensor)| Ok((*name, self.rows(tensor)?))).collect()
    }

    /// The drawn heads of the drawn rows of every output.
    pub fn outputs_of_heads(&self, of: &Named) -> Result<Outputs, CaseError> {
        of.iter().map(|(name, tensor)| Ok((*name, self.rows_and_heads(tensor)?))).collect()
    }

    fn each_row(
        &self,
        tensor: &Tensor,
        part: impl Fn(Tensor) -> Result<Tensor, KernelError>,
    ) -> Result<HostTensor, CaseError> {
        let (mut bytes, mut shape) = (Vec::new(), tensor.shape().to_vec());
        for row in &self.rows {
            let row = part(tensor.narrow(0, *row, 1)?)?;
            bytes.extend(row.download()?);
            shape = row.shape().to_vec();
        }
        if let Some(rows) = shape.first_mut() {
            *rows = self.rows.len();
        }
        Ok(HostTensor { dtype: tensor.dtype(), shape, bytes })
    }
}
