//! Made-up weights, without a file.

use super::{SCALE, Weights};
use crate::config::{Config, QUANT_BLOCK};
use crate::error::{Error, Result};
use dsa_kernels::dequantise::dequantise;
use dsa_kernels::random::Rng;
use dsa_kernels::random_weights::{DEVIATION, RandomWeights, random_weights};
use dsa_kernels::upload::Upload;
use dsa_kernels::{DType, Device};
use std::fmt::Display;
use std::ops::Range;

/// What made-up weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Matrices in e4m3 with their scales, but for those that published checkpoints keep in bf16: embedding, head, gate
    /// and the indexer's `weights_proj`. All else as [`Stored::Bf16`].
    Fp8,
    /// All in bf16, but for `e_score_correction_bias`, which is f32.
    Bf16,
    /// All in f32.
    F32,
}

/// Matrices that stay in bf16 where others are in e4m3.
const UNQUANTISED: [&str; 4] =
    ["embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "weights_proj.weight"];

/// The size of a step of codes: the largest is 256, below e4m3's 448.
const CODE_STEP: f32 = 1.0 / 256.0;
/// The middle of scales in steps: a scale is up to a quarter more or less.
const SCALE_OFFSET: u32 = 1 << 18;
/// The middle of a norm's weights in steps of 2^−19: they are 1 and up to an eighth more or less.
const NORM_OFFSET: u32 = 1 << 19;
/// Elements made in one launch: fewer than an i32 numbers.
const LAUNCH: usize = 1 << 28;

/// Seeded weights: matrices of variance 1 / in, so that activations keep their size over layers, and of variance 1 for
/// the embedding; norms near 1, biases near 0. An element depends on the seed, the tensor's name and its number there
/// alone, and is made where it is wanted: the same on every machine, and in the files that
/// [`MakeTiny`](crate::make_tiny::MakeTiny) writes.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    stored: Stored,
    path: String,
}

impl Random {
    /// The weights of `seed`, in f32.
    pub fn new(seed: u64) -> Self {
        Self::stored_as(seed, Stored::F32)
    }

    /// The weights of `seed` in `stored`.
    pub fn stored_as(seed: u64, stored: Stored) -> Self {
        Self { seed, stored, path: String::new() }
    }

    /// The key of the tensor `name`.
    fn key(&self, name: &str) -> u64 {
        let bytes = self.path.bytes().chain(name.bytes());
        bytes.fold(self.seed, |seed, byte| Rng::new(seed ^ u64::from(byte)).bits())
    }

    /// What the elements of the tensor `name` of `shape` are made of.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<RandomWeights> {
        let (offset, step) = match *shape {
            [_, _] if self.stored(name, shape)? == DType::E4m3 => (0, CODE_STEP),
            [_, into] => (0, (deviation(name, into) / DEVIATION) as f32),
            _ if name.ends_with("bias") => (0, (0.1 / DEVIATION) as f32),
            _ => (NORM_OFFSET, 1.0 / NORM_OFFSET as f32),
        };
        Ok(RandomWeights { key: self.key(name), first: 0, offset, step })
    }
}

/// The deviation of a matrix of `into` columns.
fn deviation(name: &str, into: usize) -> f64 {
    if name.ends_with("embed_tokens.weight") { 1.0 } else { 1.0 / (into.max(1) as f64).sqrt() }
}

/// Makes the `n` elements from `first` on.
fn make(of: RandomWeights, first: usize, n: usize, to: &mut Upload) -> Result<()> {
    for at in (first..first + n).step_by(LAUNCH) {
        let number = u32::try_from(at).map_err(|_| Error::Argument {
            name: "an element's number",
            value: at.to_string(),
            expected: "less than 2^32 elements of one weight".into(),
        })?;
        let part = to.take(LAUNCH.min(first + n - at))?;
        random_weights(&part, RandomWeights { first: number, ..of })?;
    }
    Ok(())
}

impl Weights for Random {
    fn at(&self, part: impl Display) -> Self {
        Self { path: format!("{}{part}.", self.path), ..*self }
    }

