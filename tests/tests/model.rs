//! The whole model on the device in f32, against what transformers computed of three models: DeepSeek-V3.2 (tiny),
//! GLM-5 (glm5) and GLM-5.2, whose layers 2 and 3 share the keys of layer 1 (glm).

use crate::support::device;
use dsa_kernels::DType;
use dsa_model::config::{Config, Overrides};
use dsa_model::layers::Precision;
use dsa_model::run::{Batch, Cache, Mode, Shown};
use dsa_model::weights::Checkpoint;
use dsa_model::{Error, Model};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const GOLDENS: [&str; 3] = ["tiny", "glm5", "glm"];
/// How far a value may be off.
const BOUND: f32 = 1e-4;
/// Page-sized, and more than prompt and continuation.
const ROOM: usize = 192;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// What transformers computed.
struct Expected(Checkpoint);

impl Expected {
    fn floats(&self, name: &str) -> Vec<f32> {
        let shape = self.0.form(name).unwrap().1.to_vec();
        self.0.values(name, &shape).unwrap()
    }

    fn integers(&self, name: &str) -> Vec<i32> {
        let bytes = self.0.tensor(name).unwrap().bytes;
        bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.integers(name).into_iter().map(|id| id as u32).collect()
    }
}

struct Golden {
    config: Config,
    weights: Checkpoint,
    expected: Expected,
}

impl Golden {
    fn read(name: &str) -> Self {
        let folder = folder(name);
        Self {
            config: Config::read(&folder).unwrap(),
            weights: Checkpoint::open(&folder).unwrap(),
            expected: Expected(
                Checkpoint::open_files(vec![folder.join("expected.safetensors")]).unwrap(),
            ),
        }
    }

    fn model(&self, dtype: DType) -> Model {
        self.with(&self.weights, dtype)
    }

    fn with(&self, weights: &Checkpoint, dtype: DType) -> Model {
        let precision = Precision::dequantised(dtype);
        Model::new(&device(), &self.config, weights.root(), precision).unwrap()
    }
}

/// What a pass over a text puts out, all chunks together.
#[derive(Default)]
struct Pass {
    logits: Vec<f32>,
    /// Of each layer.
    hidden: Vec<Vec<f32>>,
    keys: Vec<Vec<BTreeSet<i32>>>,
}

impl Pass {
    /// Runs `ids` behind what the request holds.
    fn run(&mut self, model: &Model, cache: &mut Cache, ids: &[u32], chunk: usize, mode: Mode) {
        let layers = model.config().num_hidden_layers;
        self.hidden.resize(layers, vec![]);
        self.keys.resize(layers, vec![]);
        for ids in ids.chunks(chunk) {
            let (to, seen) = std::sync::mpsc::channel();
            let batch = Batch::chunk(cache, 0, cache.length(0), ids.len(), mode).unwrap();
            let batch = batch.watched(move |Shown { layer, name, tensor }| {
                if ["block.residual", "block.ffn_out", "index.topk"].contains(&name) {
                    to.send((layer, name, tensor.clone())).unwrap();
                }
                Ok(None)
            });
            let logits = model.forward(ids, &batch, cache);
            let mut residual = vec![];
            for (layer, name, tensor) in seen.try_iter() {
                match name {
                    "index.topk" => {
                        let rows = tensor.download_i32().unwrap();
                        let set =
                            |row: &[i32]| row.iter().copied().filter(|key| *key >= 0).collect();
                        self.keys[layer].extend(rows.chunks(tensor.shape()[1]).map(set));
                    }
                    "block.residual" => residual = tensor.download_f32().unwrap(),
                    _ => {
                        let x = tensor.download_f32().unwrap();
                        self.hidden[layer].extend(x.iter().zip(&residual).map(|(x, r)| x + r));
                    }
                }
            }
            self.logits.extend(logits.unwrap().download_f32().unwrap());
        }
    }
}

/// The largest difference; NaN if there is one.
fn off(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences
        .fold(0.0, |most, d| if d.is_nan() || most.is_nan() { f32::NAN } else { d.max(most) })
}

