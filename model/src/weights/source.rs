//! Where a layer's weights come from.

use super::WeightPath;
use crate::config::Config;
use crate::error::{Error, Result};
use dsa_kernels::DType;
use dsa_kernels::upload::Upload;
use std::fmt::Display;
use std::ops::Range;

/// Weights by their names in a checkpoint: those of a file, or made up.
pub trait Weights: Sized {
    /// What is below `part`: a name, dotted names, or a number.
    fn at(&self, part: impl Display) -> Self;

    /// The elements of the tensor `name`, row-major in f32; fp8 ones times their blocks' scales.
    ///
    /// # Errors
    /// If there is no such tensor, or it is not of `shape`.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;

    /// The type in which the tensor is stored: f32, bf16, f16, or e4m3, which has scales.
    ///
    /// # Errors
    /// As [`Weights::values`].
    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType>;

    /// Writes the elements `rows` of the tensor's first axis to a device, as they are stored.
    ///
    /// # Errors
    /// As [`Weights::values`]; [`Error::Kernel`] if the device does not take them.
    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()>;

    /// Writes the scales `[⌈out/128⌉, ⌈in/128⌉]` of a matrix `[out, in]` that is stored in e4m3 to a device, in f32.
    ///
    /// # Errors
    /// As [`Weights::elements`]; [`Error::Element`] for one that is negative, infinite or NaN.
    fn scales(&self, name: &str, shape: [usize; 2], to: &mut Upload) -> Result<()>;

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

    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType> {
        self.checkpoint().stored(&self.name(name), shape)
    }

    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()> {
        self.checkpoint().elements(&self.name(name), shape, rows, to)
    }

    fn scales(&self, name: &str, shape: [usize; 2], to: &mut Upload) -> Result<()> {
        let scales = self.checkpoint().scales(&self.name(name), shape)?;
        Ok(to.write(DType::F32.encode(&scales))?)
    }

    fn expect(&self, config: &Config) -> Result<()> {
        self.checkpoint().expect(config)
    }

    fn refuse_others(&self, read: &[&str]) -> Result<()> {
        let before = self.name("");
        let scales = |name: &str| {
            let weight = self.checkpoint().scaled_by(&self.name(name)).map(str::to_string);
            weight.and_then(|w| w.strip_prefix(&before).map(|w| read.contains(&w))) == Some(true)
        };
        let known = |name: &&str| read.contains(name) || FREE.contains(name) || scales(name);
        match self.names().find(|name| !known(name)) {
            Some(name) => Err(Error::Unread(self.name(name))),
            None => Ok(()),
        }
    }
}
