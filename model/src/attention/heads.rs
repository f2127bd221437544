//! Products over heads, and the rows that selected keys lie in.

use super::step::Step;
use super::weights::{Uploader, expect};
use crate::cache::{Cache, IndexKeys};
use crate::config::Config;
use crate::error::Result;
use dsa_kernels::gemm::{gemm, gemm_into};
use dsa_kernels::{DType, Device, Tensor};
use ndarray::{Array2, Array3};

/// Heads of one width, side by side in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    /// How many.
    pub n: usize,
    /// Elements of one.
    pub dim: usize,
}

/// `x·wᵀ`: `[n, in]` times `[1, out, in]` is `[n, out]` of type `dtype`. Contiguous x.
pub(super) fn linear(
    device: &Device,
    x: &Tensor,
    w: &Tensor,
    dtype: DType,
) -> dsa_kernels::Result<Tensor> {
    let (n, out) = (x.shape()[0], w.shape()[1]);
    let x = x.reshape(&[1, n, x.len() / n.max(1)])?;
    gemm(device, &x, w, dtype)?.reshape(&[n, out])
}

/// `kv_b_proj`, `[h · (nope + v), rank]`, in the forms in which it is multiplied. Of each head's
/// rows the first `nope` are W_UK, the others W_UV.
#[derive(Clone, Debug)]
pub(super) struct KvB {
    /// W_UKᵀ of each head: `[h, rank, nope]`.
    absorb: Tensor,
    /// W_UV of each head: `[h, v, rank]`.
    values: Tensor,
    /// W_UK in the upper left and the identity in the lower right: `[1, h · (nope + rope), rank +
    /// rope]`. A row c ‖ k_pe of the cache times this is k_nope ‖ k_pe of every head at once.
    keys: Tensor,
    nope: usize,
    rank: usize,
}

impl KvB {
    pub fn new(to: &Uploader, c: &Config, w: &Array2<f32>) -> Result<Self> {
        let (heads, nope, v) = (c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim);
        let (rank, head_dim) = (c.kv_lora_rank, c.qk_head_dim());
        expect("kv_b_proj", w, &[heads * (nope + v), rank])?;
        let row = |head: usize| head * (nope + v);
        let absorb = Array3::from_shape_fn((heads, rank, nope), |(h, r, i)| w[(row(h) + i, r)]);
        let values = Array3::from_shape_fn((heads, v, rank), |(h, i, r)| w[(row(h) + nope + i, r)]);
        let keys = Array3::from_shape_fn((heads, head_dim, c.latent_dim()), |(h, i, r)| {
            match (i < nope, r < rank) {
                (true, true) => w[(row(h) + i, r)],
                (false, false) if i - nope == r - rank => 1.0,
                _ => 0.0,
            }
        }); // [h, nope + rope, rank + rope]
        Ok(Self {
            absorb: to.upload(&absorb, &[heads, rank, nope], to.dtype)?,
            values: to.upload(&values, &[heads, v, rank], to.dtype)?,
            keys: to.upload(&keys, &[1, heads * head_dim, c.latent_dim()], to.dtype)?,
            nope,
            rank,
        })
    }

    /// `q_nope·W_UK`: `[n, h, nope + rope]` to `[n, h, rank + rope]`, whose tail is yet to be
    /// written.
    pub fn absorb(&self, device: &Device, q: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (n, heads, nope, rank) = (q.shape()[0], q.shape()[1], self.nope, self.rank);
        let rope_dim = q.shape()[2] - nope;
        let absorbed = device.empty(&[n, heads, rank + rope_dim], q.dtype()); // [n, h, rank + rope]
        let q_nope = q.narrow(2, 0, nope)?.transpose(0, 1)?; // [h, n, nope]
        let to = absorbed.narrow(2, 0, rank)?.transpose(0, 1)?; // [h, n, rank]
        gemm_into(device, &q_nope, &self.absorb, &to)?;
        Ok(absorbed)
    }

    /// `o'·W_UV`: `[n, h, rank]` to `[n, h, v]`.
    pub fn values(&self, device: &Device, latent: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (n, heads, v) = (latent.shape()[0], self.values.shape()[0], self.values.shape()[1]);
        let out = device.empty(&[n, heads, v], latent.dtype()); // [n, h, v]
        let by_head = latent.transpose(0, 1)?; // [h, n, rank]
        gemm_into(device, &by_head, &self.values, &out.transpose(0, 1)?)?;
        Ok(out)
    }

    /// Keys `[rows, h, nope + rope]` and values `[rows, h, v]` of each head, from the latents
    /// `[rows, rank + rope]`, contiguous.
    ///
    /// Multiplying the identity along costs a third more FLOP than `c·Wkv_bᵀ` alone, in place of a
    /// copy of k_pe to every head.
    pub fn expand(
        &self,
        device: &Device,
        latents: &Tensor,
    ) -> dsa_kernels::Result<(Tensor, Tensor)> {
        let (rows, d) = (latents.shape()[0], latents.shape()[1]);
        let (heads, v) = (self.values.shape()[0], self.values.shape()[1]);
        let latents = latents.reshape(&[1, rows, d])?;
        let k = gemm(device, &latents, &self.keys, latents.dtype())?; // [1, rows, h · (nope + rope)]
        let c = latents.narrow(2, 0, self.rank)?; // [1, rows, rank]
        let w_uv = self.values.reshape(&[1, heads * v, self.rank])?;
        let values = gemm(device, &c, &w_uv, c.dtype())?; // [1, rows, h · v]
        let k = k.reshape(&[rows, heads, self.nope + d - self.rank])?;
        Ok((k, values.reshape(&[rows, heads, v])?))
    }
}

/// The rows of the step's table that the `chosen` `[n, topk]` columns of the logits stand for.
///
/// They are the same for one request, and where index keys are rows. For a batch over paged keys
/// they are positions, to be moved to where their request begins. There is no kernel for it: the
/// host does it, outside of every stage's time.
pub(super) fn table_rows(
    device: &Device,
    chosen: Tensor,
    step: &Step,
    cache: &Cache,
) -> Result<Tensor> {
    if step.requests == 1 || matches!(cache.index_keys(), IndexKeys::Rows { .. }) {
        return Ok(chosen);
    }
    let mut indices = device.download_i32(&chosen)?; // [n · topk]
    for (row, list) in indices.chunks_mut(chosen.shape()[1]).enumerate() {
        let first = (row * cache.max_seq()) as i32;
        list.iter_mut().filter(|position| **position >= 0).for_each(|position| *position += first);
    }
    Ok(device.upload_i32(&indices, chosen.shape())?)
}
