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

use super::{Batch, LayerCache, Mode, Rotary};
use crate::config::{Config, Indexer};
use crate::error::{Error, Result};
use crate::layers::check_dtype;
use dsa_kernels::{DType, Device};

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
