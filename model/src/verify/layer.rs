//! One layer, on the kernels and in the reference.

use super::reference::{attention_config, attention_options, attention_weights};
use super::report::{Bound, Section};
use super::thresholds::{KERNEL, LAYER, RECALL, worst_row};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Attention, Trace};
use crate::run::{Batch, Cache, CacheSize, KvFormat, Mode};
use crate::weights::Weights;
use dsa_kernels::tile::Machine;
use dsa_kernels::{DType, Device, Tensor, dense_attention, sparse_attention};
use dsa_reference::attention_layer::{self, AttentionWeights, attention, indexer_topk};
use dsa_reference::dense_attention::{dense_mha, dense_mla};
use dsa_reference::quant::bf16_round;
use dsa_reference::sparse_attention::Attention as Expected;
use dsa_reference::sparse_attention::sparse_mla;
use dsa_tests::case::HostTensor;
use dsa_tests::compare::close;
use dsa_tests::tolerance::tolerance_on;
use ndarray::{Array2, ArrayD, ArrayView1, ArrayView2, Axis, Dimension, Ix2, Ix3, Slice};

/// A layer on a device, and the sequence that it is tried on.
pub(super) struct Trial<'a> {
    device: &'a Device,
    layer: Attention,
    cache: Cache,
    x: Tensor,
    tokens: usize,
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
        Error::check(x.nrows() > 0, "x", "0 tokens", "at least 1")?;
        let size = CacheSize { layers: 1, requests: 1, max_seq: x.nrows(), page_size: 64 };
        let cache = Cache::new(device, config, size, dtype, KvFormat::Elements)?;
        let values: Vec<f32> = x.iter().copied().collect();
        let x = device.upload_f32(&values, x.shape(), dtype)?;
        let tokens = x.shape()[0];
        Ok(Self { device, layer, cache, x, tokens })
    }

    /// Runs the sequence as a prompt.
    fn run(&mut self, mode: Mode) -> Result<Trace> {
        let batch = self.prompt(mode)?;
        let trace = self.layer.trace(&self.x, &batch, self.cache.layer(0)?)?;
        self.cache.advance(&batch);
        Ok(trace)
    }

    /// The sequence as a prompt.
    fn prompt(&self, mode: Mode) -> Result<Batch> {
        Batch::chunk(&self.cache, 0, 0, self.tokens, mode)
    }

    /// The keys `[s, index_topk]` that the kernels select.
    pub fn selected(&mut self) -> Result<Array2<i32>> {
        let trace = self.run(Mode::Sparse)?;
        self.indices(&trace)
    }

    fn indices(&self, trace: &Trace) -> Result<Array2<i32>> {
        let Some(indices) = &trace.indices else {
            return Ok(Array2::from_elem((self.tokens, 0), -1));
        };
        let values = self.device.download_i32(indices)?;
        let shape = (indices.shape()[0], indices.shape()[1]);
        Array2::from_shape_vec(shape, values).map_err(|e| wrong("indices", &e.to_string()))
    }

    /// What the cache holds of the sequence: `[s, rank + rope]`.
    fn latents(&mut self) -> Result<Array2<f32>> {
        let batch = self.prompt(Mode::Dense)?;
        let latents = self.cache.layer(0)?.latents(&batch)?;
        self.download(&latents)
    }

    /// Runs the last token again, as a decoded one: `[1, hidden]`.
    fn decode_last(&mut self, mode: Mode) -> Result<Array2<f32>> {
        let last = self.tokens - 1;
        let x = self.x.narrow(0, last, 1)?; // [1, hidden]
        let batch = Batch::chunk(&self.cache, 0, last, 1, mode)?;
        let y = self.layer.forward(&x, &batch, self.cache.layer(0)?)?;
        self.cache.advance(&batch);
        self.download(&y)
    }

    fn download<D: Dimension>(&self, tensor: &Tensor) -> Result<ndarray::Array<f32, D>> {
        let values = self.device.download_f32(tensor)?;
        ArrayD::from_shape_vec(tensor.shape(), values)
            .and_then(|array| array.into_dimensionality())
            .map_err(|error| wrong("downloaded tensor", &error.to_string()))
    }
}

fn wrong(name: &'static str, value: &str) -> Error {
    Error::Argument { name, value: value.into(), expected: "an array of the kernel's shape".into() }
}

