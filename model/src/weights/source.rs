//! Where a layer's weights come from.

use super::{Dtype, WeightPath};
use crate::config::Config;
use crate::error::{Error, Result};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;
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

    /// The tensor's own bytes, if it is stored as little-endian elements of `dtype`: they go to a device as they
    /// are.
    ///
    /// # Errors
    /// As [`Weights::values`].
    fn stored(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Option<Vec<u8>>>;

    /// The e4m3 codes of a matrix `[out, in]` and its scales `[⌈out/128⌉, ⌈in/128⌉]`, if it is stored so.
    ///
    /// # Errors
    /// As [`Weights::values`].
    fn quantised(&self, name: &str, shape: [usize; 2]) -> Result<Option<(Vec<u8>, Vec<f32>)>>;

    /// Refuses weights that are not those of the whole model of `config`, whose root this is, before any is read.
    ///
    /// # Errors
    /// As [`Checkpoint::expect`](super::Checkpoint::expect).
    fn expect(&self, config: &Config) -> Result<()>;

    /// Refuses a tensor here that is not among `read` (a bias, a sink, a scale of a weight that is not
    /// quantised): what reads the others would compute without it.
    ///
    /// # Errors
    /// [`Error::Unread`].
    fn refuse_others(&self, read: &[&str]) -> Result<()>;
}

/// Tensors that decide nothing: a table of frequencies that old writers stored, which is computed.
const FREE: [&str; 1] = ["rotary_emb.inv_freq"];

impl Weights for WeightPath<'_> {
    fn at(&self, part: impl Display) -> Self {
        WeightPath::at(self, part)
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint().values(&self.name(name), shape)
    }

    fn stored(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Option<Vec<u8>>> {
        let (stored, found) = self.form(name)?;
        let same = matches!(
            (stored, dtype),
            (Dtype::F32, DType::F32) | (Dtype::BF16, DType::Bf16) | (Dtype::F16, DType::F16)
        );
        if same && found == shape { Ok(Some(self.tensor(name)?.bytes)) } else { Ok(None) }
    }

    fn quantised(&self, name: &str, shape: [usize; 2]) -> Result<Option<(Vec<u8>, Vec<f32>)>> {
        self.checkpoint().quantised(&self.name(name), shape)
    }

    fn expect(&self, config: &Config) -> Result<()> {
        self.checkpoint().expect(config)
    }

    fn refuse_others(&self, read: &[&str]) -> Result<()> {
        let scales = |name: &str| {
            let weight = name.strip_suffix("_scale_inv").filter(|weight| read.contains(weight));
            weight.is_some_and(|w| self.form(w).is_ok_and(|(dtype, _)| dtype == Dtype::F8_E4M3))
        };
        let known = |name: &&str| read.contains(name) || FREE.contains(name) || scales(name);
        match self.names().find(|name| !known(name)) {
            Some(name) => Err(Error::Unread(self.name(name))),
            None => Ok(()),
        }
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

    fn stored(&self, _: &str, _: &[usize], _: DType) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn quantised(&self, _: &str, _: [usize; 2]) -> Result<Option<(Vec<u8>, Vec<f32>)>> {
        Ok(None)
    }

    fn expect(&self, _: &Config) -> Result<()> {
        Ok(())
    }

    fn refuse_others(&self, _: &[&str]) -> Result<()> {
        Ok(())
    }
}
