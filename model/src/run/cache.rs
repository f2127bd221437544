//! What the layers keep of the tokens they have seen.
//!
//! | | each token and layer | bytes in V3.2 |
//! |---|---|---|
//! | latent rows ([`KvFormat::Elements`]) | c ‖ k_pe, `kv_lora_rank + rope` elements | 1152 in bf16 |
//! | or fp8 records ([`KvFormat::Fp8`]) | c in e4m3, its scales, k_pe in bf16 | 656 |
//! | index keys, paged (`index_fp8`) | k in e4m3, its scale | 132 |
//! | index keys, rows (without) | k, D elements | 256 in bf16 |
//!
//! Layers that share another's keys ([`Config::indexer_of`]) keep no index keys.
//!
//! Tokens lie in pages of one pool, the same page in every layer: position p of a request is row, or slot,
//! `table[p / page_size] · page_size + p mod page_size`. Pages that no request has are in a free list. What reads lists
//! (sparse and dense attention of decoded tokens) or a block table (the paged indexer) reads the pages in place; what reads
//! ranges of rows (expansion in dense prefill, the indexer of keys that are rows) has them gathered for its step.

use super::{Batch, Mode, Rotary};
use crate::config::{Config, Indexer};
use crate::error::{Error, Result};
use crate::layers::check_dtype;
use dsa_kernels::cache_read::load_kv;
use dsa_kernels::cache_write::{KvRecord, store_index_keys, store_kv};
use dsa_kernels::copy::place_rows;
use dsa_kernels::embedding::embedding;
use dsa_kernels::keys::Kv;
use dsa_kernels::quant::{Quantised, ScaleFmt, act_quant};
use dsa_kernels::{DType, Device, KernelError, Tensor};

/// How latents are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As rows of the layers' type.
    #[default]
    Elements,
    /// As FlashMLA's fp8 records, `fp8_ds_mla` of vLLM and FlashMLA. Each step reads them, prefill and dense
    /// attention too.
    Fp8,
}

/// The sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheSize {
    /// Layers.
    pub layers: usize,
    /// Requests side by side.
    pub requests: usize,
    /// Tokens of each; rounded up to whole pages.
    pub max_seq: usize,
    /// Tokens of a page, 64 in FlashMLA and DeepGEMM.
    pub page_size: usize,
}

/// The caches of all layers, and what they share.
#[derive(Clone)]
pub struct Cache {
    device: Device,
    size: CacheSize,
    layers: Vec<LayerCache>,
    rotary: Rotary, // [max_seq, rope / 2]
    /// The pages of each request, and those of none, the next one last.
    tables: Vec<Vec<usize>>,
    free: Vec<usize>,
    /// Tokens that each request holds, and those of them that have index keys.
    lengths: Vec<(usize, usize)>,
}

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

impl Cache {
    /// Empty caches with pages for `max_seq` tokens of each request, which has them from the start; otherwise as
    /// [`Cache::pool`].
    ///
    /// # Errors
    /// As there.
    pub fn new(
        device: &Device,
        config: &Config,
        size: CacheSize,
        dtype: DType,
        format: KvFormat,
    ) -> Result<Self> {
        let checked = check_size(size, dtype)?;
        let pages = checked.max_seq / checked.page_size;
        let mut cache = Self::pool(device, config, size, checked.requests * pages, dtype, format)?;
        for request in 0..checked.requests {
            cache.reserve(request, checked.max_seq)?;
        }
        Ok(cache)
    }

