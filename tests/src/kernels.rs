//! Every kernel and its reference under one name and one set of tensor names.

use crate::case::{Case, CaseError, Cuboid, HostTensor, Matrix, Outputs, Vector};
use dsa_kernels::attention::{Attention, AttentionArgs};
use dsa_kernels::tile::Machine;
use dsa_kernels::{DType, Device};
use dsa_kernels::{
    copy, dense_attention, fold_scales, gemm, hadamard, indexer, norm, quant, rope,
    sparse_attention, top_k,
};
use dsa_reference as reference;
use ndarray::{Array4, Axis};

mod attention;
mod pointwise;
mod quantised;
mod selection;

use attention::*;
use pointwise::*;
use quantised::*;
use selection::*;

/// A kernel, its reference, and what they take.
pub struct Kernel {
    /// The launcher's name.
    pub name: &'static str,
    /// The source file in `kernels/src`.
    pub file: &'static str,
    /// Tensors, as `name: shape dtype`.
    pub tensors: &'static [&'static str],
    /// Scalars, as `name: values (default)`.
    pub scalars: &'static [&'static str],
    /// Outputs, as `name: shape dtype`.
    pub outputs: &'static [&'static str],
    /// How the kernel runs on a device.
    pub machine: fn(&Device) -> Machine,
    /// Runs the kernel.
    pub run: fn(&Device, &Case) -> Result<Outputs, CaseError>,
    /// Runs the reference.
    pub reference: fn(&Case) -> Result<Outputs, CaseError>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All kernels.
