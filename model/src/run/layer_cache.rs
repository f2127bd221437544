//! The cache of one layer: where its tokens' latents and index keys are written, and how they are read.

use super::{Batch, KvFormat};
use crate::config::Config;
use crate::error::Result;
use dsa_kernels::cache_read::load_kv;
use dsa_kernels::cache_write::{KvRecord, store_index_keys, store_kv};
use dsa_kernels::copy::place_rows;
use dsa_kernels::embedding::embedding;
use dsa_kernels::keys::Kv;
use dsa_kernels::quant::{Quantised, ScaleFmt, act_quant};
use dsa_kernels::{DType, Device, KernelError, Tensor};

/// The cache of one layer.
#[derive(Clone)]
pub struct LayerCache {
    page_size: usize,
    latents: Latents,
    record: KvRecord,
    /// Of latent rows, and of the layer that writes and reads them.
    dtype: DType,
    /// `None`: the layer shares another's keys.
    index_keys: Option<IndexCache>,
    index_dim: usize,
    scale_fmt: ScaleFmt,
}

/// The latents.
#[derive(Clone, Debug)]
enum Latents {
    /// `[pages · page_size, rank + rope]`.
    Rows(Tensor),
    /// `[pages, page_size · record bytes]` u8.
    Records(Tensor),
}

/// The indexer's keys.
#[derive(Clone, Debug)]
pub(crate) enum IndexCache {
    /// `[pages, page_size · (D + 4)]` u8.
    Paged(Tensor),
    /// As they are.
    Rows {
        /// `[pages · page_size, D]`.
        keys: Tensor,
        /// Ones, f32: the scales of all keys, and those of a step's queries.
        ones: Tensor,
    },
}

impl LayerCache {
    /// The number of pages has been checked; without `ones` the layer keeps no index keys.
    pub(super) fn new(
        device: &Device,
        config: &Config,
        (pages, page_size): (usize, usize),
        ones: Option<&Tensor>,
        dtype: DType,
        format: KvFormat,
    ) -> Result<Self> {
        let rows = pages * page_size;
        let (rank, rope_dim) = (config.kv_lora_rank, config.qk_rope_head_dim);
        let record = KvRecord { kv_lora_rank: rank, rope_dim };
        let dim = config.index_head_dim;
        let index_keys = |ones: &Tensor| -> Result<IndexCache> {
            Ok(if config.attention_options.index_fp8 {
                IndexCache::Paged(device.empty(&[pages, page_size * (dim + 4)], DType::U8)?)
            } else {
                IndexCache::Rows { keys: device.empty(&[rows, dim], dtype)?, ones: ones.clone() }
            })
        };
        let latents = match format {
            KvFormat::Elements => Latents::Rows(device.empty(&[rows, rank + rope_dim], dtype)?),
            KvFormat::Fp8 => {
                Latents::Records(device.empty(&[pages, page_size * record.bytes()], DType::U8)?)
            }
        };
        Ok(Self {
            page_size,
            latents,
            record,
            dtype,
            index_keys: ones.map(index_keys).transpose()?,
            index_dim: dim,
            scale_fmt: config.scale_fmt(),
        })
    }

    /// The type of the latent rows, and of the layer that writes and reads them.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Bytes that each token takes: its latent, and its index key where the layer keeps any.
    pub(super) fn bytes_of_a_token(&self) -> usize {
        let (latent, dim) = self.widths();
        let latent = match &self.latents {
            Latents::Rows(_) => latent * self.dtype.size(),
            Latents::Records(_) => self.record.bytes(),
        };
        let key = match &self.index_keys {
            None => 0,
            Some(IndexCache::Paged(_)) => dim + 4,
            Some(IndexCache::Rows { .. }) => dim * self.dtype.size(),
        };
        latent + key
    }