    /// Empty caches with a pool of `pages` pages, none of which a request has yet ([`Cache::reserve`]), for the first
    /// layers of `config`, whose rows are of type `dtype` (the layers'). A layer that
    /// shares another's keys keeps no index keys.
    ///
    /// # Errors
    /// [`Error::Argument`] if a size is 0, if `dtype` is neither f32 nor bf16, or if there are 2^31
    /// tokens or more; [`Error::Kernel`] if the device has no memory for it.
    pub fn pool(
        device: &Device,
        config: &Config,
        size: CacheSize,
        pages: usize,
        dtype: DType,
        format: KvFormat,
    ) -> Result<Self> {
        let size = check_size(size, dtype)?;
        let CacheSize { layers, requests, max_seq, page_size } = size;
        let most = requests * max_seq / page_size;
        let expected = format!("1 to the {most} that the requests may have");
        Error::check((1..=most).contains(&pages), "pages", pages, expected)?;
        // The scales of all keys, and of a step's queries, where index keys are rows.
        let ones = if config.attention_options.index_fp8 {
            0
        } else {
            (requests * max_seq).max(requests.max(max_seq) * config.index_n_heads)
        };
        let ones = device.upload_f32(&vec![1.0; ones], &[ones], DType::F32)?;
        let layer = |i| {
            let full = config.indexer_of(i) == Indexer::Full;
            let ones = full.then_some(&ones);
            LayerCache::new(device, config, (pages, page_size), ones, dtype, format)
        };
        Ok(Self {
            device: device.clone(),
            size,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            rotary: Rotary::new(device, config, max_seq)?,
            tables: vec![vec![]; requests],
            free: (0..pages).rev().collect(),
            lengths: vec![(0, 0); requests],
        })
    }

    /// The cache of layer `layer`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such layer.
    pub fn layer(&mut self, layer: usize) -> Result<&mut LayerCache> {
        let layers = self.layers.len();
        Error::check(layer < layers, "layer", layer, format!("below {layers}"))?;
        Ok(&mut self.layers[layer])
    }

    /// The cache of layer `layer`, to be looked at.
    ///
    /// # Errors
    /// As [`Cache::layer`].
    pub fn held(&self, layer: usize) -> Result<&LayerCache> {
        let layers = self.layers.len();
        let none = || format!("below {layers}");
        self.layers.get(layer).map_or_else(
            || Err(Error::Argument { name: "layer", value: layer.to_string(), expected: none() }),
            Ok,
        )
    }

    /// Requests side by side.
    pub fn requests(&self) -> usize {
        self.size.requests
    }

    /// Tokens that each request has room for: the size asked for, in whole pages.
    pub fn max_seq(&self) -> usize {
        self.size.max_seq
    }

    /// Pages that no request has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Tokens that `request` has pages for; 0 for one that does not exist.
    pub fn room(&self, request: usize) -> usize {
        self.tables.get(request).map_or(0, |table| table.len() * self.size.page_size)
    }

    /// Gives `request` the pages that `tokens` tokens need beside those it has.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such request, for more tokens than a request may have, and if there are not
    /// as many free pages; nothing has changed then.
    pub fn reserve(&mut self, request: usize, tokens: usize) -> Result<()> {
        let CacheSize { requests, max_seq, page_size, .. } = self.size;
        Error::check(request < requests, "request", request, format!("below {requests}"))?;
        Error::check(tokens <= max_seq, "tokens", tokens, format!("at most {max_seq}"))?;
        let table = &mut self.tables[request];
        let more = tokens.div_ceil(page_size).saturating_sub(table.len());
        let free = self.free.len();
        let got = format!("{tokens} of request {request}, {more} pages more than it has");
        Error::check(more <= free, "tokens", got, format!("at most the {free} free pages"))?;
        table.extend(self.free.drain(free - more..).rev());
        Ok(())
    }

    /// Ends `request`: it holds nothing, and its pages are free.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such request.
    pub fn end(&mut self, request: usize) -> Result<()> {
        let requests = self.size.requests;
        Error::check(request < requests, "request", request, format!("below {requests}"))?;
        self.free.extend(self.tables[request].drain(..).rev());
        self.lengths[request] = (0, 0);
        Ok(())
    }

    /// Tokens that `request` holds; 0 for one that does not exist.
    pub fn length(&self, request: usize) -> usize {
        self.lengths.get(request).map_or(0, |lengths| lengths.0)
    }