/// The comparison. `x`: `[s, hidden]`.
pub(super) fn compare<W: Weights + Clone>(
    device: &Device,
    config: &Config,
    source: &W,
    x: ArrayView2<f32>,
    dtype: DType,
    title: &str,
) -> Result<Section> {
    let mut weights = attention_weights(config, source)?;
    if dtype != DType::F32 {
        round(&mut weights);
    }
    let weights = &weights;
    let x = x.mapv(|v| if dtype == DType::F32 { v } else { bf16_round(v) }); // [s, hidden]
    let mut trial = Trial::new(device, config, source, x.view(), dtype)?;
    let (s, topk) = (x.nrows(), config.index_topk);
    let title = format!("{title}, {dtype}, {s} tokens, {topk} keys kept");
    let mut section = Section { title, ..Default::default() };
    let (c, options) = (attention_config(config), attention_options(config));
    let layer_bound = Bound::AtMost(LAYER.of(dtype, config.attention_options));

    // Dense: the attention kernel on its own inputs, then the layer.
    let trace = trial.run(Mode::Dense)?;
    if let Some((k, v)) = &trace.expanded {
        let (q, k) = (trial.download::<Ix3>(&trace.q)?, trial.download::<Ix3>(k)?);
        let (ks, ke) = causal(s);
        let v = trial.download::<Ix3>(v)?;
        let want = dense_mha(q.view(), k.view(), v.view(), &ks, &ke, c.softmax_scale())?;
        let machine = dense_attention::machine(device, dtype);
        kernel_checks(&mut section, device, ("dense_mha", machine), &trace, &want)?;
    }
    let dense = trial.download::<Ix2>(&trace.hidden)?; // [s, hidden]
    let mode = attention_layer::Mode::Dense;
    let want_dense = attention(x.view(), &c, weights, &options, mode)?; // [s, hidden]
    let name = "dense layer, relative error";
    layer_check(&mut section, name, &dense, &want_dense, layer_bound, |_| true);
    let last = trial.decode_last(Mode::Dense)?;
    let want_last = last_row(&want_dense);
    layer_check(&mut section, "dense, last token decoded", &last, &want_last, layer_bound, |_| {
        true
    });

    // Sparse: which keys, the attention kernel on its own inputs, then the layer.
    let trace = trial.run(Mode::Sparse)?;
    let indices = trial.indices(&trace)?; // [s, topk]
    let want_indices = indexer_topk(x.view(), &c, weights, &options)?; // [s, topk]
    let agrees = selection(&mut section, &indices, &want_indices, config, dtype); // [s]
    let q = trial.download::<Ix3>(&trace.q)?; // [s, h, rank + rope]
    let kv = trial.latents()?; // [s, rank + rope]
    let (tau, rank) = (c.softmax_scale(), c.kv_lora_rank);
    if s > 1 || trace.indices.is_some() {
        let want = sparse_mla(q.view(), kv.view(), indices.view(), tau, rank, None, None)?;
        let machine = sparse_attention::machine(device, dtype);
        kernel_checks(&mut section, device, ("sparse_mla", machine), &trace, &want)?;
        let (ks, ke) = causal(s);
        let of_all = dense_mla(q.view(), kv.view(), &ks, &ke, tau, rank)?;
        mass_fact(&mut section, &want, &of_all, topk);
    }
    let sparse = trial.download::<Ix2>(&trace.hidden)?; // [s, hidden]
    let mode = attention_layer::Mode::Sparse;
    let want_sparse = attention(x.view(), &c, weights, &options, mode)?; // [s, hidden]
    let name = "sparse layer, relative error (tokens with equal keys)";
    layer_check(&mut section, name, &sparse, &want_sparse, layer_bound, |t| agrees[t]);
    let last = trial.decode_last(Mode::Sparse)?;
    let want_last = last_row(&want_sparse);
    let name = "sparse, last token decoded (if its keys are equal)";
    layer_check(&mut section, name, &last, &want_last, layer_bound, |_| agrees[s - 1]);

    // Sparse against dense.
    let name = "sparse against dense, tokens with no more keys than kept";
    layer_check(&mut section, name, &sparse, &dense, layer_bound, |t| t < topk);
    if let Some((worst, t)) = worst_row(sparse.view(), dense.view(), |t| t >= topk) {
        let text = format!("at most {worst:.4} (token {t})");
        section.fact("sparse against dense, the other tokens: relative change", text);
    }
    Ok(section)
}

