//! Every kernel and its reference under one name and one set of tensor names.

use crate::case::{Case, CaseError, Cuboid, HostTensor, Matrix, Outputs, Vector};
use dsa_kernels::attention::{Attention, AttentionArgs};
use dsa_kernels::tile::Machine;
use dsa_kernels::{DType, Device};
use dsa_kernels::{
    copy, dense_attention, gemm, hadamard, indexer, norm, quant, rope, sparse_attention, top_k,
};
use dsa_reference as reference;
use ndarray::{Array4, Axis};

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
        machine: gemm::machine,
        run: run_gemm,
        reference: reference_gemm,
    },
    Kernel {
        name: "fold_scales",
        file: "indexer.rs",
        tensors: &["weights: [s, H] f32", "q_scale: [s, H] f32"],
        scalars: &["factor: number"],
        outputs: &["out: [s, H] f32"],
        machine: |d| indexer::machine(d, DType::E4m3),
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
        machine: sparse_attention::machine,
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
        machine: sparse_attention::machine,
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
        machine: dense_attention::machine,
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
        machine: dense_attention::machine,
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

fn run_act_quant(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use quant::ScaleFmt::{Plain, Ue8m0};
    let fmt = choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])?;
    let x = case.upload_rows(device, "x")?;
    let q = quant::act_quant(device, &x, fmt)?;
    Ok(outputs([
        ("codes", HostTensor::download(device, &q.codes)?),
        ("scale", HostTensor::download(device, &q.scale)?),
    ]))
}

fn reference_fmt(case: &Case) -> Result<reference::quant::ScaleFmt, CaseError> {
    use reference::quant::ScaleFmt::{Plain, Ue8m0};
    choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])
}

fn reference_act_quant(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let q = reference::quant::act_quant(x.view(), quant::BLOCK, reference_fmt(case)?)?;
    let codes = HostTensor {
        dtype: DType::E4m3,
        shape: q.codes.shape().to_vec(),
        bytes: q.codes.iter().copied().collect(),
    };
    Ok(outputs([("codes", codes), ("scale", HostTensor::of(&q.scale))]))
}

fn run_round_trip(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use quant::ScaleFmt::{Plain, Ue8m0};
    let fmt = choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])?;
    let x = case.upload_rows(device, "x")?;
    let out = device.empty(x.shape(), x.dtype());
    quant::round_trip(device, &x, &out, fmt)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_round_trip(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let q = reference::quant::act_quant(x.view(), quant::BLOCK, reference_fmt(case)?)?;
    let out = HostTensor::of(&q.dequantise()).cast(case.tensor("x")?.dtype);
    Ok(outputs([("out", out)]))
}

fn run_store_kv(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe) = (case.upload_rows(device, "c")?, case.upload_rows(device, "k_pe")?);
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    quant::store_kv(device, &c, &k_pe, &slots, &cache, case.scalar("page_size")?)?;
    Ok(outputs([("cache", HostTensor::download(device, &cache)?)]))
}

fn reference_store_kv(case: &Case) -> Result<Outputs, CaseError> {
    let (c, k_pe): (Matrix, Matrix) = (case.array("c")?, case.array("k_pe")?);
    let record = reference::quant::KvRecord { kv_lora_rank: c.ncols(), rope_dim: k_pe.ncols() };
    let pages = case.tensor("cache")?.shape.first().copied().unwrap_or(0);
    expect_shape(case, "cache", &[pages, count(case, "page_size")? * record.bytes()])?;
    expect_shape(case, "k_pe", &[c.nrows(), k_pe.ncols()])?;
    expect_shape(case, "slots", &[c.nrows()])?;
    let records = record.quantise_kv(c.view(), k_pe.view());
    let mut cache = case.tensor("cache")?.clone();
    let bytes = record.bytes();
    for (row, slot) in records.axis_iter(Axis(0)).zip(case.vec_i32("slots")?) {
        let at = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(bytes);
        if at < cache.bytes.len() {
            for (i, byte) in row.iter().enumerate() {
                cache.bytes[at + i] = *byte;
            }
        }
    }
    Ok(outputs([("cache", cache)]))
}

