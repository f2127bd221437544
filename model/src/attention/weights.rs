//! The weights of a layer on the host: read, made up, and brought to the device.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Dtype, WeightPath};
use dsa_kernels::{DType, Device, Tensor};
use dsa_reference::attention_layer::{AttentionWeights, IndexerWeights};
use dsa_tests::generate::Rng;
use ndarray::{Array, Array1, Array2, Dimension};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The weights below `path` (`model.layers.N.self_attn`), in f32 as the reference takes them.
///
/// # Errors
/// As [`Checkpoint::f32`](crate::weights::Checkpoint::f32): a missing tensor, or one of another
/// shape or type than the configuration says. [`Error::Unread`] for another tensor there (a bias, a
/// sink, a scale of a weight that is not quantised): the layer would compute without it.
pub fn read_weights(config: &Config, path: &WeightPath) -> Result<AttentionWeights> {
    let read = RefCell::new(BTreeSet::new());
    let mut matrix = |name: &str, out, into| {
        if path.form(name)?.0 == Dtype::F8_E4M3 {
            read.borrow_mut().insert(format!("{name}_scale_inv"));
        }
        read.borrow_mut().insert(name.to_string());
        path.array2(name, [out, into])
    };
    let mut vector = |name: &str, n| {
        read.borrow_mut().insert(name.to_string());
        path.array1(name, n)
    };
    let weights = build(config, &mut matrix, &mut vector)?;
    let read = read.into_inner();
    let unread = path.names().find(|name| !read.contains(*name) && !FREE.contains(name));
    unread.map_or(Ok(weights), |name| Err(Error::Unread(path.name(name))))
}

/// Tensors that decide nothing: a table of frequencies that old writers stored, which is computed.
const FREE: [&str; 1] = ["rotary_emb.inv_freq"];

/// Seeded weights: normal of variance 1 / in, so that activations keep their size; norms near 1.
/// The same on every machine, for measuring and for tests.
pub fn random_weights(config: &Config, seed: u64) -> Result<AttentionWeights> {
    let (mut rng, mut norms) = (Rng::new(seed), Rng::new(!seed));
    let mut matrix = |_: &str, out, into| {
        let scale = (into as f32).sqrt().recip();
        Ok(Array2::from_shape_simple_fn((out, into), || rng.normal() * scale))
    };
    let mut vector = |name: &str, n| {
        let mean = if name.ends_with("bias") { 0.0 } else { 1.0 };
        Ok(Array1::from_shape_simple_fn(n, || mean + 0.1 * norms.normal()))
    };
    build(config, &mut matrix, &mut vector)
}

/// Makes the matrix of this name, `[out, in]`.
type MakeMatrix<'a> = dyn FnMut(&str, usize, usize) -> Result<Array2<f32>> + 'a;
/// Makes the vector of this name, `[n]`.
type MakeVector<'a> = dyn FnMut(&str, usize) -> Result<Array1<f32>> + 'a;

/// All weights.
fn build(c: &Config, matrix: &mut MakeMatrix, vector: &mut MakeVector) -> Result<AttentionWeights> {
    let (hidden, heads, query) = (c.hidden_size, c.num_attention_heads, c.q_lora_rank);
    let (rank, d) = (c.kv_lora_rank, c.index_head_dim);
    let expanded = c.qk_nope_head_dim + c.v_head_dim;
    Ok(AttentionWeights {
        q_a_proj: matrix("q_a_proj.weight", query, hidden)?,
        q_a_layernorm: vector("q_a_layernorm.weight", query)?,
        q_b_proj: matrix("q_b_proj.weight", heads * c.qk_head_dim(), query)?,
        kv_a_proj_with_mqa: matrix("kv_a_proj_with_mqa.weight", c.latent_dim(), hidden)?,
        kv_a_layernorm: vector("kv_a_layernorm.weight", rank)?,
        kv_b_proj: matrix("kv_b_proj.weight", heads * expanded, rank)?,
        o_proj: matrix("o_proj.weight", hidden, heads * c.v_head_dim)?,
        indexer: IndexerWeights {
            wq_b: matrix("indexer.wq_b.weight", c.index_n_heads * d, query)?,
            wk: matrix("indexer.wk.weight", d, hidden)?,
            k_norm_weight: vector("indexer.k_norm.weight", d)?,
            k_norm_bias: vector("indexer.k_norm.bias", d)?,
            weights_proj: matrix("indexer.weights_proj.weight", c.index_n_heads, hidden)?,
        },
    })
}

/// Brings weights to a device, checking their shapes.
pub(super) struct Uploader<'a> {
    pub device: &'a Device,
    /// The matrices' type there.
    pub dtype: DType,
}

impl Uploader<'_> {
    /// A matrix `[out, in]` as `[1, out, in]`, the form that gemm takes.
    pub fn matrix(&self, name: &str, w: &Array2<f32>, shape: [usize; 2]) -> Result<Tensor> {
        expect(name, w, &shape)?;
        self.upload(w, &[1, shape[0], shape[1]], self.dtype)
    }

    /// A vector `[n]` in f32.
    pub fn vector(&self, name: &str, w: &Array1<f32>, n: usize) -> Result<Tensor> {
        expect(name, w, &[n])?;
        self.upload(w, &[n], DType::F32)
    }

    /// Any array, row-major, as `shape`.
    pub fn upload<D: Dimension>(
        &self,
        w: &Array<f32, D>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let values: Vec<f32> = w.iter().copied().collect();
        Ok(self.device.upload_f32(&values, shape, dtype)?)
    }
}

/// Refuses a weight of another shape.
pub(super) fn expect<D: Dimension>(name: &str, w: &Array<f32, D>, shape: &[usize]) -> Result<()> {
    if w.shape() == shape {
        return Ok(());
    }
    Err(Error::Shape { name: name.into(), found: w.shape().into(), expected: shape.into() })
}
