//! Who watches a pass: sees what each stage of a layer returns, and may put something else in its place.
//!
//! | name | shape | what |
//! |---|---|---|
//! | `mla.x`, `mla.qr` | `[s, hidden_size]`, `[s, q_lora_rank]` | the attention's input, the compressed query |
//! | `mla.q_nope`, `mla.q_pe` | `[s, h, nope]`, `[s, h, rope]` | the queries' two parts, q_pe turned |
//! | `mla.c_before`, `mla.c`, `mla.k_pe` | `[s, rank]`, `[s, rank]`, `[s, rope]` | the latent, as it is stored, the shared key |
//! | `index.q`, `index.k` | `[s, H, D]`, `[s, D]` | the indexer's queries and keys |
//! | `index.q_codes`, `index.q_scale` | `[s, H, D]`, `[s, H]` | the same in 8 bits: what the codes stand for |
//! | `index.k_codes`, `index.k_scale` | `[s, D]`, `[s]` | |
//! | `index.weights`, `index.scores`, `index.topk` | `[s, H]`, `[s, s]`, `[s, index_topk]` | |
//! | `mla.o`, `mla.out` | `[s, h, v]`, `[s, hidden_size]` | the attention's result, before and after `o_proj` |
//! | `block.residual`, `block.ffn_in` | `[s, hidden_size]` | the sum after attention, and its norm |
//! | `gate.x`, `gate.weights`, `gate.indices` | `[s, hidden_size]`, `[s, k]`, `[s, k]` | the gate |
//! | `moe.routed`, `moe.shared`, `block.ffn_out` | `[s, hidden_size]` | the second half |
use crate::error::{Result, check_shape};
use ndarray::{Array, ArrayD, Dimension};

/// What a stage returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Numbers.
    Floats(ArrayD<f32>),
    /// Keys or experts.
    Integers(ArrayD<i32>),
}

/// Takes a layer's number, a stage's name and what it returned; gives what goes on in its place, if
/// anything does.
type Take<'a> = dyn FnMut(usize, &'static str, Value) -> Option<Value> + 'a;

/// Who watches, if anyone does.
#[derive(Default)]
pub struct Watch<'a> {
    take: Option<Box<Take<'a>>>,
    layer: usize,
}

impl<'a> Watch<'a> {
    /// Nobody.
    pub fn none() -> Self {
        Self::default()
    }

    /// Shows everything to `take`.
    pub fn new(take: impl FnMut(usize, &'static str, Value) -> Option<Value> + 'a) -> Self {
        Self { take: Some(Box::new(take)), layer: 0 }
    }

    /// What is shown from here on is of layer `layer`.
    pub(crate) fn enter(&mut self, layer: usize) {
        self.layer = layer;
    }

    /// Shows numbers; returns what goes on.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if what is given has another shape.
    pub(crate) fn floats<D: Dimension>(
        &mut self,
        name: &'static str,
        x: Array<f32, D>,
    ) -> Result<Array<f32, D>> {
        let Some(take) = &mut self.take else { return Ok(x) };
        match take(self.layer, name, Value::Floats(x.clone().into_dyn())) {
            Some(Value::Floats(given)) => in_place_of(name, x, given),
            _ => Ok(x),
        }
    }

    /// Shows keys or experts; returns what goes on.
    ///
    /// # Errors
    /// As [`Watch::floats`].
    pub(crate) fn integers<D: Dimension>(
        &mut self,
        name: &'static str,
        x: Array<i32, D>,
    ) -> Result<Array<i32, D>> {
        let Some(take) = &mut self.take else { return Ok(x) };
        match take(self.layer, name, Value::Integers(x.clone().into_dyn())) {
            Some(Value::Integers(given)) => in_place_of(name, x, given),
            _ => Ok(x),
        }
    }
}

/// `given`, in the dimensions of `x`.
fn in_place_of<T: Clone, D: Dimension>(
    name: &'static str,
    mut x: Array<T, D>,
    given: ArrayD<T>,
) -> Result<Array<T, D>> {
    check_shape(name, given.shape(), x.shape())?;
    x.iter_mut().zip(given).for_each(|(x, given)| *x = given);
    Ok(x)
}
