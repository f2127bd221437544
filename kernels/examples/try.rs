use dsa_kernels::*;
use std::time::Instant;
fn main() {
    let t = Instant::now();
    let d = Device::named("cpu").unwrap();
    println!("open {:?} {} cores {}", t.elapsed(), d.name(), d.cores());
    for (b, m, n, k) in [(1, 5, 7, 9), (2, 33, 70, 130), (1, 256, 1024, 1024), (1, 256, 1024, 1024)]
    {
        let f = |n: usize, s: u32| -> Vec<f32> {
            let mut z = s;
            (0..n)
                .map(|_| {
                    z = z.wrapping_mul(1664525).wrapping_add(1013904223);
                    ((z >> 8) as f32 / (1 << 24) as f32) * 2.0 - 1.0
                })
                .collect()
        };
        let (x, w) = (f(b * m * k, 1), f(b * n * k, 2));
        let xt = d.upload_f32(&x, &[b, m, k], DType::F32).unwrap();
        let wt = d.upload_f32(&w, &[b, n, k], DType::F32).unwrap();
        let t = Instant::now();
        let o = gemm::gemm(&d, &xt, &wt, DType::F32).unwrap();
        let o = d.download_f32(&o).unwrap();
        let e = t.elapsed();
        let mut worst = 0f32;
        for i in 0..b {
            for r in (0..m).step_by(7) {
                for c in 0..n {
                    let s: f64 = (0..k)
                        .map(|j| x[(i * m + r) * k + j] as f64 * w[(i * n + c) * k + j] as f64)
                        .sum();
                    worst = worst.max((s as f32 - o[(i * m + r) * n + c]).abs());
                }
            }
        }
        println!(
            "{b} {m} {n} {k}: worst {worst:e} {:?} {:.2} GFLOP/s",
            e,
            2.0 * (b * m * n * k) as f64 / e.as_secs_f64() / 1e9
        );
    }
}
