//! Seeded numbers: near enough to normal, the same on every machine.
use ndarray::{Array1, Array2, Array3};

/// A small generator (xorshift, then a sum of uniforms).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in 0 .. n.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 33) as usize) % n
    }

    /// Mean 0, variance 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.below(1 << 24) as f64 / (1u32 << 24) as f64).sum();
        (sum - 6.0) as f32
    }

    pub fn array1(&mut self, n: usize) -> Array1<f32> {
        Array1::from_shape_simple_fn(n, || self.normal())
    }

    pub fn array2(&mut self, rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, cols), || self.normal())
    }

    pub fn array3(&mut self, a: usize, b: usize, c: usize) -> Array3<f32> {
        Array3::from_shape_simple_fn((a, b, c), || self.normal())
    }
}

/// The largest |a − b|; NaN if there is one.
pub fn worst<'a>(
    a: impl IntoIterator<Item = &'a f32>,
    b: impl IntoIterator<Item = &'a f32>,
) -> f32 {
    let mut worst = 0.0f32;
    for (a, b) in a.into_iter().zip(b) {
        let d = if a == b { 0.0 } else { (a - b).abs() };
        if d > worst || d.is_nan() {
            worst = d;
        }
    }
    worst
}
