//! One layer, on the kernels and in the reference.

use super::checks::{Selected, kernel_checks, layer_check, mass_fact, selection};
use super::error::Result;
use super::reference::{attention_config, attention_options, attention_weights};
use super::report::{Bound, Section};
use super::thresholds::{DECODED, LAYER, MASS, RECALL, TOKEN_MASS, token_recall, worst_row};
use super::trial::Trial;
use dsa_kernels::{DType, Device};
use dsa_model::config::{AttentionOptions, Config};
use dsa_model::layers::Trace;
use dsa_model::run::{KvFormat, Mode};
use dsa_model::weights::Weights;
use dsa_reference::attention_layer::{Absorbed, AttentionConfig, AttentionWeights, indexer_topk};
use dsa_reference::dense_attention::{dense_mha, dense_mla};
use dsa_reference::quant::bf16_round;
use dsa_reference::sparse_attention::sparse_mla;
use ndarray::{Array2, ArrayView2, Axis, Ix2, Ix3, Slice};

/// One comparison: both sides of it, and what was found so far.
struct Comparison<'a> {
    device: &'a Device,
    weights: &'a AttentionWeights,
    /// Sizes, as the reference takes them.
    c: AttentionConfig,
    options: AttentionOptions,
    dtype: DType,
    /// The layer up to the attention, by the reference.
    want: Absorbed,
    /// Keys by the reference: `[s, topk]`.
    want_indices: Array2<i32>,
    /// The layer's output by kernels and reference, each `[s, hidden]`.
    dense: (Array2<f32>, Array2<f32>),
    section: Section,
}

/// The comparison. `x`: `[s, hidden]`.
///
/// What it checks depends on the number of tokens and on the configuration alone, never on the values:
/// where the two sides select different keys, which rounding decides, the reference is given those of
/// the kernels, and the difference of the keys is a check of its own.
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
    let (c, options) = (attention_config(config), attention_options(config));
    let title = format!("{title}, {dtype}, {} tokens, {} keys kept", x.nrows(), config.index_topk);
    let want = Absorbed::new(x.view(), &c, weights, &options)?;
    let want_dense = want.dense(&c, weights)?; // [s, hidden]
    let mut it = Comparison {
        device,
        weights,
        options: config.attention_options,
        dtype,
        want_indices: indexer_topk(x.view(), &c, weights, &options)?,
        dense: (Array2::zeros((0, 0)), want_dense),
        want,
        c,
        section: Section { title, ..Default::default() },
    };
    it.dense(&mut trial)?;
    it.sparse(&mut trial)?;
    Ok(it.section)
}

