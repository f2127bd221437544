//! The device's ceilings, measured in the same run as the kernels.

use dsa_figures::Peak;
use dsa_kernels::{DType, Device, Result, gemm};
use dsa_tests::generate::Rng;
use std::time::{Duration, Instant};

/// Measures the ceilings of `device`.
///
/// FLOP/s: the larger of CubeCL's own probe of plain f32 arithmetic and of the fastest our matrix product gets,
/// of several square sizes and types. On a device whose matrix unit neither uses yet it is the ceiling of plain
/// arithmetic. Bytes/s: copying one large buffer to another, read and written bytes together.
pub fn measure(device: &Device) -> Result<Peak> {
    let mut flops = 0.0f64;
    for n in [256usize, 512, 1024] {
        for dtype in [DType::F32, DType::Bf16] {
            let x = random(device, dtype, &[1, n, n], n as u64)?;
            let time = fastest(device, || gemm::gemm(device, &x, &x, DType::F32).map(|_| ()))?;
            flops = flops.max(2.0 * (n * n * n) as f64 / time);
        }
    }
    let flops = flops.max(device.plain_peak()?);
    let n = 32 << 20;
    let x = random(device, DType::F32, &[n / 1024, 1024], 7)?;
    let out = device.empty(&[n / 1024, 1024], DType::F32);
    let time = fastest(device, || dsa_kernels::copy::copy(device, &x, &out))?;
    let bytes_per_s = 2.0 * 4.0 * n as f64 / time;
    let how = "FLOP/s: CubeCL's probe of f32 arithmetic, or the fastest square product of ours \
               (256 to 1024) if that is more; bytes/s: copy of 128 MiB";
    Ok(Peak { flops, bytes_per_s, how: how.to_string() })
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