/// The share of keys that both sides select; returns for each token whether all are the same.
fn selection(
    section: &mut Section,
    got: &Array2<i32>,
    want: &Array2<i32>,
    config: &Config,
    dtype: DType,
) -> Vec<bool> {
    let keys =
        |row: ArrayView1<i32>| -> Vec<i32> { row.iter().copied().filter(|n| *n >= 0).collect() };
    let recalls: Vec<f64> = got
        .axis_iter(Axis(0))
        .zip(want.axis_iter(Axis(0)))
        .map(|(got, want)| {
            let (got, want) = (keys(got), keys(want));
            let both = want.iter().filter(|n| got.binary_search(n).is_ok()).count();
            both as f64 / got.len().max(want.len()).max(1) as f64
        })
        .collect(); // [s]
    let same: Vec<bool> = recalls.iter().map(|r| *r == 1.0).collect(); // [s]
    let mean = recalls.iter().sum::<f64>() / recalls.len() as f64;
    let worst = recalls.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
    let worst = worst.filter(|(_, recall)| **recall < 1.0);
    let worst = worst.map_or(String::new(), |(t, r)| format!("worst {r:.4}, token {t}"));
    let bound = Bound::AtLeast(RECALL.of(dtype, config.attention_options));
    section.check("top-k recall against the reference, mean of tokens", mean, bound, worst);
    let equal = same.iter().filter(|same| **same).count();
    section.fact("tokens with exactly the reference's keys", format!("{equal} of {}", same.len()));
    same
}

/// Output and lse of an attention kernel, as shares of its tolerances.
fn kernel_checks(
    section: &mut Section,
    device: &Device,
    (kernel, machine): (&str, Machine),
    trace: &Trace,
    want: &Expected,
) -> Result<()> {
    let got = &trace.attention;
    for (output, got, want) in
        [("out", &got.out, HostTensor::of(&want.out)), ("lse", &got.lse, HostTensor::of(&want.lse))]
    {
        let by = tolerance_on(machine.matrix, kernel, output, got.dtype());
        let (got, want) = (HostTensor::download(device, got)?, want.cast(got.dtype()));
        let closeness = close(output, &got, &want, by);
        let at = match *closeness.worst_at {
            [t, head, ..] => format!("token {t}, head {head}"),
            _ => String::new(),
        };
        let used = closeness.worst.max(closeness.cos / by.cos);
        let name = format!("{kernel} {output}, share of its tolerance");
        section.check(&name, used, Bound::AtMost(KERNEL), at);
    }
    Ok(())
}

/// The worst row of a layer's output.
fn layer_check(
    section: &mut Section,
    name: &str,
    got: &Array2<f32>,
    want: &Array2<f32>,
    bound: Bound,
    counts: impl Fn(usize) -> bool,
) {
    if let Some((worst, t)) = worst_row(got.view(), want.view(), counts) {
        let at = if got.nrows() > 1 { format!("token {t}") } else { String::new() };
        section.check(name, worst, bound, at);
    }
}

/// Mass that the dense probabilities give to the selected keys: `e^(lse of them - lse of all)`.
fn mass_fact(section: &mut Section, selected: &Expected, all: &Expected, topk: usize) {
    let mass =
        |(at, lse): ((usize, usize), &f32)| ((f64::from(*lse) - f64::from(all.lse[at])).exp(), at);
    let masses: Vec<_> =
        selected.lse.indexed_iter().filter(|((t, _), _)| *t >= topk).map(mass).collect();
    let Some((least, (t, head))) = masses.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return section.fact("attention mass on the selected keys", "1: all are kept".to_string());
    };
    let mean = masses.iter().map(|(mass, _)| mass).sum::<f64>() / masses.len() as f64;
    let text = format!("mean {mean:.4}, least {least:.4} (token {t}, head {head})");
    section.fact("attention mass on the selected keys, tokens with more", text);
}

/// `ks = 0`, `ke = t + 1`.
fn causal(s: usize) -> (Vec<i32>, Vec<i32>) {
    (vec![0; s], (1..=s as i32).collect())
}

/// The last row, as `[1, n]`.
fn last_row(x: &Array2<f32>) -> Array2<f32> {
    x.slice_axis(Axis(0), Slice::from(-1..)).to_owned()
}

/// Matrices rounded to bf16, as they are on the device; norms stay f32.
fn round(w: &mut AttentionWeights) {
    let indexer = &mut w.indexer;
    for matrix in [
        &mut w.q_a_proj,
        &mut w.q_b_proj,
        &mut w.kv_a_proj_with_mqa,
        &mut w.kv_b_proj,
        &mut w.o_proj,
        &mut indexer.wq_b,
        &mut indexer.wk,
        &mut indexer.weights_proj,
    ] {
        matrix.mapv_inplace(bf16_round);
    }
}
