//! The whole model: from token ids to logits.
//!
//! ```text
//! x = embed_tokens[ids], no residual r
//! each layer:   x, r = norm(x + r), x + r        x = attention(x)
//!               x, r = norm(x + r), x + r        x = feed_forward(x) or experts(x)
//! logits = norm(x + r)·Wheadᵀ                    f32
//! ```
//!
//! ```text
//! let config = Config::read(folder)?;
//! let checkpoint = Checkpoint::open(folder)?;
//! let model = Model::new(&device, &config, checkpoint.root(), Precision::STORED)?;
//! let mut cache = model.cache(1, 4096)?;                                // one request of up to 4096 tokens
//! model.prefill(&ids, 0, 512, Mode::Sparse, &mut cache, |logits| …)?;   // chunks of 512
//! let batch = Batch::decode(&cache, &[ids.len()], Mode::Sparse)?;       // the next token
//! let logits = model.forward(&[id], &batch, &mut cache)?;
//! ```
//!
//! Source: `Transformer` of the DeepSeek-V3.2-Exp inference demo (November 2025); DeepSeek-V3.2 and GLM-5 of
//! transformers. Every intermediate is rounded to the model's type, the logits are f32.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Block, Linear, Loader, Norm, Output, Precision, check_dtype};
use crate::run::{Batch, Cache, CacheSize, Execution, KvFormat, Mode};
use crate::weights::Weights;
use dsa_kernels::embedding::embedding;
use dsa_kernels::gemm::gemm;
use dsa_kernels::{DType, Device, Tensor};

/// Tokens of a page of the cache: FlashMLA's and DeepGEMM's.
pub const PAGE_SIZE: usize = 64;

/// A model: its weights on a device.
#[derive(Clone)]
pub struct Model {
    embed_tokens: Tensor, // [vocab, hidden]
    layers: Vec<Block>,
    norm: Norm,
    lm_head: Linear, // [vocab, hidden]
    /// `[1, 1, hidden]`, all the same power of two, with which a row's sum cannot overflow.
    summing: Tensor,
    device: Device,
    config: Config,
    dtype: DType,
}

impl Model {
    /// The model of `config` with `weights`, the root of a checkpoint.
    ///
    /// # Errors
    /// Those of [`Weights::expect`], before anything is read; [`Error::Argument`] for a type that is neither
    /// f32 nor bf16; [`Error::Element`] for a scale that is none; [`Error::Kernel`] if the device refuses.
    pub fn new<W: Weights>(
        device: &Device,
        config: &Config,
        weights: W,
        precision: Precision,
    ) -> Result<Self> {
        let dtype = precision.dtype;
        check_dtype(dtype)?;
        weights.expect(config)?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let root = Loader::new(device, weights, precision, config);
        let model = root.at("model");
        let layers = model.at("layers");
        let layer = |number: usize| Block::build(&layers.at(&number.to_string()), config, number);
        let power = 1.0 / hidden.next_power_of_two() as f32;
        Ok(Self {
            embed_tokens: model.table("embed_tokens", [vocab, hidden])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: Norm::new(&model, "norm", hidden, config.rms_norm_eps)?,
            lm_head: root.linear("lm_head", [vocab, hidden])?,
            summing: device.upload_f32(&vec![power; hidden], &[1, 1, hidden], dtype)?,
            device: device.clone(),
            config: config.clone(),
            dtype,
        })
    }