fn run_store_index_keys(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let k = case.upload(device, "k")?;
    let keys = quant::act_quant(device, &k, quant::ScaleFmt::Ue8m0)?;
    let slots = case.upload(device, "slots")?;
    let cache = case.upload(device, "cache")?;
    quant::store_index_keys(device, &keys, &slots, &cache, case.scalar("page_size")?)?;
    Ok(outputs([("cache", HostTensor::download(device, &cache)?)]))
}

fn reference_store_index_keys(case: &Case) -> Result<Outputs, CaseError> {
    let k: Matrix = case.array("k")?;
    let fmt = reference::quant::ScaleFmt::Ue8m0;
    let q = reference::quant::act_quant(k.view(), quant::BLOCK, fmt)?;
    let (dim, page_size) = (k.ncols(), count(case, "page_size")?);
    let pages = case.tensor("cache")?.shape.first().copied().unwrap_or(0);
    expect_shape(case, "cache", &[pages, page_size * (dim + 4)])?;
    expect_shape(case, "slots", &[k.nrows()])?;
    expect_shape(case, "k", &[k.nrows(), dim.clamp(1, quant::BLOCK)])?;
    let mut cache = case.tensor("cache")?.clone();
    let n_slots = cache.shape[0] * page_size;
    for (row, slot) in case.vec_i32("slots")?.into_iter().enumerate() {
        let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < n_slots) else {
            continue;
        };
        let page = slot / page_size * page_size * (dim + 4);
        for i in 0..dim {
            cache.bytes[page + slot % page_size * dim + i] = q.codes[(row, i)];
        }
        let at = page + page_size * dim + slot % page_size * 4;
        cache.bytes[at..at + 4].copy_from_slice(&q.scale[(row, 0)].to_le_bytes());
    }
    Ok(outputs([("cache", cache)]))
}

