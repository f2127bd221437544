//! The tensors between the stages of every layer, by the names under which files hold them.
//!
//! | name | shape | what |
//! |---|---|---|
//! | `mla.x` | `[n, hidden]` | the attention's input, after `input_layernorm` |
//! | `mla.qr` | `[n, q_lora_rank]` | the compressed query, after its norm |
//! | `mla.q_nope`, `mla.q_pe` | `[n, h, nope]`, `[n, h, rope]` | the queries' two parts, q_pe after RoPE |
//! | `mla.c_before`, `mla.c` | `[n, kv_lora_rank]` | the latent after its norm, and as it is cached, through fp8 |
//! | `mla.k_pe` | `[n, 1, rope]` | the shared key's part with position |
//! | `index.q`, `index.k` | `[n, H, D]`, `[n, D]` | the indexer's, after RoPE and Hadamard |
//! | `index.q_codes`, `index.q_scale` | `[n, H, D]`, `[n, H, 1]` | the same in fp8 |
//! | `index.k_codes`, `index.k_scale` | `[n, D]`, `[n, 1]` | the same in fp8 |
//! | `index.weights` | `[n, H, 1]` f32 | the heads' weights, all factors in |
//! | `index.scores` | `[n, columns]` f32 | −inf for a key that a token does not see |
//! | `index.topk` | `[n, index_topk]` i32 | the keys attended to, −1 is none |
//! | `mla.o`, `mla.out` | `[n, h, v]`, `[n, hidden]` | the attention's result before and after `o_proj` |
//! | `block.residual`, `block.ffn_in` | `[n, hidden]` | the sum after attention, and its norm |
//! | `gate.x` | `[n, hidden]` | the gate's input |
//! | `gate.weights`, `gate.indices` | `[n, k]` f32, i32 | its choice |
//! | `moe.routed`, `moe.shared` | `[n, hidden]`, routed f32 | what the experts add up to, and the shared ones |
//! | `block.ffn_out` | `[n, hidden]` | what the layer adds to the residual |
//!
//! Where no type is said it is that of the activations, codes are e4m3, scales f32. Those of layer 3 are `layer3.mla.x`
//! and so on; of tokens that are run by themselves, as in decoding, `decode.layer3.mla.x`. A dense layer has no gate
//! and no experts, a layer that shares its keys of the indexer only `topk`, dense attention nothing of it. Of a single
//! decoded token, gate and experts have no axis of tokens: the demo hands them rows.
//!
//! Source: the variables of the DeepSeek-V3.2-Exp inference demo (November 2025), as `golden/demo` stores them.

use crate::config::{Config, Indexer};
use crate::error::{Error, Result};
use crate::run::{Mode, Shown};
use crate::weights::{Checkpoint, Dtype};
use dsa_kernels::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The intermediates of a pass over one text that are kept, and those that are given.
pub struct Intermediates {
    config: Config,
    dtype: DType,
    mode: Mode,
    prefix: &'static str,
    /// Tokens before the first that is run by itself.
    prompt: usize,
    tokens: usize,
    given: Option<Checkpoint>,
    kept: BTreeMap<String, Stored>,
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row by row.
    pub bytes: Vec<u8>,
}

/// What a tensor has to be.
struct Form {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of one token.
    row: usize,
}

impl Intermediates {
    /// Those of `tokens` tokens, of which the ones from `prompt` on are run by themselves.
    ///
    /// - `dtype`: the activations', bf16 or f32;
    /// - `prefix`: stands before every name;
    /// - `given`: a file of intermediates; each stage's result is kept, and the file's goes on in its place.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`] for what is not as it should be in `given`;
    /// [`Error::Argument`] for a prompt longer than the text.
    pub fn new(
        config: &Config,
        dtype: DType,
        mode: Mode,
        prefix: &'static str,
        (prompt, tokens): (usize, usize),
        given: Option<Checkpoint>,
    ) -> Result<Self> {
        let right = prompt <= tokens;
        Error::check(right, "prompt", prompt, format!("at most the {tokens} tokens"))?;
        let kept = BTreeMap::new();
        let config = config.clone();
        let new = Self { config, dtype, mode, prefix, prompt, tokens, given, kept };
        for layer in 0..new.config.num_hidden_layers {
            for (name, ..) in new.rows(layer, 0) {
                for decode in [false, true] {
                    new.check(new.form(layer, name, decode))?;
                }
            }
        }
        Ok(new)
    }