    /// Where its weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The configuration it was made for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same model, computed as `execution` says.
    pub fn executed(mut self, execution: Execution) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.execute(execution));
        self
    }

    /// The same weights selecting other keys: as many, and by the indexers of those layers, as `config` says, which is the
    /// model's but for `index_topk` and `indexer_types`. Indexers that are not used are let go.
    ///
    /// # Errors
    /// [`Error::Argument`] for the configuration of another model, and for a layer with an indexer that has none.
    pub fn selecting(mut self, config: &Config) -> Result<Self> {
        let as_own = Config {
            index_topk: self.config.index_topk,
            indexer_types: self.config.indexer_types.clone(),
            overrides: self.config.overrides.clone(),
            ..config.clone()
        };
        let expected = "the model's own, but for the keys that are selected";
        Error::check(as_own == self.config, "configuration", "another model's", expected)?;
        for (number, layer) in self.layers.iter_mut().enumerate() {
            layer.select(config, number)?;
        }
        self.config = config.clone();
        Ok(self)
    }

    /// An empty cache for `requests` requests of up to `max_seq` tokens, whose latents are rows.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn cache(&self, requests: usize, max_seq: usize) -> Result<Cache> {
        self.cache_of(requests, max_seq, KvFormat::Elements)
    }

    /// [`Model::cache`] with latents in `format`.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn cache_of(&self, requests: usize, max_seq: usize, format: KvFormat) -> Result<Cache> {
        self.cache_in_pages(requests, max_seq, PAGE_SIZE, format)
    }

    /// [`Model::cache_of`] with pages of `page_size` tokens in place of 64.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn cache_in_pages(
        &self,
        requests: usize,
        max_seq: usize,
        page_size: usize,
        format: KvFormat,
    ) -> Result<Cache> {
        let size = CacheSize { layers: self.layers.len(), requests, max_seq, page_size };
        Cache::new(&self.device, &self.config, size, self.dtype, format)
    }

    /// A step: the logits `[n, vocab_size]`, f32, of the batch's n tokens, whose ids are `ids`. The cache then holds
    /// these tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not n ids, for an id outside the vocabulary, and if the cache is another
    /// model's; [`Error::NotFinite`] if a part of the model puts out a NaN or an infinity; [`Error::Kernel`] if a
    /// kernel refuses or fails; that of who [watches](Batch::watched). The cache then holds what it held before.
    pub fn forward(&self, ids: &[u32], batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        let x = self.step(ids, batch, cache)?; // [n, hidden]
        let logits = self.lm_head.forward_f32(&x)?; // [n, vocab]
        cache.advance(batch);
        Ok(logits)
    }

    /// [`Model::forward`] of which only the last token's logits are computed: `[1, vocab_size]`.
    ///
    /// # Errors
    /// As there.
    pub fn forward_last(&self, ids: &[u32], batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        let x = self.step(ids, batch, cache)?; // [n, hidden]
        let logits = self.lm_head.forward_f32(&x.narrow(0, ids.len() - 1, 1)?)?; // [1, vocab]
        cache.advance(batch);
        Ok(logits)
    }

    /// What the head makes logits of: `[n, hidden]`.
    fn step(&self, ids: &[u32], batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        self.check(ids, batch, cache)?;
        let x = self.embed(ids)?; // [n, hidden]
        let x = self.run(&x, batch, cache, |_, _| Ok(()))?; // [n, hidden]
        // A row that went wrong anywhere is still wrong here: the residual keeps a NaN, and the norm makes one of an
        // infinity. Where it went wrong is looked for only then.
        if let Some(row) = self.not_finite(&x)? {
            self.find_not_finite(ids, batch, cache)?;
            return Err(wrong("model.norm", row, batch));
        }
        Ok(x)
    }

    /// An empty cache for `requests` requests of up to `max_seq` tokens, for all of which it has `tokens` tokens' pages:
    /// [`Model::prefill`] and [`Cache::reserve`] give them to a request, [`Cache::end`] takes them back.
    ///
    /// # Errors
    /// As [`Cache::pool`].
    pub fn pool(
        &self,
        requests: usize,
        max_seq: usize,
        tokens: usize,
        format: KvFormat,
    ) -> Result<Cache> {
        let layers = self.layers.len();
        let size = CacheSize { layers, requests, max_seq, page_size: PAGE_SIZE };
        let pages = tokens.div_ceil(PAGE_SIZE);
        Cache::pool(&self.device, &self.config, size, pages, self.dtype, format)
    }

    /// The logits of the next tokens of `request`, behind those that it holds, in chunks of `chunk`: each chunk's
    /// `[n, vocab_size]` goes to `take`, in order. A chunk of one token is a decoded one.
    ///
    /// # Errors
    /// [`Error::Argument`] for a chunk of 0, no ids, an id outside the vocabulary and more ids than there is room for,
    /// before the first chunk runs; as [`Batch::chunk`] and [`Model::forward`]; those of `take`.
    pub fn prefill(
        &self,
        ids: &[u32],
        request: usize,
        chunk: usize,
        mode: Mode,
        cache: &mut Cache,
        mut take: impl FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        Error::check(chunk > 0, "chunk", chunk, "at least 1 token")?;
        Error::check(!ids.is_empty(), "ids", "0 ids", "at least 1")?;
        self.check_ids(ids)?;
        let room = cache.max_seq() - cache.length(request);
        let expected = format!("at most {room}, the room that request {request} has left");
        Error::check(ids.len() <= room, "ids", format!("{} ids", ids.len()), expected)?;
        cache.reserve(request, cache.length(request) + ids.len())?;
        for ids in ids.chunks(chunk) {
            let batch = Batch::chunk(cache, request, cache.length(request), ids.len(), mode)?;
            take(self.forward(ids, &batch, cache)?)?;
        }
        Ok(())
    }

    /// The embeddings `[n, hidden]`.
    fn embed(&self, ids: &[u32]) -> dsa_kernels::Result<Tensor> {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let ids = self.device.upload_i32(&ids, &[ids.len()])?;
        embedding(&self.embed_tokens, &ids)
    }

    /// The layers and the norm behind them: `[n, hidden]` to the same. `after` each layer its output is looked at.
    fn run(
        &self,
        x: &Tensor,
        batch: &Batch,
        cache: &mut Cache,
        mut after: impl FnMut(usize, &Output) -> Result<()>,
    ) -> Result<Tensor> {
        let (mut x, mut residual) = (x.clone(), None);
        for (number, layer) in self.layers.iter().enumerate() {
            batch.watch().enter(number);
            let out = layer.forward(&x, residual.as_ref(), batch, cache.layer(number)?)?;
            after(number, &out)?;
            (x, residual) = (out.x, Some(out.residual));
        }
        let (x, _) = self.norm.forward(&x, residual.as_ref())?;
        Ok(x)
    }

    /// Repeats a step, and says which part of the model first put out what is no finite number.
    fn find_not_finite(&self, ids: &[u32], batch: &Batch, cache: &mut Cache) -> Result<()> {
        let check = |part: &str, x: &Tensor| match self.not_finite(x)? {
            Some(row) => Err(wrong(part, row, batch)),
            None => Ok(()),
        };
        let x = self.embed(ids)?; // [n, hidden]
        check("model.embed_tokens", &x)?;
        let after = |layer: usize, out: &Output| {
            let at = format!("model.layers.{layer}");
            check(&format!("{at}.self_attn"), &out.attention)?;
            check(&format!("the residual before {at}.mlp"), &out.residual)?;
            check(&format!("{at}.mlp"), &out.x)
        };
        self.run(&x, batch, cache, after).map(|_| ())
    }

    /// The first row of `x` `[n, hidden]` that holds a NaN or an infinity.
    fn not_finite(&self, x: &Tensor) -> Result<Option<usize>> {
        // Whatever a row's sum is multiplied with, NaN and infinities stay; finite ones stay finite.
        let sums = gemm(&x.unsqueeze(0), &self.summing, DType::F32)?.download_f32()?; // [1, n, 1]
        Ok(sums.iter().position(|sum| !sum.is_finite()))
    }

    /// Refuses ids and a cache that are not this model's, before any work.
    fn check(&self, ids: &[u32], batch: &Batch, cache: &Cache) -> Result<()> {
        let n = batch.tokens();
        Error::check(ids.len() == n, "ids", format!("{} ids", ids.len()), format!("{n}"))?;
        self.check_ids(ids)?;
        cache.held(self.layers.len() - 1).map(|_| ())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        let outside = ids.iter().find(|id| **id as usize >= vocab);
        let expected = || format!("below the vocabulary's {vocab}");
        outside.map_or(Ok(()), |id| Error::check(false, "token id", id, expected()))
    }
}

fn wrong(part: &str, row: usize, batch: &Batch) -> Error {
    let token = batch.positions().get(row).copied().unwrap_or(row);
    Error::NotFinite { part: part.to_string(), token }
}