fn run_hadamard(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let out = hadamard::hadamard(device, &case.upload_rows(device, "x")?)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_hadamard(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let out = HostTensor::of(&reference::hadamard::hadamard(x.view())?);
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

fn run_rope(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use rope::Pairing::{HalfSplit, Interleaved};
    let choices = [("interleaved", Interleaved), ("half_split", HalfSplit)];
    let pairing = choice(case, "pairing", &choices)?;
    let x = case.upload_rows(device, "x")?;
    let (cos, sin) = (case.upload(device, "cos")?, case.upload(device, "sin")?);
    let positions = case.upload(device, "positions")?;
    let out = device.empty(x.shape(), x.dtype());
    rope::rope(device, &x, &cos, &sin, &positions, &out, pairing)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_rope(case: &Case) -> Result<Outputs, CaseError> {
    use reference::rope::Pairing::{HalfSplit, Interleaved};
    let choices = [("interleaved", Interleaved), ("half_split", HalfSplit)];
    let pairing = choice(case, "pairing", &choices)?;
    let x: Cuboid = case.array("x")?;
    let (cos, sin): (Matrix, Matrix) = (case.array("cos")?, case.array("sin")?);
    expect_shape(case, "cos", &[cos.nrows().max(1), x.dim().2 / 2])?;
    expect_shape(case, "sin", cos.shape())?;
    expect_shape(case, "positions", &[x.dim().0])?;
    let last = cos.nrows().saturating_sub(1) as i32;
    let lines: Vec<usize> =
        case.vec_i32("positions")?.iter().map(|p| (*p).clamp(0, last) as usize).collect();
    let (cos, sin) = (cos.select(Axis(0), &lines), sin.select(Axis(0), &lines));
    let out = HostTensor::of(&reference::rope::rope(x.view(), cos.view(), sin.view(), pairing));
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

fn run_rms_norm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let out = norm::rms_norm(device, &x, &weight, case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_rms_norm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let out = reference::norm::rms_norm(x.view(), weight.view(), case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

fn run_layer_norm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let bias = case.upload(device, "bias")?;
    let out = norm::layer_norm(device, &x, &weight, &bias, case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_layer_norm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let bias: Vector = case.array("bias")?;
    let eps = case.scalar("eps")?;
    let out = reference::norm::layer_norm(x.view(), weight.view(), bias.view(), eps)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

fn run_gemm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, w) = (case.upload_rows(device, "x")?, case.upload_rows(device, "w")?);
    let out = gemm::gemm(device, &x, &w, DType::F32)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_gemm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, w): (Cuboid, Cuboid) = (case.array("x")?, case.array("w")?);
    expect_shape(case, "w", &[x.dim().0, w.dim().1, x.dim().2.max(1)])?;
    let mut out = Cuboid::zeros((x.dim().0, x.dim().1, w.dim().1));
    for b in 0..x.dim().0 {
        let product = reference::linear::linear(x.index_axis(Axis(0), b), w.index_axis(Axis(0), b));
        out.index_axis_mut(Axis(0), b).assign(&product);
    }
    Ok(outputs([("out", HostTensor::of(&out))]))
}

fn run_fold_scales(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale) = (case.upload(device, "weights")?, case.upload(device, "q_scale")?);
    let out = indexer::fold_scales(device, &weights, &q_scale, case.scalar("factor")?)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_fold_scales(case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale): (Matrix, Matrix) = (case.array("weights")?, case.array("q_scale")?);
    expect_shape(case, "q_scale", weights.shape())?;
    let factor: f32 = case.scalar("factor")?;
    Ok(outputs([("out", HostTensor::of(&(weights * q_scale * factor)))]))
}

fn score_fn(case: &Case) -> Result<indexer::ScoreFn, CaseError> {
    use indexer::ScoreFn::{ReluWeighted, SigmoidWeighted};
    choice(case, "score_fn", &[("relu", ReluWeighted), ("sigmoid", SigmoidWeighted)])
}

fn reference_score_fn(case: &Case) -> Result<reference::indexer::ScoreFn, CaseError> {
    use reference::indexer::ScoreFn::{ReluWeighted, SigmoidWeighted};
    choice(case, "score_fn", &[("relu", ReluWeighted), ("sigmoid", SigmoidWeighted)])
}

fn run_indexer_logits(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let (k_scale, weights) =
        (case.upload(device, "k_scale")?, case.upload_rows(device, "weights")?);
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let score = score_fn(case)?;
    let logits = indexer::indexer_logits(device, &q, &k, &k_scale, &weights, &ks, &ke, score)?;
    Ok(outputs([("logits", HostTensor::download(device, &logits)?)]))
}

fn reference_indexer_logits(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Matrix) = (case.array("q")?, case.array("k")?);
    let (k_scale, weights): (Vector, Matrix) = (case.array("k_scale")?, case.array("weights")?);
    let logits = reference::indexer::indexer_logits(
        q.view(),
        k.view(),
        k_scale.view(),
        weights.view(),
        &case.vec_i32("ks")?,
        &case.vec_i32("ke")?,
        reference_score_fn(case)?,
    )?;
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

fn run_indexer_logits_paged(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let logits = indexer::indexer_logits_paged(
        device,
        &case.upload(device, "q")?,
        &case.upload_rows(device, "cache")?,
        case.scalar("page_size")?,
        &case.upload_rows(device, "weights")?,
        &case.upload(device, "context_lens")?,
        &case.upload(device, "block_table")?,
        case.scalar("max_context")?,
        score_fn(case)?,
    )?;
    Ok(outputs([("logits", HostTensor::download(device, &logits)?)]))
}

fn reference_indexer_logits_paged(case: &Case) -> Result<Outputs, CaseError> {
    let q: Array4<f32> = case.array("q")?;
    let weights: Matrix = case.array("weights")?;
    let logits = reference::indexer::indexer_logits_paged(
        q.view(),
        case.array_u8("cache")?.view(),
        count(case, "page_size")?,
        weights.view(),
        &case.vec_i32("context_lens")?,
        case.array_i32("block_table")?.view(),
        count(case, "max_context")?,
        reference_score_fn(case)?,
    )?;
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

fn run_top_k(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use top_k::Policy;
    let policy = match case.scalars.get("policy").map(String::as_str) {
        Some("fraction") => {
            Policy::Fraction { per_mille: case.scalar("per_mille")?, min: case.scalar("min")? }
        }
        Some("window") => {
            Policy::Window { window: case.scalar("window")?, sinks: case.scalar("sinks")? }
        }
        _ => choice(case, "policy", &[("fixed", Policy::Fixed)])?,
    };
    let logits = case.upload_rows(device, "logits")?;
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let indices = top_k::top_k(device, &logits, &ks, &ke, case.scalar("topk")?, policy)?;
    Ok(outputs([("indices", HostTensor::download(device, &indices)?)]))
}

fn reference_top_k(case: &Case) -> Result<Outputs, CaseError> {
    use reference::top_k::Policy;
    let policy = match case.scalars.get("policy").map(String::as_str) {
        Some("fraction") => {
            Policy::Fraction { per_mille: case.scalar("per_mille")?, min: case.scalar("min")? }
        }
        Some("window") => {
            Policy::Window { window: case.scalar("window")?, sinks: case.scalar("sinks")? }
        }
        _ => Policy::Fixed,
    };
    let logits: Matrix = case.array("logits")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let topk = count(case, "topk")?;
    let indices = reference::top_k::top_k(logits.view(), &ks, &ke, topk, policy);
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("indices", HostTensor::i32(indices.shape(), &values))]))
}

fn run_shift_indices(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (indices, first) = (case.upload(device, "indices")?, case.upload(device, "first")?);
    let out = top_k::shift_indices(device, &indices, &first)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_shift_indices(case: &Case) -> Result<Outputs, CaseError> {
    let (mut indices, first) = (case.array_i32("indices")?, case.vec_i32("first")?);
    for (mut row, first) in indices.axis_iter_mut(Axis(0)).zip(first) {
        row.iter_mut().filter(|index| **index >= 0).for_each(|index| *index += first);
    }
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("out", HostTensor::i32(indices.shape(), &values))]))
}

