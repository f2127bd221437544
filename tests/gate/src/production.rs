//! The cases whose code is judged without a device: DeepSeek-V3.2's dimensions, few tokens, zeros.
//!
//! A kernel chooses its code by element types and widths, not by lengths, so few tokens are enough.

use crate::case::{Case, CaseError, HostTensor};
use crate::kernels::{find_moe, linear};
use DType::{Bf16, E4m3, F16, F32};
use dsa_kernels::DType;
use dsa_reference::cache_write::KvRecord;

const HIDDEN: usize = 7168;
const HEADS: usize = 128;
const KV_LORA_RANK: usize = 512;
const ROPE_DIM: usize = 64;
const D_QK: usize = KV_LORA_RANK + ROPE_DIM;
/// Widths of a head in the expanded form: keys with rope, values.
const EXPANDED: (usize, usize) = (192, 128);
const INDEX_HEADS: usize = 64;
const INDEX_DIM: usize = 128;
const TOPK: usize = 2048;
const PAGE: usize = 64;

/// Zeros.
fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

fn ints(shape: &[usize]) -> HostTensor {
    zeros(DType::I32, shape)
}

fn pages(n: usize, record: usize) -> HostTensor {
    zeros(DType::U8, &[n, PAGE * record])
}

/// One case for each choice of code that DeepSeek-V3.2 makes of `kernel`.
///
/// # Errors
/// [`CaseError::UnknownKernel`] if there is no kernel of this name.
pub fn production(kernel: &str) -> Result<Vec<Case>, CaseError> {
    let case = || Case::new(kernel);
    let n = 4;
    Ok(match kernel {
        "act_quant" => vec![case().with("x", zeros(Bf16, &[n, HIDDEN])).set("fmt", "ue8m0")],
        "round_trip" => {
            vec![case().with("x", zeros(Bf16, &[n, KV_LORA_RANK])).set("fmt", "ue8m0")]
        }
        "store_kv" => {
            let record = KvRecord { kv_lora_rank: KV_LORA_RANK, rope_dim: ROPE_DIM };
            vec![
                case()
                    .with("c", zeros(Bf16, &[n, KV_LORA_RANK]))
                    .with("k_pe", zeros(Bf16, &[n, ROPE_DIM]))
                    .with("slots", ints(&[n]))
                    .with("cache", pages(1, record.bytes()))
                    .set("page_size", PAGE),
            ]
        }
        "store_index_keys" => vec![
            case()
                .with("k", zeros(Bf16, &[n, INDEX_DIM]))
                .with("slots", ints(&[n]))
                .with("cache", pages(1, INDEX_DIM + 4))
                .set("page_size", PAGE),
        ],
        "hadamard" => vec![case().with("x", zeros(Bf16, &[n * INDEX_HEADS, INDEX_DIM]))],
        "rope" => [(HEADS, "interleaved"), (INDEX_HEADS, "half_split")]
            .map(|(heads, pairing)| {
                case()
                    .with("x", zeros(Bf16, &[n, heads, ROPE_DIM]))
                    .with("cos", zeros(F32, &[n, ROPE_DIM / 2]))
                    .with("sin", zeros(F32, &[n, ROPE_DIM / 2]))
                    .with("positions", ints(&[n]))
                    .set("pairing", pairing)
            })
            .into(),
        "rms_norm" => vec![
            case()
                .with("x", zeros(Bf16, &[n, HIDDEN]))
                .with("weight", zeros(F32, &[HIDDEN]))
                .set("eps", 1e-6),
        ],
        "layer_norm" => vec![
            case()
                .with("x", zeros(Bf16, &[n, INDEX_DIM]))
                .with("weight", zeros(F32, &[INDEX_DIM]))
                .with("bias", zeros(F32, &[INDEX_DIM]))
                .set("eps", 1e-6),
        ],
        // A projection in prefill and in decode, and the absorbed product of every head.
        "gemm" => [(1, 128, HIDDEN, 256), (1, 1, HIDDEN, 256), (8, n, 128, KV_LORA_RANK)]
            .map(|(b, m, k, n)| {
                case().with("x", zeros(Bf16, &[b, m, k])).with("w", zeros(Bf16, &[b, n, k]))
            })
            .into(),
        "fold_scales" => vec![
            case()
                .with("weights", zeros(F32, &[n, INDEX_HEADS]))
                .with("q_scale", zeros(F32, &[n, INDEX_HEADS]))
                .set("factor", 0.25),
        ],
        "indexer_logits" => [E4m3, Bf16, F16]
            .map(|dtype| {
                case()
                    .with("q", zeros(dtype, &[16, INDEX_HEADS, INDEX_DIM]))
                    .with("k", zeros(dtype, &[256, INDEX_DIM]))
                    .with("k_scale", zeros(F32, &[256]))
                    .with("weights", zeros(F32, &[16, INDEX_HEADS]))
                    .with("ks", ints(&[16]))
                    .with("ke", ints(&[16]))
            })
            .into(),
        // One token a request, and two: a drafted one is checked along.
        "indexer_logits_paged" => [1, 2]
            .map(|next_n| {
                case()
                    .with("q", zeros(E4m3, &[2, next_n, INDEX_HEADS, INDEX_DIM]))
                    .with("cache", pages(4, INDEX_DIM + 4))
                    .with("weights", zeros(F32, &[2 * next_n, INDEX_HEADS]))
                    .with("context_lens", ints(&[2]))
                    .with("block_table", ints(&[2, 2]))
                    .set("page_size", PAGE)
                    .set("max_context", 2 * PAGE)
            })
            .into(),
        // Many short rows, and one long one.
        "top_k" => [(n, 8192), (1, 131_072)]
            .map(|(rows, length)| {
                case()
                    .with("logits", zeros(F32, &[rows, length]))
                    .with("ks", ints(&[rows]))
                    .with("ke", ints(&[rows]))
                    .set("topk", TOPK)
            })
            .into(),
        "shift_indices" => {
            vec![case().with("indices", ints(&[n, TOPK])).with("first", ints(&[n]))]
        }
        "place_rows" => [(HEADS, EXPANDED.0), (1, D_QK)]
            .map(|(heads, width)| {
                case()
                    .with("x", zeros(Bf16, &[n, heads, width]))
                    .with("slots", ints(&[n]))
                    .with("out", zeros(Bf16, &[2 * n, heads, width]))
            })
            .into(),
        "sparse_mla" => attention(kernel, |case, s| {
            case.with("kv", zeros(Bf16, &[TOPK, D_QK]))
                .with("indices", ints(&[s, TOPK]))
                .set("d_v", KV_LORA_RANK)
        }),
        "sparse_mla_paged" => {
            let record = KvRecord { kv_lora_rank: KV_LORA_RANK, rope_dim: ROPE_DIM };
            attention(kernel, |case, s| {
                case.with("cache", pages(TOPK / PAGE, record.bytes()))
                    .with("indices", ints(&[s, TOPK]))
                    .set("kv_lora_rank", KV_LORA_RANK)
                    .set("page_size", PAGE)
            })
        }
        "dense_mla" => attention(kernel, |case, s| {
            case.with("kv", zeros(Bf16, &[256, D_QK]))
                .with("ks", ints(&[s]))
                .with("ke", ints(&[s]))
                .set("d_v", KV_LORA_RANK)
        }),
        "dense_mha" => {
            let (d_qk, d_v) = EXPANDED;
            vec![
                case()
                    .with("q", zeros(Bf16, &[64, HEADS, d_qk]))
                    .with("k", zeros(Bf16, &[64, HEADS, d_qk]))
                    .with("v", zeros(Bf16, &[64, HEADS, d_v]))
                    .with("ks", ints(&[64]))
                    .with("ke", ints(&[64]))
                    .set("softmax_scale", SCALE),
            ]
        }
        other => match find_moe(other) {
            Some(moe) => (moe.production)(),
            None => {
                let unknown = || CaseError::UnknownKernel(other.to_string());
                return linear::production(other).ok_or_else(unknown);
            }
        },
    })
}

/// V3.2's factor of the scores at long context.
const SCALE: f32 = 0.135_233_78;

/// The absorbed form: prefill, where each token is one program's, and decode, where programs share one
/// token's keys.
fn attention(kernel: &str, keys: impl Fn(Case, usize) -> Case) -> Vec<Case> {
    let case = |s: usize, splits: usize| {
        let case = Case::new(kernel).with("q", zeros(Bf16, &[s, HEADS, D_QK]));
        keys(case, s).set("softmax_scale", SCALE).set("splits", splits)
    };
    vec![case(2, 1), case(1, 8)]
}
