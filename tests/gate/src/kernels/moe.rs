//! The kernels of the other half of a layer: embedding, residual and norm, gate, dispatch, sum over experts, SwiGLU.
//! Each has a file with all that the gate knows of it.

use super::*;
use crate::generate::{Fill, Forms, Model, float, gap, tensor};
use crate::paths::{in_vectors, name_of};
use dsa_kernels::random::Rng;
use proptest::prelude::*;
use reference::arithmetic::Arithmetic;

mod add_rms_norm;
mod combine;
mod dispatch;
mod embedding;
mod router;
mod swiglu;

/// What the gate knows of one kernel.
pub(crate) struct Moe {
    pub kernel: Kernel,
    pub forms: fn() -> Forms,
    pub production: fn() -> Vec<Case>,
    pub sample: fn() -> Case,
    /// Its code paths, and those of one case in which there is something to compute.
    pub paths: &'static [&'static [&'static str]],
    pub paths_of: fn(&Case) -> Vec<&'static str>,
}

pub(super) const EMBEDDING: Moe = embedding::MOE;
pub(super) const ADD_RMS_NORM: Moe = add_rms_norm::MOE;
pub(super) const ROUTER: Moe = router::MOE;
pub(super) const DISPATCH: Moe = dispatch::MOE;
pub(super) const SWIGLU: Moe = swiglu::MOE;
pub(super) const COMBINE: Moe = combine::MOE;

/// What is known of the kernel `name`, if it is one of these.
pub(crate) fn find_moe(name: &str) -> Option<Moe> {
    let all = [EMBEDDING, ADD_RMS_NORM, ROUTER, DISPATCH, SWIGLU, COMBINE];
    all.into_iter().find(|moe| moe.kernel.name == name)
}

/// A small case of the kernel `name` that every device takes, if it is one of these.
pub fn sample_of(name: &str) -> Option<Case> {
    find_moe(name).map(|moe| (moe.sample)())
}

const FLOATS: &[&str] = &["f32", "bf16", "f16"];
const LOADS: &[&str] = &["vectors", "elements"];
const STRIDED: &str = "strided: false|true|aligned|wide (false)";

/// What an MoE layer of DeepSeek-V3.2 has, of the smallest size that runs all code.
const FEW: usize = 4;
const HIDDEN: usize = 7168;
const INTERMEDIATE: usize = 2048;
const EXPERTS: usize = 256;
const TOP_K: usize = 8;

fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

fn floats(seed: u64, shape: &[usize]) -> HostTensor {
    tensor(&mut Rng::new(seed), DType::F32, shape, Fill::Normal)
}

/// The type of `first`, and whether the rows of all `names` are read in vectors of 16 of its bytes.
fn rows_by(case: &Case, first: &str, names: &[&str]) -> Vec<&'static str> {
    let dtype = case.tensors.get(first).map_or(DType::F32, |tensor| tensor.dtype);
    let whole = names.iter().all(|name| in_vectors(case, name, 16 / dtype.size()));
    vec![name_of(dtype), if whole { LOADS[0] } else { LOADS[1] }]
}

/// The reference's arithmetic that rounds nothing: [`HostTensor::cast`] rounds the result to whatever type it has.
fn exact() -> Arithmetic {
    Arithmetic::exact(reference::rope::Pairing::HalfSplit)
}

/// Experts of `n` tokens, `top_k` each, of so many: anywhere, different ones, all the same one, in order, or with some
/// that there are not.
fn indices(rng: &mut Rng, n: usize, top_k: usize, experts: usize) -> HostTensor {
    let kind = rng.below(5);
    let one = rng.below(experts) as i32;
    let none = [-1, i32::MIN, i32::MAX, experts as i32];
    let mut of_token = |t: usize, j: usize| match kind {
        0 => one,
        1 => ((t * 7 + j * 3) % experts) as i32,
        2 => j.min(experts - 1) as i32,
        3 if rng.one_in(6) => rng.choose(&none),
        _ => rng.below(experts) as i32,
    };
    let values: Vec<i32> =
        (0..n * top_k).map(|pair| of_token(pair / top_k, pair % top_k)).collect();
    HostTensor::i32(&[n, top_k], &values)
}
