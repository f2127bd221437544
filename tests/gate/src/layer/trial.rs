//! The kernels' side: a layer on a device, and the sequence that it is tried on.

use super::error::{Error, Result};
use dsa_kernels::{DType, Device, Tensor};
use dsa_model::config::Config;
use dsa_model::layers::{Attention, Trace};
use dsa_model::run::{Batch, Cache, CacheSize, KvFormat, Mode};
use dsa_model::weights::Weights;
use dsa_reference::cache_write::KvRecord;
use ndarray::{Array, Array2, ArrayD, ArrayView2, Axis, Dimension, Slice};

/// Tokens of a page.
const PAGE_SIZE: usize = 64;

/// A layer, its cache, and the hidden states of one sequence.
pub(super) struct Trial<'a> {
    device: &'a Device,
    config: Config,
    layer: Attention,
    cache: Cache,
    x: Tensor,
}

impl<'a> Trial<'a> {
    /// Prepares `x` `[s, hidden]`.
    pub fn new<W: Weights + Clone>(
        device: &'a Device,
        config: &Config,
        weights: &W,
        x: ArrayView2<f32>,
        dtype: DType,
    ) -> Result<Self> {
        let layer = Attention::new(device, config, weights.clone(), dtype)?;
        dsa_model::Error::check(x.nrows() > 0, "x", "0 tokens", "at least 1")?;
        let cache = cache(device, config, x.nrows(), dtype, KvFormat::Elements)?;
        let values: Vec<f32> = x.iter().copied().collect();
        let x = device.upload_f32(&values, x.shape(), dtype)?;
        Ok(Self { device, config: config.clone(), layer, cache, x })
    }

    /// The same layer and sequence with an empty cache that also keeps fp8 records.
    pub fn with_records(&self) -> Result<Self> {
        let (tokens, dtype) = (self.tokens(), self.layer.dtype());
        Ok(Self {
            device: self.device,
            config: self.config.clone(),
            layer: self.layer.clone(),
            cache: cache(self.device, &self.config, tokens, dtype, KvFormat::Fp8)?,
            x: self.x.clone(),
        })
    }

    /// Tokens of the sequence.
    pub fn tokens(&self) -> usize {
        self.x.shape()[0]
    }

    /// Runs the sequence as a prompt.
    pub fn run(&mut self, mode: Mode) -> Result<Trace> {
        let (x, batch) = (self.x.clone(), self.prompt(mode)?);
        self.step(&x, &batch)
    }

    /// The sequence as a prompt.
    fn prompt(&self, mode: Mode) -> Result<Batch> {
        Ok(Batch::chunk(&self.cache, 0, 0, self.tokens(), mode)?)
    }

    fn step(&mut self, x: &Tensor, batch: &Batch) -> Result<Trace> {
        let trace = self.layer.trace(x, batch, self.cache.layer(0)?)?;
        self.cache.advance(batch);
        Ok(trace)
    }

    /// Runs the last token again, as a decoded one.
    pub fn decode_last(&mut self, mode: Mode) -> Result<Trace> {
        let last = self.tokens() - 1;
        let x = self.x.narrow(0, last, 1)?; // [1, hidden]
        let batch = Batch::chunk(&self.cache, 0, last, 1, mode)?;
        self.step(&x, &batch)
    }

    /// The keys `[s, index_topk]` that the kernels select.
    pub fn selected(&mut self) -> Result<Array2<i32>> {
        let trace = self.run(Mode::Sparse)?;
        self.indices(&trace)
    }

    /// The keys `[n, index_topk]` that a step selected.
    pub fn indices(&self, trace: &Trace) -> Result<Array2<i32>> {
        let Some(indices) = &trace.indices else {
            return Err(wrong("indices", "not there: the step did not select"));
        };
        let values = indices.download_i32()?;
        let shape = (indices.shape()[0], indices.shape()[1]);
        Array2::from_shape_vec(shape, values).map_err(|e| wrong("indices", &e.to_string()))
    }

    /// The latents that the cache holds: `[s, rank + rope]`.
    pub fn latents(&self) -> Result<Array2<f32>> {
        let batch = self.prompt(Mode::Dense)?;
        self.download(&self.cache.held(0)?.latents(&batch)?)
    }

    /// The fp8 records that the cache holds, dequantised: `[s, rank + rope]`.
    pub fn records(&self) -> Result<Array2<f32>> {
        let batch = self.prompt(Mode::Dense)?;
        let Some((bytes, record)) = self.cache.held(0)?.records(&batch)? else {
            return Err(wrong("records", "not there: the cache keeps none"));
        };
        let width = record.bytes();
        let shape = (bytes.len() / width, width);
        let records =
            Array2::from_shape_vec(shape, bytes).map_err(|e| wrong("records", &e.to_string()))?;
        let held = records.slice_axis(Axis(0), Slice::from(..self.tokens())); // [s, width]
        let (kv_lora_rank, rope_dim) = (record.kv_lora_rank, record.rope_dim);
        Ok(KvRecord { kv_lora_rank, rope_dim }.dequantise_kv(held))
    }

    /// A tensor of a known number of axes.
    pub fn download<D: Dimension>(&self, tensor: &Tensor) -> Result<Array<f32, D>> {
        let values = tensor.download_f32()?;
        ArrayD::from_shape_vec(tensor.shape(), values)
            .and_then(|array| array.into_dimensionality())
            .map_err(|error| wrong("downloaded tensor", &error.to_string()))
    }
}

fn cache(
    device: &Device,
    config: &Config,
    max_seq: usize,
    dtype: DType,
    format: KvFormat,
) -> Result<Cache> {
    let size = CacheSize { layers: 1, requests: 1, max_seq, page_size: PAGE_SIZE };
    Ok(Cache::new(device, config, size, dtype, format)?)
}

fn wrong(name: &'static str, value: &str) -> Error {
    let expected = "an array of the kernel's shape".into();
    dsa_model::Error::Argument { name, value: value.into(), expected }.into()
}