    /// On the CPU, with the kernel that makes them on any device.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (device, stored) = (Device::named("cpu")?, self.stored(name, shape)?);
        let mut upload = Upload::new(&device, shape, stored)?;
        self.elements(name, shape, 0..shape.first().copied().unwrap_or(1), &mut upload)?;
        let tensor = upload.finish()?;
        let (DType::E4m3, &[out, into]) = (stored, shape) else {
            return Ok(tensor.download_f32()?);
        };
        let blocks = [out, into].map(|n| n.div_ceil(QUANT_BLOCK));
        let mut scales = Upload::new(&device, &blocks, DType::F32)?;
        self.scales(name, [out, into], &mut scales)?;
        Ok(dequantise(&tensor, Some(&scales.finish()?), DType::F32)?.download_f32()?)
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType> {
        let full = format!("{}{name}", self.path);
        let quantised = shape.len() == 2 && !UNQUANTISED.iter().any(|kept| full.ends_with(kept));
        Ok(match self.stored {
            Stored::F32 => DType::F32,
            _ if full.ends_with("e_score_correction_bias") => DType::F32,
            Stored::Fp8 if quantised => DType::E4m3,
            Stored::Fp8 | Stored::Bf16 => DType::Bf16,
        })
    }

    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()> {
        let row: usize = shape.iter().skip(1).product();
        make(self.numbers(name, shape)?, rows.start * row, rows.len() * row, to)
    }

    fn scales(&self, name: &str, shape: [usize; 2], to: &mut Upload) -> Result<()> {
        let of_codes = DEVIATION * f64::from(CODE_STEP);
        let middle = deviation(name, shape[1]) / of_codes;
        let key = self.key(&format!("{name}{SCALE}"));
        let step = (middle / f64::from(SCALE_OFFSET)) as f32;
        let of = RandomWeights { key, first: 0, offset: SCALE_OFFSET, step };
        let [out, into] = shape.map(|n| n.div_ceil(QUANT_BLOCK));
        make(of, 0, out * into, to)
    }

    fn expect(&self, _: &Config) -> Result<()> {
        Ok(())
    }

    fn refuse_others(&self, _: &[&str]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        (mean, square.sqrt())
    }

    #[test]
    fn matrices_keep_the_size_of_activations_in_whatever_they_are_stored() {
        for stored in [Stored::F32, Stored::Bf16, Stored::Fp8] {
            let weights = Random::stored_as(3, stored).at("model.layers.4.mlp");
            let (mean, deviation) = spread(&weights.values("up_proj.weight", &[300, 400]).unwrap());
            assert!(mean.abs() < 2e-3 && (deviation * 20.0 - 1.0).abs() < 0.02, "{deviation}");
        }
        let norm = Random::new(3).values("norm.weight", &[4000]).unwrap();
        let (mean, deviation) = spread(&norm);
        assert!(
            (mean - 1.0).abs() < 0.01 && (0.04..0.06).contains(&deviation),
            "{mean} {deviation}"
        );
        let bias = Random::new(3).values("k_norm.bias", &[4000]).unwrap();
        let (mean, deviation) = spread(&bias);
        assert!(mean.abs() < 0.01 && (deviation - 0.1).abs() < 0.01, "{mean} {deviation}");
    }

    #[test]
    fn what_is_in_which_type_is_as_in_published_checkpoints() {
        let root = Random::stored_as(1, Stored::Fp8);
        let layer = root.at("model").at("layers").at(3);
        for (weights, name, shape, dtype) in [
            (root.at("model"), "embed_tokens.weight", &[9, 9][..], DType::Bf16),
            (root.clone(), "lm_head.weight", &[9, 9], DType::Bf16),
            (layer.at("mlp"), "gate.weight", &[9, 9], DType::Bf16),
            (layer.at("mlp"), "gate.e_score_correction_bias", &[9], DType::F32),
            (layer.at("mlp.shared_experts"), "gate_proj.weight", &[9, 9], DType::E4m3),
            (layer.at("self_attn.indexer"), "weights_proj.weight", &[9, 9], DType::Bf16),
            (layer.at("self_attn.indexer"), "wk.weight", &[9, 9], DType::E4m3),
            (layer.clone(), "input_layernorm.weight", &[9], DType::Bf16),
        ] {
            assert_eq!(weights.stored(name, shape).unwrap(), dtype, "{name}");
        }
    }

    #[test]
    fn a_tensor_is_its_seeds_and_its_names_however_it_is_reached() {
        let values = |weights: Random, name: &str| weights.values(name, &[5, 7]).unwrap();
        let whole = values(Random::new(1), "a.b.c.weight");
        assert_eq!(values(Random::new(1).at("a").at("b.c"), "weight"), whole);
        assert_ne!(values(Random::new(2), "a.b.c.weight"), whole);
        assert_ne!(values(Random::new(1), "a.b.d.weight"), whole);
    }
}