    /// The latents of a step's requests, one after the other, as rows of the layer's type: `[rows, rank + rope]`,
    /// gathered, and dequantised of a cache that keeps records, for this step only. The rows behind a request's own are
    /// NaN.
    ///
    /// # Errors
    /// If the device has no memory for the rows.
    pub fn latents(&self, batch: &Batch) -> dsa_kernels::Result<Tensor> {
        let slots = batch.table_slots();
        match &self.latents {
            Latents::Rows(latents) => embedding(latents, slots),
            Latents::Records(records) => {
                load_kv(records, slots, self.page_size, self.record, self.dtype)
            }
        }
    }

    /// All latents of the pool, where they are, and their number of pages.
    pub(crate) fn pool(&self) -> (Kv<'_>, usize) {
        match &self.latents {
            Latents::Rows(latents) => (Kv::Rows(latents), latents.shape()[0] / self.page_size),
            Latents::Records(cache) => {
                let (page_size, record) = (self.page_size, self.record);
                (Kv::Records { cache, page_size, record }, cache.shape()[0])
            }
        }
    }

    /// The records of a step's requests, one after the other, and their form: `[rows, record bytes]` u8. `None` if the
    /// cache keeps rows.
    ///
    /// # Errors
    /// If the device fails.
    pub fn records(&self, batch: &Batch) -> dsa_kernels::Result<Option<(Vec<u8>, KvRecord)>> {
        let Latents::Records(records) = &self.latents else {
            return Ok(None);
        };
        let (all, bytes) = (records.download()?, self.record.bytes());
        let slots = batch.table_slots().download_i32()?;
        let mut held = Vec::with_capacity(slots.len() * bytes);
        for slot in slots {
            let at = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(bytes);
            let none = vec![0; bytes];
            held.extend_from_slice(all.get(at..at.saturating_add(bytes)).unwrap_or(&none));
        }
        Ok(Some((held, self.record)))
    }

    /// The indexer's keys of all requests.
    ///
    /// # Errors
    /// If the layer shares another's keys, and keeps none.
    pub(crate) fn index_keys(&self) -> dsa_kernels::Result<&IndexCache> {
        self.index_keys.as_ref().ok_or_else(|| KernelError::Value {
            name: "index keys",
            got: "none: the cache is that of a layer that shares another's".into(),
            expected: "those of a layer with an indexer".into(),
        })
    }

    /// Elements of a latent row and of an index key.
    pub(crate) fn widths(&self) -> (usize, usize) {
        (self.record.kv_lora_rank + self.record.rope_dim, self.index_dim)
    }

    /// Writes the step's latents `kv` `[n, rank + rope]`.
    pub(crate) fn store_latents(&mut self, kv: &Tensor, batch: &Batch) -> dsa_kernels::Result<()> {
        match &self.latents {
            Latents::Rows(latents) => self.store_rows(kv, latents, batch),
            Latents::Records(records) => {
                let rank = self.record.kv_lora_rank;
                let c = kv.narrow(1, 0, rank)?; // [n, rank]
                let k_pe = kv.narrow(1, rank, self.record.rope_dim)?; // [n, rope]
                store_kv(&c, &k_pe, batch.slots(), records, self.page_size)
            }
        }
    }

    /// Writes the step's index keys `k` `[n, D]`, in fp8 if they are paged, where the layer keeps any.
    pub(crate) fn store_index_keys(&mut self, k: &Tensor, batch: &Batch) -> Result<()> {
        match &self.index_keys {
            None => Ok(()),
            Some(IndexCache::Paged(pages)) => {
                let (k8, watch) = (act_quant(k, self.scale_fmt)?, batch.watch()); // [n, D], [n, 1]
                let k8 = Quantised {
                    codes: watch.show("index.k_codes", k8.codes)?,
                    scale: watch.show("index.k_scale", k8.scale)?,
                };
                Ok(store_index_keys(&k8, batch.slots(), pages, self.page_size)?)
            }
            Some(IndexCache::Rows { keys, .. }) => Ok(self.store_rows(k, keys, batch)?),
        }
    }

    /// Writes rows `[n, d]` to those of `to` `[slots, d]` that the step names.
    fn store_rows(&self, rows: &Tensor, to: &Tensor, batch: &Batch) -> dsa_kernels::Result<()> {
        place_rows(&rows.unsqueeze(1), batch.slots(), &to.unsqueeze(1))
    }
}