fn prefill(golden: &Golden, model: &Model, chunk: usize, mode: Mode) -> (Pass, Cache) {
    let (mut pass, mut cache) = (Pass::default(), model.cache(1, ROOM).unwrap());
    pass.run(model, &mut cache, &golden.expected.ids("input_ids"), chunk, mode);
    (pass, cache)
}

/// How far the logits of a changed configuration are from the stored ones.
fn logits_off(golden: &Golden, mode: Mode) -> f32 {
    let (pass, _) = prefill(golden, &golden.model(DType::F32), 160, mode);
    off(&pass.logits, &golden.expected.floats("logits"))
}

#[track_caller]
fn check(name: &str, chunk: usize) {
    let golden = Golden::read(name);
    let model = golden.model(DType::F32);
    let (pass, mut cache) = prefill(&golden, &model, chunk, Mode::Sparse);
    let topk = golden.config.index_topk;
    for layer in 0..golden.config.num_hidden_layers {
        let stored = golden.expected.integers(&format!("layer{layer}.topk"));
        assert_eq!(pass.keys[layer].len(), 160);
        for (t, (keys, stored)) in pass.keys[layer].iter().zip(stored.chunks(topk)).enumerate() {
            let seen = |key: &i32| (0..=t as i32).contains(key);
            let stored: BTreeSet<i32> = stored.iter().copied().filter(seen).collect();
            assert_eq!(keys, &stored, "{name}, chunks of {chunk}: keys of layer {layer}, row {t}");
        }
        let off =
            off(&pass.hidden[layer], &golden.expected.floats(&format!("layer{layer}.hidden")));
        assert!(off < BOUND, "{name}, chunks of {chunk}: layer {layer} is off by {off}");
    }
    let off = self::off(&pass.logits, &golden.expected.floats("logits"));
    assert!(off < BOUND, "{name}, chunks of {chunk}: logits are off by {off}");
    // The continuation: the first id is chosen from the prompt's last logits.
    let ids = golden.expected.ids("greedy_ids");
    let (vocab, mut rest) = (golden.config.vocab_size, Pass::default());
    rest.logits.extend(&pass.logits[159 * vocab..]);
    for (step, id) in ids.iter().enumerate() {
        let logits = &rest.logits[step * vocab..];
        let best = (0..vocab).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(best as u32, *id, "{name}, chunks of {chunk}: token {step}");
        if step + 1 < ids.len() {
            rest.run(&model, &mut cache, &[*id], 1, Mode::Sparse);
        }
    }
    let off = self::off(&rest.logits, &golden.expected.floats("greedy_logits"));
    assert!(off < BOUND, "{name}, chunks of {chunk}: logits of decoding are off by {off}");
}

#[test]
fn a_whole_prompt_and_its_continuation_are_what_transformers_computes() {
    GOLDENS.into_iter().for_each(|name| check(name, 160));
}

#[test]
fn a_prompt_in_chunks_of_64_is_what_transformers_computes() {
    GOLDENS.into_iter().for_each(|name| check(name, 64));
}

#[test]
fn a_prompt_in_chunks_of_7_is_what_transformers_computes() {
    GOLDENS.into_iter().for_each(|name| check(name, 7));
}

#[test]
fn a_prompt_token_by_token_is_what_transformers_computes() {
    GOLDENS.into_iter().for_each(|name| check(name, 1));
}

