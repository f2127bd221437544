//! Walking down the dotted names.

use std::fmt::Display;

use ndarray::{Array1, Array2, ArrayD};

use super::{Checkpoint, Dtype, Tensor};
use crate::error::Result;

impl Checkpoint {
    /// The path of all tensors, from which to walk down.
    pub fn root(&self) -> WeightPath<'_> {
        WeightPath { checkpoint: self, path: String::new() }
    }
}

/// A place in the tree of dotted names, so that a layer's fields read like its weights.
#[derive(Clone, Debug)]
pub struct WeightPath<'a> {
    checkpoint: &'a Checkpoint,
    path: String,
}

impl<'a> WeightPath<'a> {
    /// One step down, or several: a name, dotted names, or a number.
    pub fn at(&self, part: impl Display) -> WeightPath<'a> {
        WeightPath { checkpoint: self.checkpoint, path: self.name(part) }
    }

    /// The full name of `leaf` here.
    pub fn name(&self, leaf: impl Display) -> String {
        if self.path.is_empty() { leaf.to_string() } else { format!("{}.{leaf}", self.path) }
    }

    /// Whether there is a tensor `leaf` here.
    pub fn contains(&self, leaf: &str) -> bool {
        self.checkpoint.contains(&self.name(leaf))
    }

    /// The names of all tensors below here, without the path to here.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        let before = if self.path.is_empty() { String::new() } else { format!("{}.", self.path) };
        self.checkpoint.names().filter_map(move |name| name.strip_prefix(before.as_str()))
    }

    /// The element type and the shape of a tensor, which is not read.
    ///
    /// # Errors
    /// As [`Checkpoint::form`].
    pub fn form(&self, leaf: &str) -> Result<(Dtype, &'a [usize])> {
        self.checkpoint.form(&self.name(leaf))
    }

    /// A tensor as stored.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensor(&self, leaf: &str) -> Result<Tensor<'a>> {
        self.checkpoint.tensor(&self.name(leaf))
    }

    /// A tensor in f32, of any number of axes.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn f32(&self, leaf: &str, shape: &[usize]) -> Result<ArrayD<f32>> {
        self.checkpoint.f32(&self.name(leaf), shape)
    }

    /// A vector [n] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array1(&self, leaf: &str, n: usize) -> Result<Array1<f32>> {
        self.checkpoint.array1(&self.name(leaf), n)
    }

    /// A matrix [rows, columns] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array2(&self, leaf: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        self.checkpoint.array2(&self.name(leaf), shape)
    }
}
