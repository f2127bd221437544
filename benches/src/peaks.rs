//! The device's ceilings, measured in the same run as the kernels.
//!
//! A ceiling is the best that any of several forms of a probe reaches: what is fastest differs from device to
//! device, and a probe that misses what the device can do flatters every kernel held against it. What a form
//! computes is checked before it is timed.

use anyhow::{Context, ensure};
use dsa_figures::Peak;
use dsa_gate::bench::random;
use dsa_kernels::{DType, Device, DeviceKind, Result, gemm, peak};
use std::time::{Duration, Instant};

mod memory;

/// What the bytes/s are of.
const MEMORY: &str = "memory";
/// What the FLOP/s of no matrix unit are of.
const PLAIN: &str = "f32 arithmetic";

/// One form of a probe, and how fast it was.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The ceiling that it probes.
    pub what: String,
    /// The form.
    pub form: String,
    /// FLOP/s or, of the memory, bytes/s read and written together.
    pub rate: f64,
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rate, unit) = match self.what == MEMORY {
            true => (self.rate / 1e9, "GB/s"),
            false => (self.rate / 1e12, "TFLOP/s"),
        };
        write!(f, "{:<16} {rate:>10.3} {unit:<8} {}", self.what, self.form)
    }
}

/// What a device can do at most, as far as was measured.
#[derive(Clone, Debug)]
pub struct Ceilings {
    /// Every form that was tried.
    probes: Vec<Probe>,
}

impl Ceilings {
    /// Measures those of `device`.
    ///
    /// Matrix unit: products of two tiles of random values that stay in shared memory, on every core at once, for
    /// long enough that the clock is what it is under such load. Vector arithmetic: chains of fused multiplications
    /// and additions in registers, and square products of ours. Memory: one large buffer copied to another, or
    /// only read; on a CPU also copied by the host's threads.
    ///
    /// # Errors
    /// If a probe fails, or computes something wrong.
    pub fn measure(device: &Device) -> anyhow::Result<Self> {
        let mut probes = Vec::new();
        for dtype in [DType::E4m3, DType::Bf16, DType::F16] {
            matrix_unit(device, dtype, &mut probes)?;
        }
        plain(device, &mut probes)?;
        memory::measure(device, &mut probes)?;
        Ok(Self { probes })
    }

    /// Ceilings that were not measured.
    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        let probe = |what: &str| Probe { what: what.into(), form: "none".into(), rate: 1e12 };
        Self { probes: vec![probe(PLAIN), probe(MEMORY)] }
    }

    /// Every form that was tried, the fastest of each ceiling first.
    pub fn probes(&self) -> Vec<&Probe> {
        let mut all: Vec<&Probe> = self.probes.iter().collect();
        all.sort_by(|a, b| a.what.cmp(&b.what).then(b.rate.total_cmp(&a.rate)));
        all
    }

    /// The fastest form of a probe.
    fn best(&self, what: &str) -> Option<&Probe> {
        let of = self.probes.iter().filter(|probe| probe.what == what);
        of.max_by(|a, b| a.rate.total_cmp(&b.rate))
    }

    /// The ceilings of work whose products are of these types, FLOP of each: FLOP over the time that each type's own
    /// ceiling allows them.
    pub fn of_mixed(&self, flop: &[(DType, f64)]) -> Peak {
        let of = |(dtype, flop): &(DType, f64)| (*flop, self.of(&dtype.to_string()));
        let parts: Vec<(f64, Peak)> = flop.iter().filter(|(_, n)| *n > 0.0).map(of).collect();
        let all: f64 = parts.iter().map(|(flop, _)| flop).sum();
        let seconds: f64 = parts.iter().map(|(flop, peak)| flop / peak.flops).sum();
        let mut how: Vec<String> = parts.iter().map(|(_, peak)| peak.how.clone()).collect();
        how.dedup();
        let bytes_per_s = self.best(MEMORY).map_or(0.0, |probe| probe.rate);
        Peak { flops: all / seconds, bytes_per_s, how: how.join(", in their shares with ") }
    }

    /// The ceilings of kernels whose operands are of the type named `dtype`.
    pub fn of(&self, dtype: &str) -> Peak {
        let unit = self.best(&products(dtype)).or_else(|| self.best(PLAIN));
        let rate = |probe: Option<&Probe>| probe.map_or(0.0, |probe| probe.rate);
        let how = |probe: Option<&Probe>| {
            probe.map_or("not measured".to_string(), |p| format!("{}, {}", p.what, p.form))
        };
        let memory = self.best(MEMORY);
        let how = format!("FLOP/s: {}; bytes/s: {}", how(unit), how(memory));
        Peak { flops: rate(unit), bytes_per_s: rate(memory), how }
    }
}

