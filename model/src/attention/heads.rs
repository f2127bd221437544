//! Products over heads, and the rows that selected keys lie in.

use super::step::{Places, Step};
use super::weights::{Uploader, expect};
use crate::cache::{Cache, IndexKeys};
use crate::config::Config;
use crate::error::Result;
use dsa_kernels::copy::place_rows;
use dsa_kernels::gemm::{gemm, gemm_into};
use dsa_kernels::top_k::shift_indices;
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
    /// W_UK and W_UV of each head: `[h, nope + v, rank]`.
    expand: Tensor,
    /// W_UKᵀ of each head: `[h, rank, nope]`.
    absorb: Tensor,
    nope: usize,
    rank: usize,
}

impl KvB {
    pub fn new(to: &Uploader, c: &Config, w: &Array2<f32>) -> Result<Self> {
        let (heads, nope, v) = (c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim);
        let rank = c.kv_lora_rank;
        expect("kv_b_proj", w, &[heads * (nope + v), rank])?;
        let row = |head: usize| head * (nope + v);
        let absorb = Array3::from_shape_fn((heads, rank, nope), |(h, r, i)| w[(row(h) + i, r)]);
        Ok(Self {
            expand: to.upload(w, &[heads, nope + v, rank], to.dtype)?,
            absorb: to.upload(&absorb, &[heads, rank, nope], to.dtype)?,
            nope,
            rank,
        })
    }

    /// `q_nope·W_UK`: `[n, h, nope + rope]` to `[n, h, rank + rope]`, whose tail is yet to be
    /// written.
    pub fn absorb(&self, device: &Device, q: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (n, heads, nope, rank) = (q.shape()[0], q.shape()[1], self.nope, self.rank);
        let rope_dim = q.shape()[2] - nope;
        let absorbed = device.empty(&[n, heads, rank + rope_dim], q.dtype())?; // [n, h, rank + rope]
        let q_nope = q.narrow(2, 0, nope)?.transpose(0, 1)?; // [h, n, nope]
        let to = absorbed.narrow(2, 0, rank)?.transpose(0, 1)?; // [h, n, rank]
        gemm_into(device, &q_nope, &self.absorb, &to)?;
        Ok(absorbed)
    }

    /// `o'·W_UV`: `[n, h, rank]` to `[n, h, v]`.
    pub fn values(&self, device: &Device, latent: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (w_uv, n) = (self.w_uv()?, latent.shape()[0]);
        let out = device.empty(&[n, w_uv.shape()[0], w_uv.shape()[1]], latent.dtype())?; // [n, h, v]
        let by_head = latent.transpose(0, 1)?; // [h, n, rank]
        gemm_into(device, &by_head, &w_uv, &out.transpose(0, 1)?)?;
        Ok(out)
    }

    /// `[h, v, rank]`.
    fn w_uv(&self) -> dsa_kernels::Result<Tensor> {
        self.expand.narrow(1, self.nope, self.expand.shape()[1] - self.nope)
    }

    /// Keys `[rows, h, nope + rope]` and values `[rows, h, v]` of each head, from the latents
    /// `[rows, rank + rope]`, contiguous.
    pub fn expand(
        &self,
        device: &Device,
        latents: &Tensor,
    ) -> dsa_kernels::Result<(Tensor, Tensor)> {
        let (rows, rope_dim) = (latents.shape()[0], latents.shape()[1] - self.rank);
        let (w_uk, w_uv) = (self.expand.narrow(1, 0, self.nope)?, self.w_uv()?); // [h, _, rank]
        let (heads, v) = (w_uv.shape()[0], w_uv.shape()[1]);
        let k = device.empty(&[rows, heads, self.nope + rope_dim], latents.dtype())?;
        let values = device.empty(&[rows, heads, v], latents.dtype())?;
        let c = latents.narrow(1, 0, self.rank)?.unsqueeze(0); // [1, rows, rank]
        let c = c.broadcast(0, heads)?; // [h, rows, rank]
        let k_nope = k.narrow(2, 0, self.nope)?; // [rows, h, nope]
        gemm_into(device, &c, &w_uk, &k_nope.transpose(0, 1)?)?;
        gemm_into(device, &c, &w_uv, &values.transpose(0, 1)?)?;
        // One k_pe for all heads.
        let k_pe = latents.narrow(1, self.rank, rope_dim)?.unsqueeze(1); // [rows, 1, rope]
        let all: Vec<i32> = (0..rows as i32).collect();
        let all = device.upload_i32(&all, &[rows])?; // [rows]
        place_rows(device, &k_pe, &all, &k.narrow(2, self.nope, rope_dim)?)?;
        Ok((k, values))
    }
}

/// The rows of the step's table that the `chosen` `[n, topk]` columns of the logits stand for.
///
/// They are the same for one request, and where index keys are rows. For a batch over paged keys
/// they are positions, to be moved to where their request begins.
pub(super) fn table_rows(
    device: &Device,
    chosen: Tensor,
    step: &Step,
    cache: &Cache,
    at: &Places,
) -> dsa_kernels::Result<Tensor> {
    if step.requests == 1 || matches!(cache.index_keys(), IndexKeys::Rows { .. }) {
        return Ok(chosen);
    }
    shift_indices(device, &chosen, &at.first)
}
