//! What a launcher takes, as text that is also the check: `q: [s, H, D] e4m3|bf16|f16|f32, rows`.
//!
//! An axis is a name, bound by the first tensor that has it, or a product of names and numbers
//! (`page_size * (D + 4)` is written as the name of a size the launcher has bound). A type is one of
//! several, or `as` an earlier tensor. `rows`: the last stride is 1; otherwise contiguous.

use crate::Result;
use crate::tensor::{DType, Tensor};

/// The tensors of a launcher, in the order of its arguments.
pub struct Contract {
    pub tensors: &'static [&'static str],
    pub outputs: &'static [&'static str],
}

/// The sizes that a launch's axes were bound to.
#[derive(Clone, Debug, Default)]
pub struct Bound(Vec<(&'static str, usize)>);

impl Bound {
    /// With `name` known beforehand: an axis that no tensor defines.
    pub fn with(mut self, name: &'static str, size: usize) -> Self {
        self.0.push((name, size));
        self
    }

    /// The size of an axis of the contract.
    pub fn size(&self, axis: &str) -> usize {
        self.0.iter().find(|(name, _)| *name == axis).map_or(0, |(_, size)| *size)
    }

    /// Several at once.
    pub fn sizes<const N: usize>(&self, axes: [&str; N]) -> [usize; N] {
        axes.map(|axis| self.size(axis))
    }
}

impl Contract {
    /// Holds the tensors to the contract; the error names the first that breaks it, and what was expected.
    pub fn check<const N: usize>(&self, given: [&Tensor; N], known: Bound) -> Result<Bound> {
        let mut bound = known;
        for (line, tensor) in self.tensors.iter().copied().zip(given) {
            let (name, rest) = line.split_once(": ").unwrap_or((line, ""));
            let (axes, kind) = rest.trim_start_matches('[').split_once("] ").unwrap_or((rest, ""));
            let axes: Vec<&'static str> = axes.split(", ").collect();
            let (types, rows) = kind.strip_suffix(", rows").map_or((kind, false), |t| (t, true));
            for (axis, size) in axes.iter().copied().zip(tensor.shape()) {
                if !bound.0.iter().any(|(known, _)| *known == axis) {
                    bound.0.push((axis, *size));
                }
            }
            let expected: Vec<_> = axes.iter().map(|axis| (*axis, bound.size(axis))).collect();
            tensor.expect_shape(name, &expected)?;
            let types: Vec<DType> = match types.strip_prefix("as ") {
                Some(other) => {
                    let of = self.tensors.iter().position(|l| l.starts_with(other));
                    of.map(|i| given[i].dtype()).into_iter().collect()
                }
                None => types.split('|').filter_map(DType::named).collect(),
            };
            tensor.expect_dtype(name, &types)?;
            if rows { tensor.expect_rows(name)? } else { tensor.expect_contiguous(name)? }
        }
        Ok(bound)
    }
}
