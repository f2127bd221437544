//! Every kernel and its reference under one name and one set of tensor names.

use crate::case::{Case, CaseError, Cuboid, HostTensor, Matrix, Outputs, Vector};
use dsa_kernels::attention::{AttentionArgs, AttentionOut};
use dsa_kernels::indexer::IndexKeys;
use dsa_kernels::keys::{Keys, Kv};
use dsa_kernels::seen::{KeyRange, Seen};
use dsa_kernels::{DType, Device, Tensor};
use dsa_kernels::{
    cache_write, copy, dense_attention, fold_scales, gemm, hadamard, indexer, norm, quant, rope,
    sparse_attention, top_k,
};
use dsa_reference as reference;
use ndarray::{Array4, Axis};

mod attention;
mod kernel;
pub(crate) mod linear;
mod moe;
mod pointwise;
mod quantised;
mod selection;

pub use kernel::Kernel;
pub(crate) use moe::find_moe;
pub use moe::sample_of;

use attention::*;
use pointwise::*;
use quantised::*;
use selection::*;

/// All kernels.
pub const ALL: &[Kernel] = &[
    Kernel {
        name: "act_quant",
        file: "quant.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16"],
        scalars: &["fmt: ue8m0|plain (ue8m0)", "strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &["codes: [rows, cols] e4m3", "scale: [rows, ceil(cols / 128)] f32"],
        scratch: "0",
        work: "rows * cols",
        machine: quant::machine,
        launch: run_act_quant,
        compute: reference_act_quant,
    },
    Kernel {
        name: "round_trip",
        file: "quant.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16"],
        scalars: &["fmt: ue8m0|plain (ue8m0)", "strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &["out: [rows, cols] as x"],
        scratch: "0",
        work: "rows * cols",
        machine: quant::machine,
        launch: run_round_trip,
        compute: reference_round_trip,
    },
    Kernel {
        name: "store_kv",
        file: "cache_write.rs",
        tensors: &[
            "c: [n, kv_lora_rank] f32|bf16|f16",
            "k_pe: [n, rope_dim] as c",
            "slots: [n] i32",
            RECORD_CACHE,
        ],
        scalars: &["page_size: integer 1 to 1048576", "strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &[RECORD_CACHE],
        scratch: "0",
        work: "n * (kv_lora_rank + rope_dim)",
        machine: cache_write::machine,
        launch: run_store_kv,
        compute: reference_store_kv,
    },
    Kernel {
        name: "store_index_keys",
        file: "cache_write.rs",
        tensors: &[
            "k: [n, D] f32|bf16|f16",
            "slots: [n] i32",
            "cache: [n_pages, page_size * (D + 4)] u8",
        ],
        scalars: &["page_size: integer 1 to 1048576"],
        sizes: &["D: 1 to 128"],
        outputs: &["cache: [n_pages, page_size * (D + 4)] u8"],
        scratch: "0",
        work: "n * D",
        machine: cache_write::machine,
        launch: run_store_index_keys,
        compute: reference_store_index_keys,
    },
    Kernel {
        name: "hadamard",
        file: "hadamard.rs",
        tensors: &["x: [rows, n] f32|bf16|f16"],
        scalars: &["strided: false|true|aligned|wide (false)"],
        sizes: &["n: 1 to 1024, a power of two"],
        outputs: &["out: [rows, n] as x"],
        scratch: "0",
        work: "rows * n * n",
        machine: hadamard::machine,
        launch: run_hadamard,
        compute: reference_hadamard,
    },
    Kernel {
        name: "rope",
        file: "rope.rs",
        tensors: &[
            "x: [n, heads, dim] f32|bf16|f16",
            "cos: [positions, dim / 2] f32",
            "sin: [positions, dim / 2] f32",
            "positions: [n] i32",
        ],
        scalars: &[
            "pairing: interleaved|half_split (interleaved)",
            "strided: false|true|aligned|wide (false)",
        ],
        sizes: &["dim: at least 2, even", "positions: at least 1"],
        outputs: &["out: [n, heads, dim] as x"],
        scratch: "0",
        work: "n * heads * dim",
        machine: rope::machine,
        launch: run_rope,
        compute: reference_rope,
    },
    Kernel {
        name: "rms_norm",
        file: "norm.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16", "weight: [cols] f32"],
        scalars: &["eps: number at least 0", "strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &["out: [rows, cols] as x"],
        scratch: "0",
        work: "rows * cols",
        machine: norm::machine,
        launch: run_rms_norm,
        compute: reference_rms_norm,
    },
    Kernel {
        name: "layer_norm",
        file: "norm.rs",
        tensors: &["x: [rows, cols] f32|bf16|f16", "weight: [cols] f32", "bias: [cols] f32"],
        scalars: &["eps: number at least 0", "strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &["out: [rows, cols] as x"],
        scratch: "0",
        work: "rows * cols",
        machine: norm::machine,
        launch: run_layer_norm,
        compute: reference_layer_norm,
    },
    Kernel {
        name: "gemm",
        file: "gemm.rs",
        tensors: &["x: [b, m, k] f32|bf16|f16", "w: [b, n, k] as x"],
        scalars: &["out: f32|bf16|f16 (f32)", "strided: false|true|aligned|wide (false)"],
        sizes: &["k: at least 1"],
        outputs: &["out: [b, m, n] as out"],
        scratch: "0",
        work: "b * m * n * k",
        machine: |d| gemm::machine(d, DType::Bf16),
        launch: run_gemm,
        compute: reference_gemm,
    },
    Kernel {
        name: "fold_scales",
        file: "fold_scales.rs",
        tensors: &["weights: [s, H] f32", "q_scale: [s, H] f32"],
        scalars: &["factor: number"],
        sizes: &[],
        outputs: &["out: [s, H] f32"],
        scratch: "0",
        work: "s * H",
        machine: fold_scales::machine,
        launch: run_fold_scales,
        compute: reference_fold_scales,
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
        scalars: &["score_fn: relu|sigmoid (relu)", "strided: false|true|aligned|wide (false)"],
        sizes: &["H: 1 to 128", "D: 1 to 256"],
        outputs: &["logits: [s, s_kv] f32"],
        scratch: "0",
        work: "s * s_kv * H * D",
        machine: |d| indexer::machine(d, DType::E4m3),
        launch: run_indexer_logits,
        compute: reference_indexer_logits,
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
            "page_size: integer 1 to 1048576",
            "max_context: integer 0 to max_pages * page_size",
            "score_fn: relu|sigmoid (relu)",
            "strided: false|true|aligned|wide (false)",
        ],
        sizes: &["H: 1 to 128", "D: 1 to 256"],
        outputs: &["logits: [b * next_n, max_context] f32"],
        scratch: "0",
        work: "b * next_n * max_context * H * D",
        machine: |d| indexer::machine(d, DType::E4m3),
        launch: run_indexer_logits_paged,
        compute: reference_indexer_logits_paged,
    },
    Kernel {
        name: "top_k",
        file: "top_k.rs",
        tensors: &["logits: [rows, length] f32", "ks: [rows] i32", "ke: [rows] i32"],
        scalars: &[
            "topk: integer 1 to 1048576",
            "policy: fixed|fraction|window (fixed)",
            "per_mille: integer 0 to 1000 (with policy=fraction)",
            "min: integer 0 to 4294967295 (with policy=fraction)",
            "window: integer 0 to 4194303 (with policy=window)",
            "sinks: integer 0 to 4294967295 (with policy=window)",
            "pieces: integer 0 to 1024 (chosen for the device)",
            "strided: false|true|aligned|wide (false)",
        ],
        sizes: &[],
        outputs: &["indices: [rows, topk] i32"],
        scratch: "8 * rows * pieces * length",
        work: "rows * (length + topk)",
        machine: top_k::machine,
        launch: run_top_k,
        compute: reference_top_k,
    },
    Kernel {
        name: "shift_indices",
        file: "top_k.rs",
        tensors: &["indices: [n, topk] i32", "first: [n] i32"],
        scalars: &[],
        sizes: &[],
        outputs: &["out: [n, topk] i32"],
        scratch: "0",
        work: "n * topk",
        machine: top_k::machine,
        launch: run_shift_indices,
        compute: reference_shift_indices,
    },
    Kernel {
        name: "place_rows",
        file: "copy.rs",
        tensors: &[
            "out: [rows, h, d] f32|bf16|f16",
            "x: [n, h, d] or [n, 1, d] as out",
            "slots: [n] i32",
        ],
        scalars: &["strided: false|true|aligned|wide (false)"],
        sizes: &[],
        outputs: &["out: [rows, h, d] as out"],
        scratch: "0",
        work: "n * h * d",
        machine: copy::machine,
        launch: run_place_rows,
        compute: reference_place_rows,
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
        sizes: &["h: 1 to 128", "d_qk: 1 to 1024"],
        outputs: ATTENTION_OUTPUTS,
        scratch: "4 * splits * s * h * (d_v + 2)",
        work: "s * h * topk * (d_qk + d_v)",
        machine: |d| sparse_attention::machine(d, DType::Bf16),
        launch: run_sparse_mla,
        compute: reference_sparse_mla,
    },
    Kernel {
        name: "sparse_mla_paged",
        file: "sparse_attention.rs",
        tensors: &[
            "q: [s, h, d_qk] f32|bf16|f16",
            "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) + 2 * (d_qk - kv_lora_rank))] u8",
            "indices: [s, topk] i32",
            "topk_length: [s] i32 (optional)",
            "attn_sink: [h] f32 (optional)",
        ],
        scalars: &[
            "softmax_scale: number above 0",
            "kv_lora_rank: integer 1 to d_qk",
            "page_size: integer 1 to 1048576",
            "splits: integer 1 to 1024 (chosen for the device)",
            "strided: false|true|aligned|wide (false)",
        ],
        sizes: &["h: 1 to 128", "d_qk: 1 to 1024"],
        outputs: &["out: [s, h, kv_lora_rank] as q", "lse: [s, h] f32", "max_logits: [s, h] f32"],
        scratch: "4 * splits * s * h * (kv_lora_rank + 2)",
        work: "s * h * topk * (d_qk + kv_lora_rank)",
        machine: |d| sparse_attention::machine(d, DType::Bf16),
        launch: run_sparse_mla_paged,
        compute: reference_sparse_mla_paged,
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
        scalars: &["softmax_scale: number above 0", "strided: false|true|aligned|wide (false)"],
        sizes: &["h: 1 to 128", "d_qk: 1 to 1024", "d_v: 1 to 1024"],
        outputs: ATTENTION_OUTPUTS,
        scratch: "0",
        work: "s * h * s_kv * (d_qk + d_v)",
        machine: |d| dense_attention::machine(d, DType::Bf16),
        launch: run_dense_mha,
        compute: reference_dense_mha,
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
        sizes: &["h: 1 to 128", "d_qk: 1 to 1024"],
        outputs: ATTENTION_OUTPUTS,
        scratch: "4 * splits * s * h * (d_v + 2)",
        work: "s * h * s_kv * (d_qk + d_v)",
        machine: |d| dense_attention::machine(d, DType::Bf16),
        launch: run_dense_mla,
        compute: reference_dense_mla,
    },
    moe::EMBEDDING.kernel,
    moe::ADD_RMS_NORM.kernel,
    moe::ROUTER.kernel,
    moe::DISPATCH.kernel,
    moe::SWIGLU.kernel,
    moe::COMBINE.kernel,
    linear::LINEAR_FP8,
    linear::GROUPED_GEMM,
    linear::GROUPED_GEMM_FP8,
];

/// Pages of fp8 records: the latent, a scale for each 128 of it, the rope part in bf16.
const RECORD_CACHE: &str =
    "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) + 2 * rope_dim)] u8";
const ATTENTION_SCALARS: &[&str] = &[
    "softmax_scale: number above 0",
    "d_v: integer 1 to d_qk",
    "splits: integer 1 to 1024 (chosen for the device)",
    "strided: false|true|aligned|wide (false)",
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

fn outputs<const N: usize>(named: [(&'static str, HostTensor); N]) -> Outputs {
    named.into_iter().collect()
}