#[test]
fn requests_side_by_side_are_what_transformers_computes() {
    for name in GOLDENS {
        let golden = Golden::read(name);
        let (model, vocab) = (golden.model(DType::F32), golden.config.vocab_size);
        let ids = golden.expected.ids("input_ids");
        let expected = golden.expected.floats("logits");
        // Three requests of different lengths, which then go on together.
        let (mut cache, lengths) = (model.cache(3, ROOM).unwrap(), [40, 90, 17]);
        for (request, length) in lengths.into_iter().enumerate() {
            let mut logits = vec![];
            let take = |chunk: dsa_kernels::Tensor| {
                logits.extend(chunk.download_f32()?);
                Ok(())
            };
            model.prefill(&ids[..length], request, 32, Mode::Sparse, &mut cache, take).unwrap();
            assert!(off(&logits, &expected[..length * vocab]) < BOUND, "{name}");
        }
        for step in 0..5 {
            let at = lengths.map(|length| length + step);
            let batch = Batch::decode(&cache, &at, Mode::Sparse).unwrap();
            let logits = model.forward(&at.map(|at| ids[at]), &batch, &mut cache).unwrap();
            for (logits, at) in logits.download_f32().unwrap().chunks(vocab).zip(at) {
                let off = off(logits, &expected[at * vocab..(at + 1) * vocab]);
                assert!(off < BOUND, "{name}, position {at}: {off}");
            }
        }
    }
}

#[test]
fn the_goldens_tell_the_latents_eps_from_the_others() {
    let mut golden = Golden::read("glm5");
    golden.config.latent_norm_eps = golden.config.rms_norm_eps;
    let off = logits_off(&golden, Mode::Sparse);
    assert!(off > BOUND, "{off}");
    let mut golden = Golden::read("glm5");
    golden.config.rms_norm_eps = 1e-6;
    let off = logits_off(&golden, Mode::Sparse);
    assert!(off > BOUND, "{off}");
}

#[test]
fn the_goldens_tell_sparse_from_dense_and_shared_from_own_keys() {
    for name in GOLDENS {
        let off = logits_off(&Golden::read(name), Mode::Dense);
        assert!(off > 0.1, "{name}: {off}");
    }
    let mut golden = Golden::read("glm5");
    let share = Overrides { share_index: Some("FFSSF".into()), ..Overrides::default() };
    golden.config = share.apply(golden.config).unwrap().0;
    let off = logits_off(&golden, Mode::Sparse);
    assert!(off > 0.1, "the indexers that are in the file are not read: {off}");
}

#[test]
fn with_all_keys_selected_sparse_is_dense() {
    for name in GOLDENS {
        let mut golden = Golden::read(name);
        let all = Overrides { topk: Some(160), ..Overrides::default() };
        golden.config = all.apply(golden.config).unwrap().0;
        let model = golden.model(DType::F32);
        let sparse = prefill(&golden, &model, 33, Mode::Sparse).0;
        let dense = prefill(&golden, &model, 160, Mode::Dense).0;
        let off = off(&sparse.logits, &dense.logits);
        assert!(off < BOUND, "{name}: {off}");
    }
}

/// The root of the mean square of `a - b` over that of `b`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let error: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (square(&error) / square(b)).sqrt()
}

#[test]
fn in_bf16_the_model_is_the_same_but_for_rounding() {
    // With all keys selected: where keys or experts change places the numbers jump, whatever the arithmetic.
    for name in GOLDENS {
        let mut golden = Golden::read(name);
        let all = Overrides { topk: Some(160), ..Overrides::default() };
        golden.config = all.apply(golden.config).unwrap().0;
        let exact = prefill(&golden, &golden.model(DType::F32), 64, Mode::Sparse).0;
        let rounded = prefill(&golden, &golden.model(DType::Bf16), 64, Mode::Sparse).0;
        let first = relative(&rounded.hidden[0], &exact.hidden[0]);
        assert!(first < 0.02, "{name}: {first}");
        // Of two other texts it would be 1.4.
        let last = relative(&rounded.logits, &exact.logits);
        assert!(last < 0.5, "{name}: {last}");
    }
}

#[test]
fn with_weights_kept_in_fp8_the_first_layer_is_nearer_to_the_official_one_than_dequantised() {
    // Behind it such a model is chaotic, and within it a value that is rounded to fp8 jumps by a sixteenth.
    let golden = Golden::read("demo");
    let stored = |part: &str| golden.expected.floats(&format!("layer0.block.{part}"));
    let parts = stored("residual").into_iter().zip(stored("ffn_out"));
    let expected: Vec<f32> = parts.map(|(residual, x)| residual + x).collect();
    let off = |precision| {
        let model = Model::new(&device(), &golden.config, golden.weights.root(), precision);
        relative(&prefill(&golden, &model.unwrap(), 160, Mode::Sparse).0.hidden[0], &expected)
    };
    let (kept, dequantised) = (off(Precision::STORED), off(Precision::dequantised(DType::Bf16)));
    assert!(kept < 0.6 * dequantised, "{kept}, dequantised {dequantised}");
}

