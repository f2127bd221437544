//! Who watches a step: sees the tensors that a layer makes, and may put others in their place.
//!
//! ```text
//! let batch = Batch::chunk(&cache, 0, 0, n, Mode::Sparse)?.watched(|shown| {
//!     if shown.name == "index.scores" {
//!         keep(shown.layer, shown.tensor.download_f32()?);
//!     }
//!     Ok(None)                                 // the layer goes on with its own
//! });
//! model.forward(&ids, &batch, &mut cache)?;
//! ```
//! The names are those of [`intermediates`](crate::intermediates), and `mla.lse`, `[n, h]` f32: the natural logarithm
//! of the sum over the keys attended to, of which two passes' difference is the share of the attention that some keys
//! hold; and where the form is absorbed `mla.q`, `[n, h, rank + rope]`, what asks the cached rows. The hidden state behind a layer is `block.residual` plus `block.ffn_out`.

use crate::error::{Error, Result};
use dsa_kernels::Tensor;
use dsa_kernels::copy::place_rows;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A tensor that a layer made.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The layer's number.
    pub layer: usize,
    /// Which of its tensors: `mla.q_nope`, `index.scores`, `block.ffn_out`, …
    pub name: &'static str,
    /// The tensor, contiguous; the first axis is the step's tokens, in codes and scales its tokens times heads.
    pub tensor: &'a Tensor,
}

/// Takes what is shown, and returns what is to take its place, if anything is: of its shape and type.
type Take = dyn FnMut(Shown) -> Result<Option<Tensor>> + Send;

/// Who watches, if anyone does. If nobody does, nothing is copied and nothing waits.
#[derive(Default)]
pub(crate) struct Watch {
    take: Option<Mutex<Box<Take>>>,
    layer: AtomicUsize,
}

impl Watch {
    /// Shows everything to `take`.
    pub fn new(take: impl FnMut(Shown) -> Result<Option<Tensor>> + Send + 'static) -> Self {
        Self { take: Some(Mutex::new(Box::new(take))), ..Self::default() }
    }

    /// What is shown from here on is of layer `layer`.
    pub fn enter(&self, layer: usize) {
        self.layer.store(layer, Ordering::Relaxed);
    }

    /// Whether anyone watches, for what would be computed for him alone.
    pub fn is_there(&self) -> bool {
        self.take.is_some()
    }

    /// Shows a contiguous tensor. What is returned goes on: the tensor itself, or what took its place.
    ///
    /// # Errors
    /// Those of who watches; [`Error::Argument`] if he gives another shape or type.
    pub fn show(&self, name: &'static str, tensor: Tensor) -> Result<Tensor> {
        Ok(self.given(name, &tensor)?.unwrap_or(tensor))
    }

    /// Shows a view `[n, d]` or `[n, h, d]` of a wider tensor. What takes its place is written there.
    ///
    /// # Errors
    /// As [`Watch::show`], and if the device refuses the copy.
    pub fn show_part(&self, name: &'static str, part: &Tensor) -> Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        let device = part.device();
        let view = if part.shape().len() == 2 { part.unsqueeze(1) } else { part.clone() }; // [n, h, d]
        let rows: Vec<i32> = (0..view.shape()[0] as i32).collect();
        let rows = device.upload_i32(&rows, &[rows.len()])?; // [n]
        let whole = device.empty(view.shape(), view.dtype())?; // [n, h, d]
        place_rows(&view, &rows, &whole)?;
        if let Some(given) = self.given(name, &whole.reshape(part.shape())?)? {
            place_rows(&given.reshape(view.shape())?, &rows, &view)?;
        }
        Ok(())
    }

    fn given(&self, name: &'static str, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(take) = &self.take else { return Ok(None) };
        let layer = self.layer.load(Ordering::Relaxed);
        let given = {
            let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
            take(Shown { layer, name, tensor })?
        };
        let form = |tensor: &Tensor| format!("{} {:?}", tensor.dtype(), tensor.shape());
        if let Some(given) = &given {
            let right = form(given) == form(tensor);
            Error::check(right, name, form(given), form(tensor))?;
        }
        Ok(given)
    }
}