impl std::fmt::Display for Ceilings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut before: Option<&str> = None;
        for probe in self.probes() {
            if before != Some(&probe.what) {
                write!(f, "\n  {probe}")?;
            }
            before = Some(&probe.what);
        }
        Ok(())
    }
}

/// The ceiling of the matrix unit for the type named `dtype`.
fn products(dtype: &str) -> String {
    format!("{dtype} products")
}

/// FLOP/s of the matrix unit for `dtype`, if the device has one.
fn matrix_unit(device: &Device, dtype: DType, probes: &mut Vec<Probe>) -> anyhow::Result<()> {
    let k = peak::peak_k(dtype);
    let x = random(device, dtype, &[128, k], 1)?;
    let w = random(device, dtype, &[256, k], 2)?;
    let out = device.empty(&[128, 256], DType::F32)?;
    let call = |programs, rounds| peak::multiply_in_place(&x, &w, &out, programs, rounds);
    if call(1, 1)?.is_none() {
        return Ok(());
    }
    right_product([&x, &w, &out].map(|t| t.download_f32()), k)
        .with_context(|| format!("the product of {dtype} that probes the matrix unit is wrong"))?;
    for programs in [1, 2].map(|n| n * device.cores()) {
        for rounds in [2_000, 20_000] {
            let time = fastest(device, || call(programs, rounds).map(|_| ()))?;
            let Some(flop) = call(programs, rounds)? else { return Ok(()) };
            let form = format!("tiles in place, {programs} programs of {rounds} rounds");
            probes.push(Probe { what: products(&dtype.to_string()), form, rate: flop / time });
        }
    }
    Ok(())
}

/// Refuses a product of random operands that is off by more than a hundredth of its row's largest.
fn right_product([x, w, out]: [Result<Vec<f32>>; 3], k: usize) -> anyhow::Result<()> {
    let (x, w, out) = (x?, w?, out?);
    for (i, (x, out)) in x.chunks(k).zip(out.chunks(w.len() / k)).enumerate() {
        let largest = out.iter().fold(0.0f32, |most, sum| most.max(sum.abs()));
        for (j, (w, got)) in w.chunks(k).zip(out).enumerate() {
            let want: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            let off = (got - want).abs() <= 0.01 * largest;
            ensure!(off, "[{i}, {j}] is {got}, expected {want}");
        }
    }
    Ok(())
}

/// FLOP/s of vector arithmetic.
fn plain(device: &Device, probes: &mut Vec<Probe>) -> anyhow::Result<()> {
    let rounds = if device.kind() == DeviceKind::Cpu { 100_000 } else { 2_000 };
    for shape in peak::chains(device) {
        let rows = 2 + shape.chains;
        // Factor 1, addend 1, and 1 to start from: every chain counts its steps.
        let x =
            device.upload_f32(&vec![1.0; rows * shape.width], &[rows, shape.width], DType::F32)?;
        let rows = peak::chain_rows(device, shape);
        let out = device.empty(&[rows, shape.width], DType::F32)?;
        let flop = peak::chain(&x, &out, shape, 100)?;
        let steps = flop / (2 * rows * shape.width) as f64 + shape.chains as f64;
        let right = out.download_f32()?.iter().all(|sum| f64::from(*sum) == steps);
        ensure!(right, "the chains that probe f32 arithmetic ({shape}) are wrong");
        let time = fastest(device, || peak::chain(&x, &out, shape, rounds).map(|_| ()))?;
        let rate = flop / 100.0 * rounds as f64 / time;
        probes.push(Probe { what: PLAIN.into(), form: shape.to_string(), rate });
    }
    for n in [256usize, 512, 1024] {
        let x = random(device, DType::F32, &[1, n, n], n as u64)?;
        let time = fastest(device, || gemm::gemm(&x, &x, DType::F32).map(|_| ()))?;
        let rate = 2.0 * (n * n * n) as f64 / time;
        probes.push(Probe { what: PLAIN.into(), form: format!("our product of {n} x {n}"), rate });
    }
    Ok(())
}

/// Seconds of the fastest of several calls.
fn fastest(device: &Device, work: impl Fn() -> Result<()> + Send + Sync) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    let (start, mut calls) = (Instant::now(), 0);
    while calls < 3 || start.elapsed() < Duration::from_millis(100) {
        best = best.min(device.time(&work)?.as_secs_f64());
        calls += 1;
    }
    Ok(best)
}
