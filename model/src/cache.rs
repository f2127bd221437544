//! What one layer keeps of the tokens it has seen.
//!
//! | | each token | bytes in V3.2 |
//! |---|---|---|
//! | latent rows | c ‖ k_pe, `kv_lora_rank + rope` elements | 1152 in bf16 |
//! | fp8 records ([`KvFormat::Fp8`]) | c in e4m3, its scales, k_pe in bf16 | 656 |
//! | index keys, paged (`index_fp8`) | k in e4m3, its scale | 132 |
//! | index keys, rows (without) | k, D elements | 256 in bf16 |
//!
//! Requests lie one after another, `max_seq` tokens each, in all of them: position p of request r
//! is row, or slot, `r · max_seq + p`. The block tables say the same, page by page.

use crate::attention::scale_fmt;
use crate::attention::step::{Places, Step};
use crate::config::Config;
use crate::error::{Error, Result};
use dsa_kernels::copy::place_rows;
use dsa_kernels::quant::{KvRecord, Quantised, ScaleFmt, act_quant, store_index_keys, store_kv};
use dsa_kernels::{DType, Device, Tensor};

mod fill;

/// What sparse decode reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// The latent rows.
    Elements,
    /// fp8 records beside the rows (which dense attention and prefill still read): FlashMLA's.
    Fp8,
}

/// The sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheSize {
    /// Requests side by side.
    pub requests: usize,
    /// Tokens of each; rounded up to whole pages.
    pub max_seq: usize,
    /// Tokens of a page, 64 in FlashMLA and DeepGEMM.
    pub page_size: usize,
}

/// The cache of one layer.
#[derive(Clone)]
pub struct Cache {
    device: Device,
    size: CacheSize,
    record: KvRecord,
    latent: Tensor,          // [requests · max_seq, rank + rope]
    records: Option<Tensor>, // [pages, page_size · record bytes] u8
    index_keys: IndexKeys,
    index_dim: usize,
    scale_fmt: ScaleFmt,
    block_table: Tensor,       // [requests, max_seq / page_size] i32
    cos_sin: (Tensor, Tensor), // [max_seq, rope / 2] f32 each
    /// Tokens that each request holds, and those of them that have index keys.
    lengths: Vec<(usize, usize)>,
}

/// The indexer's keys.
#[derive(Clone, Debug)]
pub(crate) enum IndexKeys {
    /// `[pages, page_size · (D + 4)]` u8.
    Paged(Tensor),
    /// As they are.
    Rows {
        /// `[requests · max_seq, D]`.
        keys: Tensor,
        /// Ones, f32: the scales of all keys, and those of a step's queries.
        ones: Tensor,
    },
}

impl Cache {
    /// An empty cache for a layer of `config`, whose rows are of type `dtype` (the layer's).
    ///
    /// # Errors
    /// [`Error::Argument`] if a size is 0, if `dtype` is neither f32 nor bf16, or if there are more rows than
    /// the kernels can index, 2^31; [`Error::Kernel`] if the device has no memory of that size.
    pub fn new(
        device: &Device,
        config: &Config,
        size: CacheSize,
        dtype: DType,
        format: KvFormat,
    ) -> Result<Self> {
        let size = check_size(size, dtype)?;
        let CacheSize { requests, max_seq, page_size } = size;
        let (rows, pages) = (requests * max_seq, requests * max_seq / page_size);
        let (rank, rope_dim) = (config.kv_lora_rank, config.qk_rope_head_dim);
        let record = KvRecord { kv_lora_rank: rank, rope_dim };
        let dim = config.index_head_dim;
        let index_keys = if config.attention_options.index_fp8 {
            IndexKeys::Paged(device.empty(&[pages, page_size * (dim + 4)], DType::U8)?)
        } else {
            let n = rows.max(requests.max(max_seq) * config.index_n_heads);
            let ones = device.upload_f32(&vec![1.0; n], &[n], DType::F32)?;
            IndexKeys::Rows { keys: device.empty(&[rows, dim], dtype)?, ones }
        };
        let records = match format {
            KvFormat::Elements => None,
            KvFormat::Fp8 => Some(device.empty(&[pages, page_size * record.bytes()], DType::U8)?),
        };
        let table: Vec<i32> = (0..pages as i32).collect();
        let (cos, sin) = config.reference_config().cos_sin(max_seq); // [max_seq, rope/2] each
        let angles = |values: ndarray::Array2<f32>| {
            let values: Vec<f32> = values.iter().copied().collect();
            device.upload_f32(&values, &[max_seq, rope_dim / 2], DType::F32)
        };
        Ok(Self {
            latent: device.empty(&[rows, rank + rope_dim], dtype)?,
            block_table: device.upload_i32(&table, &[requests, max_seq / page_size])?,
            cos_sin: (angles(cos)?, angles(sin)?),
            lengths: vec![(0, 0); requests],
            device: device.clone(),
            index_dim: dim,
            scale_fmt: scale_fmt(config),
            size,
            record,
            records,
            index_keys,
        })
    }

    /// Requests side by side.
    pub fn requests(&self) -> usize {
        self.size.requests
    }