fn run_place_rows(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, slots) = (case.upload_rows(device, "x")?, case.upload(device, "slots")?);
    let out = case.upload(device, "out")?;
    copy::place_rows(device, &x, &slots, &out)?;
    Ok(outputs([("out", HostTensor::download(device, &out)?)]))
}

fn reference_place_rows(case: &Case) -> Result<Outputs, CaseError> {
    let (x, mut out): (Cuboid, Cuboid) = (case.array("x")?, case.array("out")?);
    let rows = out.dim().0;
    for (t, slot) in case.vec_i32("slots")?.into_iter().enumerate().take(x.dim().0) {
        if let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < rows) {
            // One head is repeated for all; anything else must fit.
            let (mut to, from) = (out.index_axis_mut(Axis(0), slot), x.index_axis(Axis(0), t));
            let from = from.broadcast(to.dim()).ok_or_else(|| CaseError::Tensor {
                name: "x".to_string(),
                got: format!("{:?}", x.shape()),
                expected: format!("heads and width of out, or one head: {:?}", to.shape()),
            })?;
            to.assign(&from);
        }
    }
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("out")?.dtype))]))
}

/// The optional arguments of attention.
fn attention_args(device: &Device, case: &Case, d_v: usize) -> Result<AttentionArgs, CaseError> {
    let optional =
        |name: &str| case.tensors.contains_key(name).then(|| case.upload(device, name)).transpose();
    let splits = match case.scalars.get("splits") {
        Some(_) => Some(case.scalar("splits")?),
        None => None,
    };
    Ok(AttentionArgs {
        softmax_scale: case.scalar("softmax_scale")?,
        d_v,
        topk_length: optional("topk_length")?,
        attn_sink: optional("attn_sink")?,
        splits,
    })
}

fn download_attention(device: &Device, a: &Attention) -> Result<Outputs, CaseError> {
    Ok(outputs([
        ("out", HostTensor::download(device, &a.out)?),
        ("lse", HostTensor::download(device, &a.lse)?),
        ("max_logits", HostTensor::download(device, &a.max_logits)?),
    ]))
}

fn reference_attention(
    case: &Case,
    a: reference::sparse_attention::Attention,
) -> Result<Outputs, CaseError> {
    Ok(outputs([
        ("out", HostTensor::of(&a.out).cast(case.tensor("q")?.dtype)),
        ("lse", HostTensor::of(&a.lse)),
        ("max_logits", HostTensor::of(&a.max_logits)),
    ]))
}

fn run_sparse_mla(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv) = (case.upload_rows(device, "q")?, case.upload_rows(device, "kv")?);
    let indices = case.upload_rows(device, "indices")?;
    let args = attention_args(device, case, case.scalar("d_v")?)?;
    let a = sparse_attention::sparse_mla(device, &q, &kv, &indices, &args)?;
    download_attention(device, &a)
}