pub const ALL: &[Kernel] = &[
    Kernel {
        name: "act_quant",
        file: "quant.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16"],
        scalars: &["fmt: plain|ue8m0", "strided: true|false (false)"],
        outputs: &["codes: [rows, cols] e4m3", "scale: [rows, ceil(cols/128)] f32"],
        machine: quant::machine,
        run: run_act_quant,
        reference: reference_act_quant,
    },
    Kernel {
        name: "round_trip",
        file: "quant.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16"],
        scalars: &["fmt: plain|ue8m0", "strided: true|false (false)"],
        outputs: &["out: [rows, cols] as x"],
        machine: quant::machine,
        run: run_round_trip,
        reference: reference_round_trip,
    },
    Kernel {
        name: "store_kv",
        file: "quant.rs",
        tensors: &[
            "c: [n, kv_lora_rank] f32|bf16|f16",
            "k_pe: [n, rope_dim] as c",
            "slots: [n] i32",
            "cache: [n_pages, page_size * record] u8",
        ],
        scalars: &["page_size: integer", "strided: true|false (false)"],
        outputs: &["cache: [n_pages, page_size * record] u8"],
        machine: quant::machine,
        run: run_store_kv,
        reference: reference_store_kv,
    },
    Kernel {
        name: "store_index_keys",
        file: "quant.rs",
        tensors: &[
            "k: [n, D] f32|bf16|f16",
            "slots: [n] i32",
            "cache: [n_pages, page_size * (D + 4)] u8",
        ],
        scalars: &["page_size: integer"],
        outputs: &["cache: [n_pages, page_size * (D + 4)] u8"],
        machine: quant::machine,
        run: run_store_index_keys,
        reference: reference_store_index_keys,
    },
    Kernel {
        name: "hadamard",
        file: "hadamard.rs",
        tensors: &["x: [rows, n] f32|bf16|f16"],
        scalars: &["strided: true|false (false)"],
        outputs: &["out: [rows, n] as x"],
        machine: hadamard::machine,
        run: run_hadamard,
        reference: reference_hadamard,
    },
    Kernel {
        name: "rope",
        file: "rope.rs",
        tensors: &[
            "x: [n, heads, dim] f32|bf16|f16",
            "cos: [positions, dim/2] f32",
            "sin: [positions, dim/2] f32",
            "positions: [n] i32",
        ],
        scalars: &["pairing: interleaved|half_split", "strided: true|false (false)"],
        outputs: &["out: [n, heads, dim] as x"],
        machine: rope::machine,
        run: run_rope,
        reference: reference_rope,
    },
    Kernel {
        name: "rms_norm",
        file: "norm.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16", "weight: [cols] f32"],
        scalars: &["eps: number", "strided: true|false (false)"],
        outputs: &["out: [rows, cols] as x"],
        machine: norm::machine,
        run: run_rms_norm,
        reference: reference_rms_norm,
    },
    Kernel {
        name: "layer_norm",
        file: "norm.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16", "weight: [cols] f32", "bias: [cols] f32"],
        scalars: &["eps: number", "strided: true|false (false)"],
        outputs: &["out: [rows, cols] as x"],
        machine: norm::machine,
        run: run_layer_norm,
        reference: reference_layer_norm,
    },
    Kernel {
        name: "gemm",
        file: "gemm.rs",
        tensors: &["x: [b, m, k] f32|bf16|f16", "w: [b, n, k] as x"],
        scalars: &["strided: true|false (false)"],
        outputs: &["out: [b, m, n] f32"],
        machine: |d| gemm::machine(d, DType::Bf16),
        run: run_gemm,
        reference: reference_gemm,
    },
    Kernel {
        name: "fold_scales",
        file: "fold_scales.rs",
        tensors: &["weights: [s, H] f32", "q_scale: [s, H] f32"],
        scalars: &["factor: number"],
        outputs: &["out: [s, H] f32"],
        machine: fold_scales::machine,
        run: run_fold_scales,
        reference: reference_fold_scales,
    },
    Kernel {
        name: "indexer_logits",
        file: "indexer.rs",
        tensors: &[
            "q: [s, H, D] e4m3|bf16|f16|f32",
            "k: [s_kv, D] as q",
            "k_scale: [s_kv] f32",
            "weights: [s, H] f32",
            "ks: [s] i32",
            "ke: [s] i32",
        ],
        scalars: &["score_fn: relu|sigmoid (relu)", "strided: true|false (false)"],
        outputs: &["logits: [s, s_kv] f32"],
        machine: |d| indexer::machine(d, DType::E4m3),
        run: run_indexer_logits,
        reference: reference_indexer_logits,
    },
    Kernel {
        name: "indexer_logits_paged",
        file: "indexer.rs",
        tensors: &[
            "q: [b, next_n, H, D] e4m3",
            "cache: [n_pages, page_size * (D + 4)] u8",
            "weights: [b * next_n, H] f32",
            "context_lens: [b] i32",
            "block_table: [b, max_pages] i32",
        ],
        scalars: &[
            "page_size: integer",
            "max_context: integer",
            "score_fn: relu|sigmoid (relu)",
            "strided: true|false (false)",
        ],
        outputs: &["logits: [b * next_n, max_context] f32"],
        machine: |d| indexer::machine(d, DType::E4m3),
        run: run_indexer_logits_paged,
        reference: reference_indexer_logits_paged,
    },
    Kernel {
        name: "top_k",
        file: "top_k.rs",
        tensors: &["logits: [rows, length] f32", "ks: [rows] i32", "ke: [rows] i32"],
        scalars: &[
            "topk: integer",
            "policy: fixed|fraction|window (fixed)",
            "per_mille, min: integers (policy fraction)",
            "window, sinks: integers (policy window)",
            "pieces: integer (chosen for the device)",
            "strided: true|false (false)",
        ],
        outputs: &["indices: [rows, topk] i32"],
        machine: top_k::machine,
        run: run_top_k,
        reference: reference_top_k,
    },
    Kernel {
        name: "shift_indices",
        file: "top_k.rs",
        tensors: &["indices: [n, topk] i32", "first: [n] i32"],
        scalars: &[],
        outputs: &["out: [n, topk] i32"],
        machine: top_k::machine,
        run: run_shift_indices,
        reference: reference_shift_indices,
    },
    Kernel {
        name: "place_rows",
        file: "copy.rs",
        tensors: &[
            "x: [n, h, d] f32|bf16|f16, or [n, 1, d] for every head",
            "slots: [n] i32",
            "out: [rows, h, d] as x",
        ],
        scalars: &["strided: true|false (false)"],
        outputs: &["out: [rows, h, d] as x"],
        machine: copy::machine,
        run: run_place_rows,
        reference: reference_place_rows,
    },
    Kernel {
        name: "sparse_mla",
        file: "sparse_attention.rs",
        tensors: &[
            "q: [s, h, d_qk] f32|bf16|f16",
            "kv: [s_kv, d_qk] or [n_pages, page_size, d_qk] as q",
            "indices: [s, topk] i32",
            "topk_length: [s] i32 (optional)",
            "attn_sink: [h] f32 (optional)",
        ],
        scalars: ATTENTION_SCALARS,
        outputs: ATTENTION_OUTPUTS,
        machine: |d| sparse_attention::machine(d, DType::Bf16),
        run: run_sparse_mla,
        reference: reference_sparse_mla,
    },
    Kernel {
        name: "sparse_mla_paged",
        file: "sparse_attention.rs",
        tensors: &[
            "q: [s, h, d_qk] f32|bf16|f16",
            "cache: [n_pages, page_size * record] u8",
            "indices: [s, topk] i32 of slots",
            "topk_length: [s] i32 (optional)",
            "attn_sink: [h] f32 (optional)",
        ],
        scalars: &[
            "softmax_scale: number",
            "kv_lora_rank: integer (d_v is the same)",
            "page_size: integer",
            "splits: integer (chosen for the device)",
            "strided: true|false (false)",
        ],
        outputs: ATTENTION_OUTPUTS,
        machine: |d| sparse_attention::machine(d, DType::Bf16),
        run: run_sparse_mla_paged,
        reference: reference_sparse_mla_paged,
    },
    Kernel {
        name: "dense_mha",
        file: "dense_attention.rs",
        tensors: &[
            "q: [s, h, d_qk] f32|bf16|f16",
            "k: [s_kv, h, d_qk] as q",
            "v: [s_kv, h, d_v] as q",
            "ks: [s] i32",
            "ke: [s] i32",
        ],
        scalars: &["softmax_scale: number", "strided: true|false (false)"],
        outputs: ATTENTION_OUTPUTS,
        machine: |d| dense_attention::machine(d, DType::Bf16),
        run: run_dense_mha,
        reference: reference_dense_mha,
    },
    Kernel {
        name: "dense_mla",
        file: "dense_attention.rs",
        tensors: &[
            "q: [s, h, d_qk] f32|bf16|f16",
            "kv: [s_kv, d_qk] as q",
            "ks: [s] i32",
            "ke: [s] i32",
        ],
        scalars: ATTENTION_SCALARS,
        outputs: ATTENTION_OUTPUTS,
        machine: |d| dense_attention::machine(d, DType::Bf16),
        run: run_dense_mla,
        reference: reference_dense_mla,
    },
];