    /// Tokens that each request has room for: the size asked for, in whole pages.
    pub fn max_seq(&self) -> usize {
        self.size.max_seq
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> usize {
        self.size.page_size
    }

    /// The type of the latent rows.
    pub fn dtype(&self) -> DType {
        self.latent.dtype()
    }

    /// Tokens that `request` holds; 0 for one that does not exist.
    pub fn length(&self, request: usize) -> usize {
        self.lengths.get(request).map_or(0, |lengths| lengths.0)
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.lengths.fill((0, 0));
    }

    /// The rows `start .. start + rows` that a step sees: those of a chunk's request up to its end,
    /// or those of all requests of a batch.
    pub(crate) fn context(&self, step: &Step) -> (usize, usize) {
        let rows =
            if step.requests > 1 { step.requests * self.size.max_seq } else { step.longest() };
        (step.request * self.size.max_seq, rows)
    }

    /// The latents that a step sees: `[rows, rank + rope]`.
    pub(crate) fn latents(&self, step: &Step) -> dsa_kernels::Result<Tensor> {
        let (start, rows) = self.context(step);
        self.latent.narrow(0, start, rows)
    }

    /// The records of the requests of a step, and their form: `[pages, page bytes]` u8.
    pub(crate) fn records(&self, step: &Step) -> dsa_kernels::Result<Option<(Tensor, KvRecord)>> {
        let Some(records) = &self.records else {
            return Ok(None);
        };
        let pages = self.size.max_seq / self.size.page_size;
        let records = records.narrow(0, step.request * pages, step.requests * pages)?;
        Ok(Some((records, self.record)))
    }

    /// The block tables of the requests of a step: `[requests, max_pages]` i32.
    pub(crate) fn block_table(&self, step: &Step) -> dsa_kernels::Result<Tensor> {
        self.block_table.narrow(0, step.request, step.requests)
    }

    /// The indexer's keys of all requests.
    pub(crate) fn index_keys(&self) -> &IndexKeys {
        &self.index_keys
    }

    /// cos and sin of every position: `[max_seq, rope/2]` f32 each.
    pub(crate) fn cos_sin(&self) -> (&Tensor, &Tensor) {
        (&self.cos_sin.0, &self.cos_sin.1)
    }

    /// Writes the step's latents `kv` `[n, rank + rope]`.
    pub(crate) fn store_latents(&self, kv: &Tensor, at: &Places) -> dsa_kernels::Result<()> {
        let (device, rank) = (&self.device, self.record.kv_lora_rank);
        self.store_rows(kv, &self.latent, at)?;
        if let Some(records) = &self.records {
            let c = kv.narrow(1, 0, rank)?; // [n, rank]
            let k_pe = kv.narrow(1, rank, self.record.rope_dim)?; // [n, rope]
            store_kv(device, &c, &k_pe, &at.slots, records, self.size.page_size)?;
        }
        Ok(())
    }

    /// Writes the step's index keys `k` `[n, D]`, in fp8 if they are paged.
    pub(crate) fn store_index_keys(&self, k: &Tensor, at: &Places) -> dsa_kernels::Result<()> {
        match &self.index_keys {
            IndexKeys::Paged(pages) => {
                let k8: Quantised = act_quant(&self.device, k, self.scale_fmt)?; // [n, D], [n, 1]
                store_index_keys(&self.device, &k8, &at.slots, pages, self.size.page_size)
            }
            IndexKeys::Rows { keys, .. } => self.store_rows(k, keys, at),
        }
    }

    /// Writes rows `[n, d]` to those of `to` `[requests · max_seq, d]` that the step names.
    fn store_rows(&self, rows: &Tensor, to: &Tensor, at: &Places) -> dsa_kernels::Result<()> {
        place_rows(&self.device, &rows.unsqueeze(1), &at.slots, &to.unsqueeze(1))
    }

    /// Refuses a step that would leave a gap, or need index keys that were never computed.
    pub(crate) fn check(&self, step: &Step, sparse: bool) -> Result<()> {
        for request in step.request..step.request + step.requests {
            let start = step.positions[if step.requests > 1 { request } else { 0 }];
            let (length, indexed) = self.lengths[request];
            let held = format!("at most {length}, the tokens that request {request} holds");
            Error::check(start <= length, "position", start, held)?;
            let held = format!(
                "at most {indexed}, the tokens of request {request} with index keys (the others \
                 were computed in dense mode)"
            );
            Error::check(!sparse || start <= indexed, "position", start, held)?;
        }
        Ok(())
    }

    /// Notes that the step's tokens are the last ones that their requests hold.
    pub(crate) fn advance(&mut self, step: &Step, sparse: bool) {
        for (row, position) in step.positions.iter().enumerate() {
            let (length, indexed) = &mut self.lengths[step.request_of(row)];
            *length = position + 1;
            *indexed = if sparse { *length } else { (*indexed).min(*position) };
        }
    }
}

/// The size in whole pages, if it is one.
fn check_size(size: CacheSize, dtype: DType) -> Result<CacheSize> {
    let CacheSize { requests, max_seq, page_size } = size;
    for (name, value) in [("requests", requests), ("max_seq", max_seq), ("page_size", page_size)] {
        Error::check((1..1 << 31).contains(&value), name, value, "1 to 2^31 - 1")?;
    }
    let float = [DType::F32, DType::Bf16].contains(&dtype);
    Error::check(float, "dtype", dtype, "f32 or bf16")?;
    let max_seq = max_seq.next_multiple_of(page_size);
    // Rows are numbered by i32.
    let fits = requests as u128 * (max_seq as u128) < 1 << 31;
    let got = format!("{requests} requests of {max_seq} tokens");
    Error::check(fits, "the size of the cache", got, "fewer than 2^31 tokens")?;
    Ok(CacheSize { requests, max_seq, page_size })
}