    /// Bytes that each token takes in the caches of all layers.
    pub fn bytes_of_a_token(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes_of_a_token).sum()
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.lengths.fill((0, 0));
    }

    /// Notes that the batch's tokens are the last ones that their requests hold: every layer has stored them.
    pub fn advance(&mut self, batch: &Batch) {
        for (row, position) in batch.positions().iter().enumerate() {
            let (length, indexed) = &mut self.lengths[batch.request_of(row)];
            *length = position + 1;
            let sparse = batch.mode() == Mode::Sparse;
            *indexed = if sparse { *length } else { (*indexed).min(*position) };
        }
    }

    /// Refuses a token at `start` of `request` that would leave a gap, or need index keys that were never
    /// computed.
    pub(crate) fn check(&self, request: usize, start: usize, mode: Mode) -> Result<()> {
        let (length, indexed) = self.lengths[request];
        let room = self.room(request);
        let has = format!("below {room}, what request {request} has pages for");
        Error::check(start < room, "position", start, has)?;
        let held = format!("at most {length}, the tokens that request {request} holds");
        Error::check(start <= length, "position", start, held)?;
        let held = format!(
            "at most {indexed}, the tokens of request {request} with index keys (the others \
             were computed in dense mode)"
        );
        Error::check(mode == Mode::Dense || start <= indexed, "position", start, held)
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The layers' caches.
    pub(crate) fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }

    /// The pages of `request`.
    pub(crate) fn table(&self, request: usize) -> &[usize] {
        &self.tables[request]
    }

    /// Tokens of a page.
    pub(crate) fn page_size(&self) -> usize {
        self.size.page_size
    }

    /// cos and sin of every position.
    pub(crate) fn rotary(&self) -> &Rotary {
        &self.rotary
    }
}

impl LayerCache {
    /// The number of pages has been checked; without `ones` the layer keeps no index keys.
    fn new(
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
    fn bytes_of_a_token(&self) -> usize {
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
    pub(crate) fn store_index_keys(
        &mut self,
        k: &Tensor,
        batch: &Batch,
    ) -> dsa_kernels::Result<()> {
        match &self.index_keys {
            None => Ok(()),
            Some(IndexCache::Paged(pages)) => {
                let k8: Quantised = act_quant(k, self.scale_fmt)?; // [n, D], [n, 1]
                store_index_keys(&k8, batch.slots(), pages, self.page_size)
            }
            Some(IndexCache::Rows { keys, .. }) => self.store_rows(k, keys, batch),
        }
    }

    /// Writes rows `[n, d]` to those of `to` `[slots, d]` that the step names.
    fn store_rows(&self, rows: &Tensor, to: &Tensor, batch: &Batch) -> dsa_kernels::Result<()> {
        place_rows(&rows.unsqueeze(1), batch.slots(), &to.unsqueeze(1))
    }
}

/// The size in whole pages, if the kernels can number its rows. The one place where the size of a cache is
/// bounded; whether there is memory for it, the device says.
fn check_size(size: CacheSize, dtype: DType) -> Result<CacheSize> {
    let CacheSize { layers, requests, max_seq, page_size } = size;
    for (name, value) in
        [("layers", layers), ("requests", requests), ("max_seq", max_seq), ("page_size", page_size)]
    {
        Error::check((1..1 << 31).contains(&value), name, value, "1 to 2^31 - 1")?;
    }
    check_dtype(dtype)?;
    let max_seq = max_seq.next_multiple_of(page_size);
    let fits = requests as u128 * (max_seq as u128) < 1 << 31;
    let got = format!("{requests} requests of {max_seq} tokens");
    Error::check(fits, "the size of the cache", got, "fewer than 2^31 tokens: rows are i32")?;
    Ok(CacheSize { max_seq, ..size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_bounded_by_its_rows_not_by_its_elements() {
        let size = |requests| CacheSize { layers: 1, requests, max_seq: 131_000, page_size: 64 };
        // 4.8e9 elements of 576, and 5.5e9 bytes of records.
        let fits = check_size(size(64), DType::Bf16).unwrap();
        assert_eq!(fits.max_seq, 131_008);
        let error = check_size(size(1 << 15), DType::Bf16).unwrap_err().to_string();
        assert!(error.contains("fewer than 2^31 tokens"), "{error}");
    }
}
