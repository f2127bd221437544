//! Bytes/s of the device's memory.

use super::{MEMORY, Probe, fastest, random};
use anyhow::ensure;
use dsa_kernels::bandwidth::{Walk, copy, read, sums, walks};
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device, DeviceKind, Tensor};
use std::time::Instant;

/// Columns of the buffers.
const COLS: usize = 1024;
/// Rows of random values; the buffers repeat them.
const PATTERN: usize = 4096;
/// Rows of a copy that are looked at, the first and the last among them.
const LOOKED_AT: usize = 64;

/// Two buffers of different values, and one to copy them to.
struct Buffers {
    patterns: [Vec<u8>; 2],
    sources: [Tensor; 2],
    out: Tensor,
}

/// Tries every walk of half the buffers, and the fastest of all of them; on a CPU the host's own copy too.
pub(super) fn measure(device: &Device, probes: &mut Vec<Probe>) -> anyhow::Result<()> {
    let all = walks(device);
    let Some(first) = all.first().copied() else { return Ok(()) };
    let rows = bytes(device) / (4 * COLS);
    let buffers = Buffers::new(device, rows, first)?;
    let (mut best_copy, mut best_read) = ((0.0, first), (0.0, first));
    for (i, walk) in all.into_iter().enumerate() {
        let rate = buffers.copied(device, rows / 2, walk, i, probes)?;
        best_copy = if rate > best_copy.0 { (rate, walk) } else { best_copy };
        // A unit that takes one turn alone writes as much as it reads.
        if walk.programs.is_some() {
            let rate = buffers.only_read(device, rows / 2, walk, probes)?;
            best_read = if rate > best_read.0 { (rate, walk) } else { best_read };
        }
    }
    for source in 0..2 {
        buffers.copied(device, rows, best_copy.1, source, probes)?;
    }
    buffers.only_read(device, rows, best_read.1, probes)?;
    if device.kind() == DeviceKind::Cpu {
        host_copy(device.cores(), 4 * COLS * rows, probes)?;
    }
    Ok(())
}

/// Bytes of each buffer: 1 GiB on a GPU, on a CPU more than the last-level cache holds.
fn bytes(device: &Device) -> usize {
    if device.kind() != DeviceKind::Cpu {
        return 1 << 30;
    }
    let read = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let kib = read.ok().and_then(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok());
    (kib.unwrap_or(0) << 10).next_power_of_two().clamp(256 << 20, 1 << 30)
}

impl Buffers {
    fn new(device: &Device, rows: usize, walk: Walk) -> anyhow::Result<Self> {
        let patterns = [7, 8].map(|seed| random(device, DType::F32, &[PATTERN, COLS], seed));
        let [a, b] = patterns;
        let patterns = [a?, b?];
        let make = || device.empty(&[rows, COLS], DType::F32);
        let buffers = [make()?, make()?];
        for (buffer, pattern) in buffers.iter().zip(&patterns) {
            for start in (0..rows).step_by(PATTERN) {
                let count = PATTERN.min(rows - start);
                copy(&pattern.narrow(0, 0, count)?, &buffer.narrow(0, start, count)?, walk)?;
            }
        }
        let [a, b] = patterns;
        let patterns = [a.download()?, b.download()?];
        Ok(Self { patterns, sources: buffers, out: make()? })
    }

    /// Copies the first `rows` rows of a source, which is another one than the copy before was of.
    fn copied(
        &self,
        device: &Device,
        rows: usize,
        walk: Walk,
        source: usize,
        probes: &mut Vec<Probe>,
    ) -> anyhow::Result<f64> {
        let x = self.sources[source % 2].narrow(0, 0, rows)?;
        let out = self.out.narrow(0, 0, rows)?;
        copy(&x, &out, walk)?;
        let mut rng = Rng::new(source as u64);
        let mut looked_at: Vec<usize> = (2..LOOKED_AT).map(|_| rng.below(rows)).collect();
        looked_at.extend([0, rows - 1]);
        for row in looked_at {
            let (at, width) = (row % PATTERN * 4 * COLS, 4 * COLS);
            let right =
                self.patterns[source % 2][at..at + width] == out.narrow(0, row, 1)?.download()?;
            ensure!(right, "row {row} of the copy that probes the memory ({walk}) is wrong");
        }
        let time = fastest(device, || copy(&x, &out, walk))?;
        Ok(keep(probes, "copy", rows, &walk.to_string(), (8 * COLS * rows) as f64 / time))
    }

    /// Reads the first `rows` rows.
    fn only_read(
        &self,
        device: &Device,
        rows: usize,
        walk: Walk,
        probes: &mut Vec<Probe>,
    ) -> anyhow::Result<f64> {
        let x = self.sources[0].narrow(0, 0, rows)?;
        let out = device.empty(&[1, sums(device, x.len(), walk)], DType::I32)?;
        read(&x, &out, walk)?;
        let got = out.download_i32()?.into_iter().fold(0i32, i32::wrapping_add);
        let want = (0..rows.div_ceil(PATTERN)).fold(0i32, |sum, turn| {
            let rows = PATTERN.min(rows - turn * PATTERN);
            sum.wrapping_add(wrapping_sum(&self.patterns[0][..rows * 4 * COLS]))
        });
        ensure!(got == want, "the sum that probes the memory ({walk}) is wrong");
        let time = fastest(device, || read(&x, &out, walk))?;
        Ok(keep(probes, "read", rows, &walk.to_string(), (4 * COLS * rows) as f64 / time))
    }
}

fn wrapping_sum(bytes: &[u8]) -> i32 {
    let words = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    words.fold(0, i32::wrapping_add)
}

/// The host's own copy, a piece for each of `threads` threads.
fn host_copy(threads: usize, bytes: usize, probes: &mut Vec<Probe>) -> anyhow::Result<()> {
    let piece = bytes.div_ceil(threads);
    let (x, mut out) = (vec![1u8; bytes], vec![0u8; bytes]);
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (to, from) in out.chunks_mut(piece).zip(x.chunks(piece)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    ensure!(x == out, "the host's own copy is wrong");
    let form = format!("by {threads} threads of the host");
    keep(probes, "copy", bytes / (4 * COLS), &form, 2.0 * bytes as f64 / best);
    Ok(())
}

/// Notes the rate of a form of `rows` rows; returns it.
fn keep(probes: &mut Vec<Probe>, what: &str, rows: usize, form: &str, rate: f64) -> f64 {
    let form = format!("{what} of {} MiB, {form}", (4 * COLS * rows) >> 20);
    probes.push(Probe { what: MEMORY.into(), form, rate });
    rate
}
