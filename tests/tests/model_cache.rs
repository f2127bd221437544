//! The whole model on its caches: latents as rows or as fp8 records.

use crate::support::device;
use dsa_kernels::DType;
use dsa_model::Model;
use dsa_model::config::{Config, Overrides};
use dsa_model::layers::Precision;
use dsa_model::run::{Batch, Cache, KvFormat, Mode};
use dsa_model::weights::Checkpoint;
use std::path::{Path, PathBuf};

/// Page-sized, and more than the prompt.
const ROOM: usize = 192;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// The model of a golden, which attends to `topk` keys, and its 160 ids.
fn golden(name: &str, precision: Precision, topk: Option<usize>) -> (Model, Vec<u32>) {
    let overrides = Overrides { topk, ..Overrides::default() };
    let config = overrides.apply(Config::read(&folder(name)).unwrap()).unwrap().0;
    let weights = Checkpoint::open(&folder(name)).unwrap();
    let stored = folder(name).join("expected.safetensors");
    let stored = Checkpoint::open_files(vec![stored]).unwrap();
    let bytes = stored.tensor("input_ids").unwrap().bytes;
    let ids = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    (Model::new(&device(), &config, weights.root(), precision).unwrap(), ids)
}

/// The logits of all ids in chunks.
fn logits(model: &Model, cache: &mut Cache, ids: &[u32], chunk: usize, mode: Mode) -> Vec<f32> {
    let mut all = vec![];
    let take = |logits: dsa_kernels::Tensor| {
        all.extend(logits.download_f32()?);
        Ok(())
    };
    model.prefill(ids, 0, chunk, mode, cache, take).unwrap();
    all
}

/// The root of the mean square of `a - b` over that of `b`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum();
    let (error, all): (f64, f64) =
        (square(&mut a.iter().zip(b).map(|(a, b)| a - b)), square(&mut b.iter().copied()));
    (error / all).sqrt()
}

#[test]
fn records_of_latents_that_are_rounded_to_fp8_anyway_change_no_bit_of_a_whole_prompt() {
    // The official arithmetic rounds latents to fp8 before they are cached: a record holds them exactly.
    let (model, ids) = golden("demo", Precision::STORED, None);
    for mode in [Mode::Sparse, Mode::Dense] {
        let of = |format, chunk| {
            let mut cache = model.cache_of(1, ROOM, format).unwrap();
            logits(&model, &mut cache, &ids, chunk, mode)
        };
        let rows = of(KvFormat::Elements, 160);
        assert_eq!(of(KvFormat::Fp8, 160), rows, "{mode:?}");
        // Chunks read what was cached before them.
        assert_eq!(of(KvFormat::Fp8, 33), of(KvFormat::Elements, 33), "{mode:?}, in chunks");
    }
}

#[test]
fn from_records_sparse_with_all_keys_is_dense_in_chunks_of_any_size() {
    let (model, ids) = golden("tiny", Precision::dequantised(DType::F32), Some(160));
    let of = |format, chunk, mode| {
        let mut cache = model.cache_of(1, ROOM, format).unwrap();
        logits(&model, &mut cache, &ids, chunk, mode)
    };
    let dense = of(KvFormat::Fp8, 160, Mode::Dense);
    for (chunk, mode) in
        [(160, Mode::Sparse), (33, Mode::Sparse), (33, Mode::Dense), (1, Mode::Dense)]
    {
        let off = relative(&of(KvFormat::Fp8, chunk, mode), &dense);
        // A latent that another order of sums takes over the border of two codes jumps by a sixteenth.
        assert!(off < 1e-3, "chunks of {chunk}, {mode:?}: {off:e}");
    }
    // They are read: what rounding latents to fp8 changes is far more.
    let off = relative(&dense, &of(KvFormat::Elements, 160, Mode::Dense));
    assert!((1e-2..1.0).contains(&off), "{off:e}");
}