const ATTENTION_SCALARS: &[&str] = &[
    "softmax_scale: number",
    "d_v: integer",
    "splits: integer (chosen for the device)",
    "strided: true|false (false)",
];
const ATTENTION_OUTPUTS: &[&str] =
    &["out: [s, h, d_v] as q", "lse: [s, h] f32", "max_logits: [s, h] f32"];

/// The kernel of this name.
pub fn find(name: &str) -> Result<&'static Kernel, CaseError> {
    ALL.iter().find(|k| k.name == name).ok_or_else(|| CaseError::UnknownKernel(name.to_string()))
}

/// One of several words as a value.
fn choice<T: Copy>(case: &Case, name: &str, choices: &[(&str, T)]) -> Result<T, CaseError> {
    let got = case.scalars.get(name);
    let word = got.map_or(choices[0].0, String::as_str);
    choices.iter().find(|(w, _)| *w == word).map(|(_, v)| *v).ok_or_else(|| CaseError::Scalar {
        kernel: case.kernel.clone(),
        name: name.to_string(),
        got: got.cloned(),
        expected: choices.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(" or "),
    })
}

/// Refuses tensor `name` unless it is of this shape: what the references themselves do not check.
fn expect_shape(case: &Case, name: &str, shape: &[usize]) -> Result<(), CaseError> {
    let tensor = case.tensor(name)?;
    if tensor.shape == shape {
        return Ok(());
    }
    let (got, expected) = (format!("{tensor:?}"), format!("{shape:?}"));
    Err(CaseError::Tensor { name: name.to_string(), got, expected })
}

/// The scalar `name`, refused if it is more than any kernel takes: a reference would go out of memory.
fn count(case: &Case, name: &str) -> Result<usize, CaseError> {
    let count = case.scalar(name)?;
    if count <= 1 << 20 {
        return Ok(count);
    }
    let (kernel, expected) = (case.kernel.clone(), "at most 2^20".to_string());
    let got = Some(count.to_string());
    Err(CaseError::Scalar { kernel, name: name.to_string(), got, expected })
}

fn outputs<const N: usize>(named: [(&'static str, HostTensor); N]) -> Outputs {
    named.into_iter().collect()
}
