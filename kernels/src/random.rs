//! Random numbers that are the same on every machine: inputs of the gates, made-up weights and contexts.

/// A small deterministic generator (splitmix64), so that a case is a function of its numbers and seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Normal with mean 0 and deviation 1: the sum of six uniforms of 32 bits. They are that fine so that two
    /// numbers are as seldom equal as those of a real kernel: top-k takes longer for ties, and what wants them
    /// makes them on purpose.
    pub fn normal(&mut self) -> f32 {
        let mut sum = 0u64;
        for _ in 0..3 {
            let bits = self.bits();
            sum += (bits & 0xffff_ffff) + (bits >> 32);
        }
        // Six uniforms have a mean of 3 and a deviation of sqrt(6 / 12).
        ((sum as f64 / 2f64.powi(32) - 3.0) * std::f64::consts::SQRT_2) as f32
    }

    /// One of `all`, which is not empty.
    pub fn choose<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        // Saved cases and golden rows are functions of a seed. The first is splitmix64's published output.
        assert_eq!(Rng::new(0).bits(), 0xe220_a839_7b1d_cdaf);
        let mut rng = Rng::new(7);
        let below = [10, 10, 1, 0].map(|n| rng.below(n));
        let numbers = [rng.unit(), rng.normal(), rng.normal()];
        assert_eq!((below, numbers), ([7, 4, 0, 0], [0.582_930_27, -0.590_549_9, -1.066_622_5]));
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let mut rng = Rng::new(1);
        let n = 1 << 16;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = f64::from(rng.normal());
            sum += x;
            squares += x * x;
        }
        let (mean, variance) = (sum / f64::from(n), squares / f64::from(n));
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