#[test]
fn records_take_the_place_of_rows_in_memory() {
    let (model, _) = golden("tiny", Precision::dequantised(DType::F32), None);
    let config = model.config();
    let (latent, index) = (config.latent_dim(), config.index_head_dim);
    let layers = config.num_hidden_layers;
    // f32 rows; the tiny configuration keeps index keys as rows too.
    let keys = 4 * index * layers;
    let record = config.kv_lora_rank + 4 * config.kv_lora_rank.div_ceil(128);
    let record = record + 2 * config.qk_rope_head_dim;
    let cache = |format| model.cache_of(1, ROOM, format).unwrap();
    assert_eq!(cache(KvFormat::Elements).bytes_of_a_token(), 4 * latent * layers + keys);
    assert_eq!(cache(KvFormat::Fp8).bytes_of_a_token(), record * layers + keys);
}

/// The logits of the next token of each of the first requests.
fn decode(model: &Model, cache: &mut Cache, ids: &[u32], mode: Mode) -> Vec<f32> {
    let at: Vec<usize> = (0..ids.len()).map(|request| cache.length(request)).collect();
    for (request, position) in at.iter().enumerate() {
        cache.reserve(request, position + 1).unwrap();
    }
    let batch = Batch::decode(cache, &at, mode).unwrap();
    model.forward(ids, &batch, cache).unwrap().download_f32().unwrap()
}

#[test]
fn requests_come_and_go_in_the_pages_of_one_pool_and_change_no_bit_of_each_other() {
    // Index keys in pages and as rows; latents as rows and as records.
    let exact = Precision::dequantised(DType::F32);
    for (name, precision, format, mode) in [
        ("demo", Precision::STORED, KvFormat::Fp8, Mode::Sparse),
        ("demo", Precision::STORED, KvFormat::Elements, Mode::Dense),
        ("tiny", exact, KvFormat::Elements, Mode::Sparse),
    ] {
        let (model, ids) = golden(name, precision, None);
        let vocab = model.config().vocab_size;
        let prefill = |cache: &mut Cache, request, ids: &[u32]| {
            model.prefill(ids, request, 70, mode, cache, |_| Ok(())).unwrap();
        };
        // Five pages of 64 tokens for three requests, which would have nine.
        let mut cache = model.pool(3, ROOM, 5 * 64, format).unwrap();
        prefill(&mut cache, 0, &ids[..60]);
        prefill(&mut cache, 1, &ids[10..110]);
        assert_eq!(cache.free_pages(), 2);
        // What does not fit is refused whole.
        let error = model.prefill(&ids[..150], 2, 70, mode, &mut cache, |_| Ok(()));
        let says = "tokens is 150 of request 2, 3 pages more than it has, expected at most the 2 free pages";
        assert_eq!(error.unwrap_err().to_string(), says);
        assert_eq!((cache.free_pages(), cache.length(2), cache.room(2)), (2, 0, 0));
        // Another takes the place of the first, in its page and in two that are elsewhere.
        cache.end(0).unwrap();
        assert_eq!((cache.free_pages(), cache.length(0)), (3, 0));
        prefill(&mut cache, 0, &ids[20..150]);
        cache.end(1).unwrap();
        prefill(&mut cache, 1, &ids[5..67]);
        assert_eq!(cache.free_pages(), 1);
        // The last page is taken as request 1 grows beyond its first, token by token.
        let got: Vec<f32> = (0..3)
            .flat_map(|step| decode(&model, &mut cache, &[ids[step], ids[9 + step]], mode))
            .collect();
        assert_eq!((cache.free_pages(), cache.length(0), cache.length(1)), (0, 133, 65));
        for (request, prompt) in [&ids[20..150], &ids[5..67]].into_iter().enumerate() {
            let mut alone = model.cache_of(1, ROOM, format).unwrap();
            prefill(&mut alone, 0, prompt);
            for step in 0..3 {
                let want = decode(&model, &mut alone, &[ids[9 * request + step]], mode);
                let row = (2 * step + request) * vocab;
                assert!(got[row..row + vocab] == want, "{name}, request {request}, step {step}");
            }
        }
        let error = Batch::chunk(&cache, 2, 0, 1, mode).err().unwrap().to_string();
        assert_eq!(error, "position is 0, expected below 0, what request 2 has pages for");
    }
}
