//! Where a layer's weights come from.

use super::{Checkpoint, Dtype, WeightPath};
use crate::error::Result;
use dsa_kernels::DType;
use dsa_tests::generate::Rng;
use std::fmt::Display;

/// Weights by their names in a checkpoint: those of a file, or made up.
pub trait Weights: Sized {
    /// What is below `part`: a name, dotted names, or a number.
    fn at(&self, part: impl Display) -> Self;

    /// The elements of the tensor `name`, row-major in f32; fp8 ones times their blocks' scales.
    ///
    /// # Errors
    /// If there is no such tensor, or it is not of `shape`.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;

    /// The tensor's own bytes, if it is stored as little-endian elements of `dtype`: they go to a device without
    /// a copy on the way.
    ///
    /// # Errors
    /// As [`Weights::values`].
    fn stored(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Option<&[u8]>>;
}

impl Weights for WeightPath<'_> {
    fn at(&self, part: impl Display) -> Self {
        WeightPath::at(self, part)
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint().values(&self.name(name), shape)
    }

    fn stored(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Option<&[u8]>> {
        let checkpoint: &Checkpoint = self.checkpoint();
        let tensor = checkpoint.tensor(&self.name(name))?;
        let same = matches!(
            (tensor.dtype, dtype),
            (Dtype::F32, DType::F32) | (Dtype::BF16, DType::Bf16) | (Dtype::F16, DType::F16)
        );
        Ok((same && tensor.shape == shape).then_some(tensor.bytes))
    }
}

/// Seeded weights: matrices normal of variance 1 / in, so that activations keep their size; norms near 1, biases
/// near 0. A tensor depends on the seed and its name alone, and is the same on every machine.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    path: String,
}

impl Random {
    /// The weights of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, path: String::new() }
    }
}

impl Weights for Random {
    fn at(&self, part: impl Display) -> Self {
        Self { seed: self.seed, path: format!("{}{part}.", self.path) }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let full = format!("{}{name}", self.path);
        let seed =
            full.bytes().fold(self.seed, |seed, byte| Rng::new(seed ^ u64::from(byte)).bits());
        let mut rng = Rng::new(seed);
        let (mean, deviation) = match *shape {
            [_, into] => (0.0, (into.max(1) as f32).sqrt().recip()),
            _ if name.ends_with("bias") => (0.0, 0.1),
            _ => (1.0, 0.1),
        };
        Ok((0..shape.iter().product()).map(|_| mean + deviation * rng.normal()).collect())
    }

    fn stored(&self, _: &str, _: &[usize], _: DType) -> Result<Option<&[u8]>> {
        Ok(None)
    }
}
