//! What is measured of each kernel: sizes, operations and bytes, the gate's small case, the call, and how rows of
//! what it computed are cut out to be judged.

use crate::args::Axes;
use crate::session::Spec;
use crate::timed::Named;
use dsa_figures::Stage;
use dsa_kernels::cache_write::KvRecord;
use dsa_kernels::{Device, Result, Tensor};
use std::collections::BTreeMap;

mod attention;
mod caches;
mod linear;
mod pointwise;
mod records;
mod room;
mod selection;

pub use room::check;

/// Width of index heads, latent, rope and expanded heads of DeepSeek-V3.2.
const INDEX_DIM: usize = 128;
const KV_LORA_RANK: usize = 512;
const ROPE: usize = 64;
const D_QK: usize = KV_LORA_RANK + ROPE;
const QK_HEAD: usize = 192;
const V_HEAD: usize = 128;
/// V3.2's softmax scale at long context.
const SOFTMAX_SCALE: f32 = 0.135_233_78;
/// Tokens of a cache page.
const PAGE: usize = 64;
/// A token of the fp8 cache.
const RECORD: KvRecord = KvRecord { kv_lora_rank: KV_LORA_RANK, rope_dim: ROPE };

fn shape<const N: usize>(sizes: [(&str, usize); N]) -> BTreeMap<String, u64> {
    sizes.into_iter().map(|(name, n)| (name.to_string(), n as u64)).collect()
}

fn vec_i32(device: &Device, values: &[i32]) -> Result<Tensor> {
    device.upload_i32(values, &[values.len()])
}

/// The only output of a call.
fn one(name: &'static str, tensor: Tensor) -> Named {
    vec![(name, tensor)]
}

/// Every measurement the axes ask for of the kernels whose name contains `only`; the inputs of others, which
/// may be large, are not made.
pub fn all(device: &Device, axes: &Axes, seed: u64, only: &str) -> Result<Vec<Spec>> {
    type Make<'a> = &'a dyn Fn(usize) -> Result<Spec>;
    let of_context: [(&str, Make); 9] = [
        ("indexer_logits", &|n| selection::indexer_prefill(device, axes, n, seed)),
        ("indexer_logits_paged", &|n| selection::indexer_decode(device, axes, n, seed)),
        ("top_k", &|n| selection::select(device, axes, n, Stage::Prefill, axes.s_q, seed)),
        ("top_k", &|n| selection::select(device, axes, n, Stage::Decode, axes.batch, seed)),
        ("sparse_mla", &|n| attention::sparse(device, axes, n, Stage::Prefill, axes.s_q, seed)),
        ("sparse_mla", &|n| attention::sparse(device, axes, n, Stage::Decode, axes.batch, seed)),
        ("sparse_mla_paged", &|n| attention::sparse_fp8(device, axes, n, seed)),
        ("dense_mha", &|n| attention::dense_prefill(device, axes, n, seed)),
        ("dense_mla", &|n| attention::dense_decode(device, axes, n, seed)),
    ];
    let mut specs = pointwise::all(device, axes, seed)?;
    specs.extend(caches::all(device, axes, seed)?);
    specs.push(selection::shift(device, axes, seed)?);
    specs.retain(|spec| spec.kernel.contains(only));
    let of_weights: [(&str, &dyn Fn() -> Result<Spec>); 3] = [
        ("linear_fp8", &|| linear::linear(device, axes, seed)),
        ("grouped_gemm", &|| linear::experts(device, axes, false, seed)),
        ("grouped_gemm_fp8", &|| linear::experts(device, axes, true, seed)),
    ];
    for (kernel, make) in of_weights {
        if kernel.contains(only) {
            specs.push(make()?);
        }
    }
    for context in &axes.contexts {
        for (kernel, make) in of_context {
            if kernel.contains(only) {
                specs.push(make(*context)?);
            }
        }
    }
    Ok(specs)
}