    /// The type of a stage's elements, if a file holds it.
    pub fn dtype(&self, layer: usize, name: &str) -> Option<DType> {
        let rows = self.rows(layer, 0);
        rows.into_iter().find(|(other, ..)| *other == name).map(|(_, dtype, _)| dtype)
    }

    /// What was kept, by name. Nothing is, afterwards.
    pub fn take(&mut self) -> BTreeMap<String, Stored> {
        std::mem::take(&mut self.kept)
    }

    /// Who watches a step of the tokens `start .. start + n`, for [`Batch::watched`](crate::run::Batch::watched): keeps
    /// all in `into`, and gives what the file holds.
    pub fn watch(
        into: &Arc<Mutex<Self>>,
        (start, n): (usize, usize),
    ) -> impl FnMut(Shown) -> Result<Option<Tensor>> + Send + 'static {
        let into = into.clone();
        move |Shown { layer, name, tensor }| {
            let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
            let given = into.stage(layer, name, (start, n), &tensor.download()?)?;
            let (shape, dtype) = (tensor.shape(), tensor.dtype());
            let upload = |bytes: Vec<u8>| tensor.device().upload(&bytes, shape, dtype);
            Ok(given.map(upload).transpose()?)
        }
    }

    /// Keeps what stage `name` of layer `layer` made of the tokens `start .. start + n`, and returns what the file holds
    /// of them, if one is given. What no file holds is passed by.
    ///
    /// # Errors
    /// [`Error::Argument`] if these are not the bytes of so many tokens.
    pub fn stage(
        &mut self,
        layer: usize,
        name: &str,
        (start, n): (usize, usize),
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let decode = start >= self.prompt;
        let Some(form) = self.form(layer, name, decode) else { return Ok(None) };
        let (first, end) = if decode { (self.prompt, self.tokens) } else { (0, self.prompt) };
        // A row of scores may end before the file's: what is behind it was not there yet.
        let row = bytes.len().checked_div(n).unwrap_or(0);
        let right = row > 0 && start + n <= end && row * n == bytes.len() && row <= form.row;
        let expected = format!("{n} times at most {}, within {first} to {end}", form.row);
        let got = format!("{} bytes of {n} tokens from {start} on", bytes.len());
        Error::check(right, "a stage", got, expected)?;
        let places = (start - first..start - first + n).map(|t| t * form.row);
        let given = self.given.as_ref().map(|file| file.tensor(&form.name)).transpose()?;
        let given = given.map(|tensor| {
            let of_row = |at: usize| tensor.bytes[at..at + row].to_vec();
            let rows: Vec<_> = places.clone().map(of_row).collect();
            if name == "index.topk" { seen(rows, start) } else { rows.concat() }
        });
        let empty = || Stored { dtype: form.dtype, shape: form.shape, bytes: vec![] };
        let kept = self.kept.entry(form.name).or_insert_with(empty);
        if kept.bytes.is_empty() {
            let rows = form.row * (end - first);
            kept.bytes = match name {
                "index.scores" => f32::NEG_INFINITY.to_le_bytes().repeat(rows / 4),
                _ => vec![0; rows],
            };
        }
        for (bytes, at) in bytes.chunks(row).zip(places) {
            kept.bytes[at..at + row].copy_from_slice(bytes);
        }
        Ok(given)
    }

    /// What the tensor of a stage has to be, if there is one in this half of the pass.
    fn form(&self, layer: usize, name: &str, decode: bool) -> Option<Form> {
        let n = if decode { self.tokens - self.prompt } else { self.prompt };
        let columns = if decode { self.tokens } else { self.prompt };
        let rows = self.rows(layer, columns);
        let (_, dtype, row) = rows.into_iter().find(|(other, ..)| *other == name && n > 0)?;
        let size = row.iter().product::<usize>() * dtype.size();
        let alone = decode && n == 1 && (name.starts_with("gate.") || name.starts_with("moe."));
        let shape = if alone { row } else { [vec![n], row].concat() };
        let of_half = if decode { "decode." } else { "" };
        let name = format!("{}{of_half}layer{layer}.{name}", self.prefix);
        let dtype = match dtype {
            DType::Bf16 => Dtype::BF16,
            DType::E4m3 => Dtype::F8_E4M3,
            DType::I32 => Dtype::I32,
            _ => Dtype::F32,
        };
        Some(Form { name, dtype, shape, row: size })
    }

    /// The stages of a layer: name, type, and shape without the axis of tokens.
    fn rows(&self, layer: usize, columns: usize) -> Vec<(&'static str, DType, Vec<usize>)> {
        let (c, dtype) = (&self.config, self.dtype);
        let (hidden, heads, rank) = (c.hidden_size, c.num_attention_heads, c.kv_lora_rank);
        let (index_heads, dim, k) = (c.index_n_heads, c.index_head_dim, c.num_experts_per_tok);
        let mut all = vec![
            ("mla.x", dtype, vec![hidden]),
            ("mla.qr", dtype, vec![c.q_lora_rank]),
            ("mla.q_nope", dtype, vec![heads, c.qk_nope_head_dim]),
            ("mla.q_pe", dtype, vec![heads, c.qk_rope_head_dim]),
            ("mla.c_before", dtype, vec![rank]),
            ("mla.c", dtype, vec![rank]),
            ("mla.k_pe", dtype, vec![1, c.qk_rope_head_dim]),
            ("mla.o", dtype, vec![heads, c.v_head_dim]),
            ("mla.out", dtype, vec![hidden]),
            ("block.residual", dtype, vec![hidden]),
            ("block.ffn_in", dtype, vec![hidden]),
            ("block.ffn_out", dtype, vec![hidden]),
        ];
        let sparse = self.mode == Mode::Sparse;
        if sparse {
            all.push(("index.topk", DType::I32, vec![c.index_topk]));
        }
        if sparse && c.indexer_of(layer) == Indexer::Full {
            all.extend([
                ("index.q", dtype, vec![index_heads, dim]),
                ("index.k", dtype, vec![dim]),
                ("index.weights", DType::F32, vec![index_heads, 1]),
                ("index.scores", DType::F32, vec![columns]),
            ]);
            if c.attention_options.index_fp8 {
                all.extend([
                    ("index.q_codes", DType::E4m3, vec![index_heads, dim]),
                    ("index.q_scale", DType::F32, vec![index_heads, 1]),
                    ("index.k_codes", DType::E4m3, vec![dim]),
                    ("index.k_scale", DType::F32, vec![1]),
                ]);
            }
        }
        if c.is_moe_layer(layer) {
            all.extend([
                ("gate.x", dtype, vec![hidden]),
                ("gate.weights", DType::F32, vec![k]),
                ("gate.indices", DType::I32, vec![k]),
                ("moe.routed", DType::F32, vec![hidden]),
                ("moe.shared", dtype, vec![hidden]),
            ]);
        }
        all
    }

    /// Refuses what the file does not hold as it should.
    fn check(&self, form: Option<Form>) -> Result<()> {
        let (Some(file), Some(Form { name, dtype, shape, .. })) = (&self.given, form) else {
            return Ok(());
        };
        let (found, of_file) = file.form(&name)?;
        if found != dtype {
            let expected = match dtype {
                Dtype::BF16 => "BF16",
                Dtype::I32 => "I32",
                Dtype::F8_E4M3 => "F8_E4M3",
                _ => "F32",
            };
            return Err(Error::Dtype { name, found, expected });
        }
        if of_file != shape {
            return Err(Error::Shape { name, found: of_file.to_vec(), expected: shape });
        }
        Ok(())
    }
}

/// Rows of keys of the tokens from `start` on, without those behind each token: other implementations list them where
/// there are not enough before it, and hide them by a mask.
fn seen(rows: Vec<Vec<u8>>, start: usize) -> Vec<u8> {
    let of_row = |(t, row): (usize, Vec<u8>)| -> Vec<u8> {
        let keys = row.as_chunks::<4>().0.iter().map(|key| i32::from_le_bytes(*key));
        let seen = keys.map(|key| if (key as i64) <= (start + t) as i64 { key } else { -1 });
        seen.flat_map(i32::to_le_bytes).collect()
    };
    rows.into_iter().enumerate().flat_map(of_row).collect()
}