/// The optional lengths and sinks, for the reference.
fn lengths_and_sinks(case: &Case) -> (Option<Vec<i32>>, Option<Vec<f32>>) {
    (
        case.tensors.get("topk_length").map(HostTensor::to_i32),
        case.tensors.get("attn_sink").map(HostTensor::to_f32),
    )
}

fn reference_sparse_mla(case: &Case) -> Result<Outputs, CaseError> {
    let q: Cuboid = case.array("q")?;
    let kv = case.tensor("kv")?;
    let d_qk = kv.shape.last().copied().unwrap_or(0);
    let rows = kv.shape.iter().product::<usize>() / d_qk.max(1);
    let flat = HostTensor { shape: vec![rows, d_qk], ..kv.clone() };
    let kv: Matrix = Case::new("").with("kv", flat).array("kv")?;
    let (length, sink) = lengths_and_sinks(case);
    let a = reference::sparse_attention::sparse_mla(
        q.view(),
        kv.view(),
        case.array_i32("indices")?.view(),
        case.scalar("softmax_scale")?,
        case.scalar("d_v")?,
        length.as_deref(),
        sink.as_deref(),
    )?;
    reference_attention(case, a)
}

fn run_sparse_mla_paged(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let q = case.upload_rows(device, "q")?;
    let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
    let d_qk = q.shape().last().copied().unwrap_or(0);
    let record = quant::KvRecord { kv_lora_rank, rope_dim: d_qk.saturating_sub(kv_lora_rank) };
    let a = sparse_attention::sparse_mla_paged(
        device,
        &q,
        &case.upload_rows(device, "cache")?,
        case.scalar("page_size")?,
        record,
        &case.upload_rows(device, "indices")?,
        &attention_args(device, case, kv_lora_rank)?,
    )?;
    download_attention(device, &a)
}

fn reference_sparse_mla_paged(case: &Case) -> Result<Outputs, CaseError> {
    let q: Cuboid = case.array("q")?;
    let kv_lora_rank: usize = case.scalar("kv_lora_rank")?;
    let rope_dim = q.dim().2.saturating_sub(kv_lora_rank);
    let record = reference::quant::KvRecord { kv_lora_rank, rope_dim };
    let cache = case.tensor("cache")?;
    let slots = cache.bytes.len() / record.bytes().max(1);
    let flat = HostTensor::u8(&[slots, record.bytes()], cache.bytes.clone());
    let records = Case::new("").with("records", flat).array_u8("records")?;
    let (length, sink) = lengths_and_sinks(case);
    let a = reference::sparse_attention::sparse_mla_paged(
        q.view(),
        records.view(),
        record,
        case.array_i32("indices")?.view(),
        case.scalar("softmax_scale")?,
        kv_lora_rank,
        length.as_deref(),
        sink.as_deref(),
    )?;
    reference_attention(case, a)
}

fn run_dense_mha(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let v = case.upload_rows(device, "v")?;
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = dense_attention::dense_mha(device, &q, &k, &v, &ks, &ke, scale)?;
    download_attention(device, &a)
}

fn reference_dense_mha(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Cuboid) = (case.array("q")?, case.array("k")?);
    let v: Cuboid = case.array("v")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = reference::dense_attention::dense_mha(q.view(), k.view(), v.view(), &ks, &ke, scale)?;
    reference_attention(case, a)
}

fn run_dense_mla(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv) = (case.upload_rows(device, "q")?, case.upload_rows(device, "kv")?);
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let args = attention_args(device, case, case.scalar("d_v")?)?;
    let a = dense_attention::dense_mla(device, &q, &kv, &ks, &ke, &args)?;
    download_attention(device, &a)
}

fn reference_dense_mla(case: &Case) -> Result<Outputs, CaseError> {
    let (q, kv): (Cuboid, Matrix) = (case.array("q")?, case.array("kv")?);
    let a = reference::dense_attention::dense_mla(
        q.view(),
        kv.view(),
        &case.vec_i32("ks")?,
        &case.vec_i32("ke")?,
        case.scalar("softmax_scale")?,
        case.scalar("d_v")?,
    )?;
    reference_attention(case, a)
}
