//! What a launcher takes and returns, as text: it is the check before any work, what `dsa run --help` prints, what
//! every saved case is held against, and what the tests of refusals are made from.
//!
//! ```text
//! tensors  kv: [s_kv, d_qk] or [n_pages, page_size, d_qk] as q, rows   shapes, types (a|b, or those of another), strides
//! tensors  attn_sink: [h] f32 (optional)
//! tensors  ks: [s] i32 (or context_lens)                               there unless that one is
//! scalars  page_size: integer 1 to 1048576
//! scalars  splits: integer 1 to 1024 (chosen for the device)           what stands in brackets if it is left out
//! scalars  out: f32|bf16|f16 (f32)                                     one of these words
//! sizes    n: 1 to 1024, a power of two
//! ```
//!
//! A name in a shape stands for one size wherever it occurs; a scalar's name for its value, which is 1 if
//! it is left out. `/` rounds down, within `ceil( )` up. A tensor has no gaps, or with `rows` none between the
//! elements of a row: its last stride is 1.

mod check;
mod expression;
mod line;

pub use check::{Bound, Given};
pub use expression::{Range, Sizes, value};
pub use line::{Kind, ScalarLine, SizeLine, Strides, TensorLine, Types};

use crate::dtype::DType;

use crate::tensor::Tensor;
use crate::{KernelError, Result};
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// What a launcher takes and returns.
#[derive(Clone, Copy, Debug)]
pub struct Contract {
    /// The launcher's name.
    pub name: &'static str,
    /// The tensors, in the order of the launcher's arguments.
    pub tensors: &'static [&'static str],
    /// The scalars, in the order of the launcher's arguments.
    pub scalars: &'static [&'static str],
    /// What else sizes must be.
    pub sizes: &'static [&'static str],
    /// The tensors it makes or changes.
    pub outputs: &'static [&'static str],
}

/// What a contract has to know of a tensor, wherever its elements are.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its strides in elements, if it may have gaps.
    pub strides: Option<&'a [usize]>,
}

impl<'a> From<&'a Tensor> for Form<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape(), strides: Some(tensor.strides()) }
    }
}

/// A contract's lines, read.
#[derive(Debug)]
pub struct Lines {
    /// Those of the tensors.
    pub tensors: Vec<TensorLine>,
    /// Those of the scalars.
    pub scalars: Vec<ScalarLine>,
    /// Those of the outputs.
    pub outputs: Vec<TensorLine>,
    /// What sizes must be.
    pub sizes: Vec<SizeLine>,
}

/// Where the texts of a contract are, which tells contracts apart: a name would not keep two apart that share it.
type Place = [(usize, usize); 4];

/// The lines of every contract that a launch was held against: reading them takes longer than the check, and the
/// smallest kernels would wait for it. There are as many as places in the program that name one.
static READ: RwLock<BTreeMap<Place, &'static Lines>> = RwLock::new(BTreeMap::new());

impl Contract {
    /// The lines.
    ///
    /// # Errors
    /// [`KernelError::Contract`] with a line that cannot be read.
    pub fn lines(&self) -> Result<&'static Lines> {
        let place = [self.tensors, self.scalars, self.sizes, self.outputs]
            .map(|lines| (lines.as_ptr().addr(), lines.len()));
        let known = READ.read().unwrap_or_else(PoisonError::into_inner).get(&place).copied();
        if let Some(lines) = known {
            return Ok(lines);
        }
        let lines = Lines {
            tensors: self.parsed(self.tensors, TensorLine::parse)?,
            scalars: self.parsed(self.scalars, ScalarLine::parse)?,
            outputs: self.parsed(self.outputs, TensorLine::parse)?,
            sizes: self.parsed(self.sizes, SizeLine::parse)?,
        };
        let mut read = READ.write().unwrap_or_else(PoisonError::into_inner);
        Ok(read.entry(place).or_insert_with(|| Box::leak(Box::new(lines))))
    }

    fn parsed<T>(
        &self,
        lines: &[&'static str],
        parse: impl Fn(&'static str) -> Option<T>,
    ) -> Result<Vec<T>> {
        lines.iter().map(|line| parse(line).ok_or_else(|| self.unreadable(line))).collect()
    }

    fn unreadable(&self, line: &str) -> KernelError {
        KernelError::Contract { kernel: self.name, line: line.to_string() }
    }

    /// Checks the tensors of a launch, which are all on one device, and its scalars; both in the order of the
    /// contract, `None` and [`Given::Nothing`] for what is left out.
    ///
    /// # Errors
    /// The first that is not as the contract says: [`KernelError::Shape`], [`KernelError::DType`],
    /// [`KernelError::Strides`] or [`KernelError::Value`].
    pub fn check<'a, const T: usize>(
        &'a self,
        tensors: [Option<&'a Tensor>; T],
        scalars: &[Given<'a>],
    ) -> Result<Bound<'a>> {
        let forms = tensors.map(|tensor| tensor.map(Form::from));
        let bound = self.bind(&forms, scalars)?;
        let devices = self.tensors.iter().zip(tensors).filter_map(|(line, t)| Some((line, t?)));
        bound.on_one_device(devices)
    }
}
