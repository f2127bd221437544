//! `kv_b_proj`: from the latent to keys and values of each head, or absorbed into queries and outputs.

use super::linear::Loader;
use crate::config::Config;
use crate::error::Result;
use crate::run::Batch;
use crate::weights::Weights;
use dsa_kernels::copy::place_rows;
use dsa_kernels::gemm::{gemm, gemm_into};
use dsa_kernels::{Device, Tensor};

/// `kv_b_proj`, `[h · (nope + v), rank]`, in the forms in which it is multiplied. Of each head's
/// rows the first `nope` are W_UK, the others W_UV.
#[derive(Clone)]
pub(super) struct KvB {
    /// W_UK and W_UV of each head: `[h, nope + v, rank]`.
    expand: Tensor,
    /// W_UKᵀ of each head: `[h, rank, nope]`.
    absorb: Tensor,
    nope: usize,
    rank: usize,
    device: Device,
}

impl KvB {
    pub fn new<W: Weights>(to: &Loader<W>, c: &Config) -> Result<Self> {
        let (heads, nope, v) = (c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim);
        let (rank, device, dtype) = (c.kv_lora_rank, to.device, to.precision.dtype);
        let w = to.table("kv_b_proj", [heads * (nope + v), rank])?;
        let expand = w.reshape(&[heads, nope + v, rank])?;
        // A product with the identity transposes, and adds nothing but zeros.
        let one = |at: usize| if at.is_multiple_of(rank + 1) { 1.0 } else { 0.0 };
        let identity: Vec<f32> = (0..rank * rank).map(one).collect();
        let identity = device.upload_f32(&identity, &[1, rank, rank], dtype)?;
        let absorb = gemm(&identity.broadcast(0, heads)?, &expand.narrow(1, 0, nope)?, dtype)?;
        Ok(Self { expand, absorb, nope, rank, device: device.clone() })
    }

    /// `q_nope·W_UK`: `[n, h, nope + rope]` to `[n, h, rank + rope]`, whose tail is yet to be
    /// written.
    pub fn absorb(&self, q: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (n, heads, nope, rank) = (q.shape()[0], q.shape()[1], self.nope, self.rank);
        let rope_dim = q.shape()[2] - nope;
        let absorbed = self.device.empty(&[n, heads, rank + rope_dim], q.dtype())?; // [n, h, rank + rope]
        let q_nope = q.narrow(2, 0, nope)?.transpose(0, 1)?; // [h, n, nope]
        let to = absorbed.narrow(2, 0, rank)?.transpose(0, 1)?; // [h, n, rank]
        gemm_into(&q_nope, &self.absorb, &to)?;
        Ok(absorbed)
    }

    /// `o'·W_UV`: `[n, h, rank]` to `[n, h, v]`.
    pub fn values(&self, latent: &Tensor) -> dsa_kernels::Result<Tensor> {
        let (w_uv, n) = (self.w_uv()?, latent.shape()[0]);
        let out = self.device.empty(&[n, w_uv.shape()[0], w_uv.shape()[1]], latent.dtype())?; // [n, h, v]
        let by_head = latent.transpose(0, 1)?; // [h, n, rank]
        gemm_into(&by_head, &w_uv, &out.transpose(0, 1)?)?;
        Ok(out)
    }

    /// `[h, v, rank]`.
    fn w_uv(&self) -> dsa_kernels::Result<Tensor> {
        self.expand.narrow(1, self.nope, self.expand.shape()[1] - self.nope)
    }

    /// Keys `[rows, h, nope + rope]` and values `[rows, h, v]` of each head, from the latents
    /// `[rows, rank + rope]`, contiguous.
    pub fn expand(&self, latents: &Tensor, batch: &Batch) -> dsa_kernels::Result<(Tensor, Tensor)> {
        let device = &self.device;
        let (rows, rope_dim) = (latents.shape()[0], latents.shape()[1] - self.rank);
        let (w_uk, w_uv) = (self.expand.narrow(1, 0, self.nope)?, self.w_uv()?); // [h, _, rank]
        let (heads, v) = (w_uv.shape()[0], w_uv.shape()[1]);
        let k = device.empty(&[rows, heads, self.nope + rope_dim], latents.dtype())?;
        let values = device.empty(&[rows, heads, v], latents.dtype())?;
        let c = latents.narrow(1, 0, self.rank)?.unsqueeze(0); // [1, rows, rank]
        let c = c.broadcast(0, heads)?; // [h, rows, rank]
        let k_nope = k.narrow(2, 0, self.nope)?; // [rows, h, nope]
        gemm_into(&c, &w_uk, &k_nope.transpose(0, 1)?)?;
        gemm_into(&c, &w_uv, &values.transpose(0, 1)?)?;
        // One k_pe for all heads.
        let k_pe = latents.narrow(1, self.rank, rope_dim)?.unsqueeze(1); // [rows, 1, rope]
        place_rows(&k_pe, batch.table_rows()?, &k.narrow(2, self.nope, rope_dim)?)?;
        Ok((k, values))
    }
}
