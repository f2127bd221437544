//! DeepSeek Sparse Attention (DSA, DeepSeek-V3.2-Exp) written out as plain loops on the CPU.
//!
//! This crate says what the kernels must compute. It is slow on purpose: one step of the formula
//! is one line, sums are f64, and nothing is blocked, fused or reordered.
//!
//! # DSA in one paragraph
//! A query token first asks a small attention with few dimensions, the *lightning indexer*, for
//! the score of every earlier token; it keeps the `topk` best, and only those take part in the
//! expensive attention. Read the modules in this order:
//!
//! | step | module | result |
//! |---|---|---|
//! | project, normalise | [`linear`], [`norm`] | the latent rows `qr`, `c` |
//! | say where a token stands | [`rope`] | rotated `q`, `k` |
//! | spread outliers, go to 8 bits | [`hadamard`], [`quant`] | e4m3 codes and scales |
//! | score every earlier token | [`indexer`] | logits `[s, s_kv]` |
//! | keep the best | [`top_k`] | indices `[s, topk]` |
//! | attend to those alone | [`sparse_attention`] | out `[s, h, d_v]`, lse `[s, h]` |
//! | the same with every token | [`dense_attention`], [`mask`] | what sparse is held against |
//! | all of it from the weights | [`attention_layer`] | the attention half of one layer |
//! | the same stage by stage, weights as stored | [`attention`], [`weight`], [`arithmetic`] | |
//! | the other half | [`add_norm`], [`router`], [`experts`], [`dispatch`], [`grouped_gemm`], [`combine`], [`feed_forward`], [`swiglu`] | |
//! | every layer, from ids to logits | [`embedding`], [`model`] | logits `[s, vocab_size]` |
//! | what the stages return, seen and replaced | [`watch`] | |
//!
//! # Conventions
//! * Arrays are f32 views. Who simulates a bf16 or fp8 input hands in values that are exactly
//!   representable there ([`quant::bf16_round`]). Sums are f64; each result is rounded once to f32.
//! * `s` queries, `s_kv` keys, `h` heads; `ks` and `ke` bound the keys of a query, half open, and
//!   are clamped to `[0, s_kv)`.
//! * An index that is negative or at least `s_kv` is *no key*, and so is a key whose score is −inf.
//!   What is no key is never read, so a NaN there cannot leak; a NaN in a key that is used does
//!   come out. A row without any key has out 0, lse +inf and max_logits −inf.
//! * `lse` is a natural logarithm.
//! * Equal scores: the lower index wins. NaN and −inf are never selected; −0.0 equals +0.0.
//! * Functions that can be given arrays that do not fit together return [`Result`]. The few that
//!   return a plain array have no way to refuse, and say so: what is missing there reads as NaN
//!   (or as no key). Nothing panics, short of the memory running out.
#![forbid(unsafe_code)]

pub mod add_norm;
pub mod arithmetic;
pub mod attention;
pub mod attention_layer;
pub mod cache_read;
pub mod cache_write;
pub mod combine;
pub mod dense_attention;
pub mod dequantise;
pub mod dispatch;
pub mod embedding;
mod error;
pub mod experts;
pub mod feed_forward;
pub mod grouped_gemm;
pub mod hadamard;
pub mod indexer;
pub mod linear;
pub mod mask;
mod math;
pub mod model;
pub mod norm;
pub mod quant;
pub mod random_weights;
pub mod rope;
pub mod router;
pub mod sparse_attention;
pub mod swiglu;
pub mod top_k;
pub mod watch;
pub mod weight;

pub use error::{Error, Result};