#[test]
fn a_full_layer_needs_the_weights_of_an_indexer() {
    let golden = Golden::read("glm");
    let full = Overrides { share_index: Some("FFFSF".into()), ..Overrides::default() };
    let config = full.apply(golden.config).unwrap().0;
    let exact = Precision::dequantised(DType::F32);
    let error = Model::new(&device(), &config, golden.weights.root(), exact).err().unwrap();
    let says = "tensor \"model.layers.2.self_attn.indexer.k_norm.bias\" is missing; ";
    assert!(error.to_string().starts_with(says), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let golden = Golden::read("tiny");
    let model = golden.model(DType::F32);
    let mut cache = model.cache(1, 64).unwrap();
    let ids = golden.expected.ids("input_ids");
    let mut refused = |ids: &[u32], chunk| {
        let error = model.prefill(ids, 0, chunk, Mode::Sparse, &mut cache, |_| Ok(()));
        error.unwrap_err().to_string()
    };
    let cases = [
        (&[][..], 8, "ids is 0 ids, expected at least 1"),
        (&[3, 320], 1, "token id is 320, expected below the vocabulary's 320"),
        (&ids[..65], 8, "ids is 65 ids, expected at most 64, the room that request 0 has left"),
        (&[3], 0, "chunk is 0, expected at least 1 token"),
    ];
    for (ids, chunk, says) in cases {
        assert_eq!(refused(ids, chunk), says);
    }
    assert_eq!(cache.length(0), 0);
    let batch = Batch::chunk(&cache, 0, 0, 2, Mode::Sparse).unwrap();
    let error = model.forward(&[3], &batch, &mut cache).unwrap_err().to_string();
    assert_eq!(error, "ids is 1 ids, expected 2");
}

/// The tiny model with one bf16 element of a tensor replaced.
fn spoilt(tensor: &str, bits: u16) -> (tempfile::TempDir, Checkpoint) {
    let mut bytes = std::fs::read(folder("tiny").join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let begin = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + length + begin..][..2].copy_from_slice(&bits.to_le_bytes());
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join("model.safetensors"), bytes).unwrap();
    let checkpoint = Checkpoint::open(to.path()).unwrap();
    (to, checkpoint)
}

#[test]
fn a_nan_or_an_infinity_stops_the_run_and_names_part_and_token() {
    let golden = Golden::read("tiny");
    let row = "model.embed_tokens.weight";
    for (tensor, bits, part) in [
        (row, 0x7fc0, "model.embed_tokens"),
        ("model.layers.0.self_attn.o_proj.weight", 0x7f80, "model.layers.0.self_attn"),
        ("model.layers.0.mlp.down_proj.weight", 0x7fc0, "model.layers.0.mlp"),
        ("model.layers.2.mlp.shared_experts.up_proj.weight", 0xff80, "model.layers.2.mlp"),
        ("model.norm.weight", 0x7fc0, "model.norm"),
    ] {
        let (_folder, weights) = spoilt(tensor, bits);
        for dtype in [DType::F32, DType::Bf16] {
            let model = golden.with(&weights, dtype);
            let mut cache = model.cache(1, 64).unwrap();
            // Row 0 of the table is that of id 0, which comes last.
            let ids = [5, 6, 0];
            let error = model.prefill(&ids, 0, 2, Mode::Sparse, &mut cache, |_| Ok(()));
            let Err(Error::NotFinite { part: named, token }) = error else { panic!("{tensor}") };
            assert_eq!(named, part);
            assert_eq!(token, if tensor == row { 2 } else { 0 }, "{tensor}");
            assert_eq!(cache.length(0), token);
        }
    }
}
