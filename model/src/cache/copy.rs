//! Writing rows to their places in a table.

use crate::attention::step::{Places, Step};
use dsa_kernels::rope::{Pairing, rope};
use dsa_kernels::{DType, Device, Result, Tensor};

/// Copies rows. There is no kernel for it; a rotation by the angle 0 does the same to finite
/// numbers: `x·1 - y·0`, `x·0 + y·1`. The width of a row must be even.
#[derive(Clone, Debug)]
pub(super) struct RowCopy {
    /// cos 0 and sin 0 for rows of up to [`WIDEST`] elements.
    ones: Tensor, // [WIDEST / 2] f32
    zeros: Tensor, // [WIDEST / 2] f32
}

/// The widest row; the attention kernels take no wider ones.
const WIDEST: usize = 1024;

impl RowCopy {
    pub fn new(device: &Device) -> Result<Self> {
        let table = |value| device.upload_f32(&[value; WIDEST / 2], &[1, WIDEST / 2], DType::F32);
        Ok(Self { ones: table(1.0)?, zeros: table(0.0)? })
    }

    /// Copies the rows of `from` `[n, d]` to those of `to` `[requests · max_seq, d]` that the step
    /// names: at once if they lie evenly spaced, one by one if not.
    pub fn rows(
        &self,
        device: &Device,
        from: &Tensor,
        to: &Tensor,
        step: &Step,
        at: &Places,
        max_seq: usize,
    ) -> Result<()> {
        let (n, d) = (from.shape()[0], from.shape()[1]);
        let from = from.reshape(&[n, 1, d])?;
        let (first, requests) = (step.positions[0], step.requests);
        let to = to.reshape(&[to.shape()[0] / max_seq, max_seq, d])?;
        let to = to.narrow(0, step.request, requests)?; // [requests, max_seq, d]
        if requests == 1 {
            let to = to.narrow(1, first, n)?.transpose(0, 1)?; // [n, 1, d]
            self.launch(device, &from, &to, &at.positions)
        } else if step.positions.iter().all(|position| *position == first) {
            self.launch(device, &from, &to.narrow(1, first, 1)?, &at.positions) // [requests, 1, d]
        } else {
            step.positions.iter().enumerate().try_for_each(|(row, position)| {
                let to = to.narrow(0, row, 1)?.narrow(1, *position, 1)?; // [1, 1, d]
                let positions = at.positions.narrow(0, row, 1)?; // [1]
                self.launch(device, &from.narrow(0, row, 1)?, &to, &positions)
            })
        }
    }

    /// Every position is beyond the tables, whose one line the kernel then takes.
    fn launch(
        &self,
        device: &Device,
        from: &Tensor,
        to: &Tensor,
        positions: &Tensor,
    ) -> Result<()> {
        let pairs = from.shape()[2] / 2;
        let cos = self.ones.narrow(1, 0, pairs)?; // [1, d/2]
        let sin = self.zeros.narrow(1, 0, pairs)?; // [1, d/2]
        rope(device, from, &cos, &sin, positions, to, Pairing::Interleaved)
    }
}
