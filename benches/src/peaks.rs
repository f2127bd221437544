//! The device's ceilings, measured in the same run as the kernels.

use dsa_figures::Peak;
use dsa_kernels::{DType, Device, Result, gemm, peak};
use dsa_tests::generate::Rng;
use std::time::{Duration, Instant};

/// What a device can do at most, as far as was measured.
#[derive(Clone, Debug)]
pub struct Ceilings {
    /// FLOP/s of vector arithmetic.
    plain: f64,
    /// FLOP/s of the matrix unit, for the types it multiplies.
    matrix: Vec<(DType, f64)>,
    /// Bytes/s of a copy, read and written bytes together.
    bytes_per_s: f64,
}

impl Ceilings {
    /// Measures those of `device`.
    ///
    /// Matrix unit: products of two tiles of random values that stay in shared memory, on every core at
    /// once, for a tenth of a second and more, so that the clock is what it is under such load. Vector
    /// arithmetic: CubeCL's own probe, or the fastest square product of ours where that is more.
    /// Memory: copying one large buffer to another.
    pub fn measure(device: &Device) -> Result<Self> {
        let mut matrix = Vec::new();
        for dtype in [DType::E4m3, DType::Bf16, DType::F16] {
            if let Some(flops) = matrix_unit(device, dtype)? {
                matrix.push((dtype, flops));
            }
        }
        let mut plain = device.plain_peak()?;
        for n in [256usize, 512, 1024] {
            let x = random(device, DType::F32, &[1, n, n], n as u64)?;
            let time = fastest(device, || gemm::gemm(device, &x, &x, DType::F32).map(|_| ()))?;
            plain = plain.max(2.0 * (n * n * n) as f64 / time);
        }
        let n = if matrix.is_empty() { 32 << 20 } else { 256 << 20 };
        let x = random(device, DType::F32, &[n / 1024, 1024], 7)?;
        let out = device.empty(&[n / 1024, 1024], DType::F32)?;
        let time = fastest(device, || dsa_kernels::copy::copy(device, &x, &out))?;
        Ok(Self { plain, matrix, bytes_per_s: 2.0 * 4.0 * n as f64 / time })
    }

    /// Ceilings that were not measured.
    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        Self { plain: 1e12, matrix: Vec::new(), bytes_per_s: 1e11 }
    }

    /// The ceilings of kernels whose operands are of the type named `dtype`.
    pub fn of(&self, dtype: &str) -> Peak {
        let unit = self.matrix.iter().find(|(of, _)| of.to_string() == dtype);
        let (flops, how) = match unit {
            Some((of, flops)) => (*flops, format!("{of} products of tiles in place")),
            None => (self.plain, "CubeCL's probe of f32 arithmetic, or our product".to_string()),
        };
        let how = format!("FLOP/s: {how}; bytes/s: copy of one buffer to another");
        Peak { flops, bytes_per_s: self.bytes_per_s, how }
    }
}

impl std::fmt::Display for Ceilings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (dtype, flops) in &self.matrix {
            write!(f, "{dtype} products {:.1} TFLOP/s, ", flops / 1e12)?;
        }
        write!(f, "f32 {:.3} TFLOP/s, copy {:.1} GB/s", self.plain / 1e12, self.bytes_per_s / 1e9)
    }
}

/// FLOP/s of the matrix unit for `dtype`, if the device has one.
fn matrix_unit(device: &Device, dtype: DType) -> Result<Option<f64>> {
    let k = peak::peak_k(dtype);
    let x = random(device, dtype, &[128, k], 1)?;
    let w = random(device, dtype, &[256, k], 2)?;
    let out = device.empty(&[128, 256], DType::F32)?;
    let (programs, rounds) = (device.cores(), 20_000);
    let call = || peak::multiply_in_place(device, &x, &w, &out, programs, rounds);
    let Some(flop) = call()? else { return Ok(None) };
    Ok(Some(flop / fastest(device, || call().map(|_| ()))?))
}

/// Seconds of the fastest of several calls.
fn fastest(device: &Device, work: impl Fn() -> Result<()> + Send + Sync) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        best = best.min(device.time(&work)?.as_secs_f64());
    }
    Ok(best)
}

/// A tensor of normal values; a million of them, repeated.
pub fn random(
    device: &Device,
    dtype: DType,
    shape: &[usize],
    seed: u64,
) -> Result<dsa_kernels::Tensor> {
    let n: usize = shape.iter().product();
    let mut rng = Rng::new(seed);
    let some: Vec<f32> = (0..n.min(1_000_003)).map(|_| rng.normal()).collect();
    let bytes = dtype.encode(&some);
    let mut all = Vec::with_capacity(n * dtype.size());
    while all.len() < n * dtype.size() {
        let left = n * dtype.size() - all.len();
        all.extend_from_slice(&bytes[..left.min(bytes.len())]);
    }
    device.upload(&all, shape, dtype)
}
