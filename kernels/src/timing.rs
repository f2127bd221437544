//! Device time of launches, without the host's share.
//!
//! A launch takes the host longer than a small kernel takes the device: timed as they come, small kernels would all
//! take a launch's time. So the device is given copies to do first, for as long as the launches take, and the time
//! begins behind them. The copies also leave none of a kernel's inputs in the cache, as other measurements of kernels do.

use crate::Result;
use crate::bandwidth::{Walk, copy};
use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::tensor::Tensor;
use std::time::Duration;

/// Rows and columns of f32 of what is copied: 256 MiB, several times a GPU's cache.
const COVER: [usize; 2] = [1 << 16, 1 << 10];
/// Launches that the host makes while one copy is done: 0.12 ms at 4.3 TB/s, and up to 40 µs a launch.
const LAUNCHES: usize = 3;
/// How they are copied.
const WALK: Walk = Walk { width: 4, in_flight: 4, team: 256, programs: Some(8) };

/// Times launches on a device.
pub struct Stopwatch {
    device: Device,
    /// What is copied, and where to; on the CPU, where host and device are the same, nothing is.
    cover: Option<(Tensor, Tensor)>,
    copies: usize,
}

impl Stopwatch {
    /// For work of at most `launches` launches.
    ///
    /// # Errors
    /// If the device has no memory for what is copied, 512 MiB.
    pub fn new(device: &Device, launches: usize) -> Result<Self> {
        let buffer = || device.empty(&COVER, DType::F32);
        let covered = device.kind() != DeviceKind::Cpu;
        let cover = covered.then(|| Ok((buffer()?, buffer()?))).transpose()?;
        Ok(Self { device: device.clone(), cover, copies: launches.div_ceil(LAUNCHES) })
    }

    /// Whether it begins behind copies, and each call is timed by itself.
    pub fn covers(&self) -> bool {
        self.cover.is_some()
    }

    /// Device time from the first to the last of the kernels that `work` launches.
    ///
    /// # Errors
    /// Those of `work`, and if the device fails.
    pub fn time(&self, work: impl FnOnce() -> Result<()> + Send) -> Result<Duration> {
        if let Some((from, to)) = &self.cover {
            (0..self.copies).try_for_each(|_| copy(from, to, WALK))?;
        }
        self.device.time(work)
    }
}