impl Comparison<'_> {
    /// Dense mode: the attention kernels on their own inputs, then the layer.
    fn dense(&mut self, trial: &mut Trial) -> Result<()> {
        let bound = self.layer_bound(KvFormat::Elements);
        let trace = trial.run(Mode::Dense)?;
        match &trace.expanded {
            Some((k, v)) => {
                let (q, k) = (trial.download::<Ix3>(&trace.q)?, trial.download::<Ix3>(k)?);
                let v = trial.download::<Ix3>(v)?;
                let (ks, ke) = causal(q.dim().0);
                let tau = self.c.softmax_scale();
                let want = dense_mha(q.view(), k.view(), v.view(), &ks, &ke, tau)?;
                kernel_checks(&mut self.section, self.device, "dense_mha", &trace, &want, "")?;
            }
            None => self.dense_mla(trial, &trace, "")?,
        }
        self.dense.0 = trial.download::<Ix2>(&trace.hidden)?; // [s, hidden]
        let (got, want) = &self.dense;
        layer_check(&mut self.section, "dense layer, relative error", got, want, bound, |_| true);

        let trace = trial.decode_last(Mode::Dense)?;
        self.dense_mla(trial, &trace, " (decoded)")?;
        let last = trial.download::<Ix2>(&trace.hidden)?; // [1, hidden]
        let (got, want) = (last_row(&self.dense.0), last_row(&self.dense.1));
        self.decoded("dense, decoded", &last, &want, (&got, &want), KvFormat::Elements);
        Ok(())
    }

    /// The kernel of absorbed dense attention on its own inputs.
    fn dense_mla(&mut self, trial: &Trial, trace: &Trace, when: &str) -> Result<()> {
        let q = trial.download::<Ix3>(&trace.q)?; // [n, h, rank + rope]
        let kv = trial.latents()?; // [s, rank + rope]
        let (n, s) = (q.dim().0, kv.nrows() as i32);
        let ke: Vec<i32> = (s + 1 - n as i32..=s).collect(); // [n]
        let (tau, rank) = (self.c.softmax_scale(), self.c.kv_lora_rank);
        let want = dense_mla(q.view(), kv.view(), &vec![0; n], &ke, tau, rank)?;
        kernel_checks(&mut self.section, self.device, "dense_mla", trace, &want, when)
    }

    /// Sparse mode: which keys, the attention kernels on their own inputs, then the layer.
    fn sparse(&mut self, trial: &mut Trial) -> Result<()> {
        let bound = self.layer_bound(KvFormat::Elements);
        let (s, topk) = (trial.tokens(), self.c.index_topk);
        let trace = trial.run(Mode::Sparse)?;
        let indices = trial.indices(&trace)?; // [s, topk]
        let q = trial.download::<Ix3>(&trace.q)?; // [s, h, rank + rope]
        let kv = trial.latents()?; // [s, rank + rope]
        let (tau, rank) = (self.c.softmax_scale(), self.c.kv_lora_rank);
        let (ks, ke) = causal(s);
        let of_all = dense_mla(q.view(), kv.view(), &ks, &ke, tau, rank)?;
        let want = &self.want_indices;
        let both = Selected { when: "", tokens: s, got: &indices, want, of_all: &of_all.lse };
        let lse_of = |keys: &Array2<i32>| {
            sparse_mla(q.view(), kv.view(), keys.view(), tau, rank, None, None)
        };
        let recall = Bound::AtLeast(RECALL.of(self.dtype, self.options));
        let mass = Bound::AtMost(MASS.of(self.dtype, self.options));
        selection(&mut self.section, both, lse_of, (recall, mass))?;

        let want = sparse_mla(q.view(), kv.view(), indices.view(), tau, rank, None, None)?;
        kernel_checks(&mut self.section, self.device, "sparse_mla", &trace, &want, "")?;
        mass_fact(&mut self.section, &want, &of_all, topk);
        let sparse = trial.download::<Ix2>(&trace.hidden)?; // [s, hidden]
        let want_sparse = self.want.sparse(indices.view(), &self.c, self.weights)?; // [s, hidden]
        let name = "sparse layer, relative error (the kernels' keys)";
        layer_check(&mut self.section, name, &sparse, &want_sparse, bound, |_| true);

        let prefill = (&last_row(&sparse), &last_row(&want_sparse));
        self.sparse_decoded(trial, KvFormat::Elements, prefill)?;
        let mut trial = trial.with_records()?;
        self.prompt_from_records(&mut trial)?;
        self.sparse_decoded(&mut trial, KvFormat::Fp8, prefill)?;

        let dense = &self.dense.0;
        let name = "sparse against dense, tokens with no more keys than kept";
        layer_check(&mut self.section, name, &sparse, dense, bound, |t| t < topk);
        let change = worst_row(sparse.view(), dense.view(), |t| t >= topk);
        let change = change.map_or("none: every token keeps all its keys".into(), |(worst, t)| {
            format!("at most {worst:.4} (token {t})")
        });
        self.section.fact("sparse against dense, the other tokens: relative change", change);
        Ok(())
    }

    /// The sequence as a prompt whose latents are read back from records, in both modes; sparse last.
    fn prompt_from_records(&mut self, trial: &mut Trial) -> Result<()> {
        let bound = self.layer_bound(KvFormat::Fp8);
        let want = self.want.through_records(&self.c);
        for mode in [Mode::Dense, Mode::Sparse] {
            let trace = trial.run(mode)?;
            let got = trial.download::<Ix2>(&trace.hidden)?; // [s, hidden]
            let (name, want) = match mode {
                Mode::Dense => ("dense", want.dense(&self.c, self.weights)?),
                Mode::Sparse => {
                    let indices = trial.indices(&trace)?; // [s, topk]
                    ("sparse", want.sparse(indices.view(), &self.c, self.weights)?)
                }
            }; // [s, hidden]
            let name = format!("{name} layer from fp8 records, relative error");
            layer_check(&mut self.section, &name, &got, &want, bound, |_| true);
        }
        Ok(())
    }

    /// The last token again, decoded from what the cache holds in `format`. `prefill`: its output in
    /// the prompt, by kernels and reference.
    fn sparse_decoded(
        &mut self,
        trial: &mut Trial,
        format: KvFormat,
        prefill: (&Array2<f32>, &Array2<f32>),
    ) -> Result<()> {
        let trace = trial.decode_last(Mode::Sparse)?;
        let indices = trial.indices(&trace)?; // [1, topk]
        let (tau, rank) = (self.c.softmax_scale(), self.c.kv_lora_rank);
        let q = trial.download::<Ix3>(&trace.q)?; // [1, h, rank + rope]
        let (kernel, kv, want, from) = match format {
            KvFormat::Elements => ("sparse_mla", trial.latents()?, self.want.clone(), "decoded"),
            KvFormat::Fp8 => {
                let want = self.want.through_records(&self.c);
                ("sparse_mla_paged", trial.records()?, want, "from fp8 records")
            }
        }; // [s, rank + rope]
        let end = [kv.nrows() as i32];
        let of_all = dense_mla(q.view(), kv.view(), &[0], &end, tau, rank)?;
        let lse_of = |keys: &Array2<i32>| {
            sparse_mla(q.view(), kv.view(), keys.view(), tau, rank, None, None)
        };
        let when = format!(" ({from})");
        let (recall, kept) = (RECALL.of(self.dtype, self.options), self.c.index_topk);
        let recall = Bound::AtLeast(token_recall(recall, kept.min(kv.nrows())));
        let mass = Bound::AtMost(TOKEN_MASS.of(self.dtype, self.options));
        let (tokens, keys) = (kv.nrows(), last_row(&self.want_indices)); // [1, topk]
        let both =
            Selected { when: &when, tokens, got: &indices, want: &keys, of_all: &of_all.lse };
        selection(&mut self.section, both, lse_of, (recall, mass))?;

        let by_kernel = sparse_mla(q.view(), kv.view(), indices.view(), tau, rank, None, None)?;
        kernel_checks(&mut self.section, self.device, kernel, &trace, &by_kernel, &when)?;
        let last = trial.download::<Ix2>(&trace.hidden)?; // [1, hidden]
        let want = want.sparse(indices.view(), &self.c, self.weights)?; // [1, hidden]
        self.decoded(&format!("sparse, {from}"), &last, &want, prefill, format);
        Ok(())
    }

    /// The last token's output when it was decoded, against the reference's, and against the kernels'
    /// own prefill. Where prefill and decode attend to different keys or rows, the reference says by how
    /// much they must differ.
    fn decoded(
        &mut self,
        what: &str,
        got: &Array2<f32>,
        want: &Array2<f32>,
        prefill: (&Array2<f32>, &Array2<f32>),
        format: KvFormat,
    ) {
        let name = format!("{what}: last token, relative error");
        let bound = self.layer_bound(format);
        layer_check(&mut self.section, &name, got, want, bound, |_| true);
        let by_prefill = want + prefill.0 - prefill.1; // [1, hidden]
        let name = format!("{what}: last token against prefill");
        let bound = Bound::AtMost(DECODED.of(self.dtype, self.options_of(format)));
        layer_check(&mut self.section, &name, got, &by_prefill, bound, |_| true);
    }

    /// How far a layer may be off that reads its keys in `format`.
    fn layer_bound(&self, format: KvFormat) -> Bound {
        Bound::AtMost(LAYER.of(self.dtype, self.options_of(format)))
    }

    /// The lossy steps with a cache of this format: a record rounds c to fp8 whatever the options say.
    fn options_of(&self, format: KvFormat) -> AttentionOptions {
        let kv_fp8 = self.options.kv_fp8 || format == KvFormat::Fp8;
        AttentionOptions { kv_fp8, ..self.options }
    }
}

/// `ks = 0`, `ke = t + 1`.
fn causal(s: usize) -> (Vec<i32>, Vec<i32>) {
    (vec![0; s], (1..=s as i32).collect())
}

/// The last row, as `[1, n]`.
fn last_row<T: Clone>(x: &Array2<T>) -> Array2<T> {
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
