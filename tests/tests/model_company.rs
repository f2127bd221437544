//! A row of the whole model does not depend on its company: not on the chunk that it comes in, not on the requests
//! beside it, not on when it is run.

use crate::support::device;
use dsa_kernels::{DType, Tensor};
use dsa_model::Model;
use dsa_model::config::Config;
use dsa_model::layers::Precision;
use dsa_model::run::{Batch, Cache, KvFormat, Mode};
use dsa_model::weights::Checkpoint;
use std::path::Path;

/// More tokens than are kept of each context, and than a page holds.
const TOKENS: usize = 72;

/// The model that is stored in fp8, with weights as they are and dequantised to bf16.
fn models() -> impl Iterator<Item = (Model, &'static str)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo");
    let config = Config::read(&folder).unwrap();
    assert!(config.index_topk < TOKENS);
    let weights = Checkpoint::open(&folder).unwrap();
    [(Precision::STORED, "fp8"), (Precision::dequantised(DType::Bf16), "bf16")].into_iter().map(
        move |(precision, name)| {
            (Model::new(&device(), &config, weights.root(), precision).unwrap(), name)
        },
    )
}

fn ids(model: &Model, first: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..TOKENS).map(|i| ((first + 37 * i) % vocab) as u32).collect()
}

/// The bits of the logits of all ids in chunks, of `request`.
fn prefill(
    model: &Model,
    cache: &mut Cache,
    request: usize,
    ids: &[u32],
    chunk: usize,
    mode: Mode,
) -> Vec<u8> {
    let mut all = vec![];
    let take = |logits: Tensor| {
        all.extend(logits.download()?);
        Ok(())
    };
    model.prefill(ids, request, chunk, mode, cache, take).unwrap();
    all
}

#[track_caller]
fn assert_same(a: &[u8], b: &[u8], vocab: usize, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.chunks(4 * vocab).zip(b.chunks(4 * vocab)).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{what}: the first row that differs");
}

#[test]
fn a_prompt_has_the_same_bits_in_chunks_of_any_size() {
    for (model, name) in models() {
        let (ids, vocab) = (ids(&model, 1), model.config().vocab_size);
        let format = if name == "fp8" { KvFormat::Fp8 } else { KvFormat::Elements };
        let of = |chunk| {
            let mut cache = model.cache_of(1, TOKENS, format).unwrap();
            prefill(&model, &mut cache, 0, &ids, chunk, Mode::Sparse)
        };
        let whole = of(TOKENS);
        for chunk in [7, 64] {
            assert_same(&of(chunk), &whole, vocab, &format!("{name}, chunks of {chunk}"));
        }
        // Token by token, the first ones, and some that have more keys than are kept.
        let mut cache = model.cache_of(1, TOKENS, format).unwrap();
        for (range, chunk) in [(0..9, 1), (9..62, 53), (62..TOKENS, 1)] {
            let row = 4 * vocab;
            let part = prefill(&model, &mut cache, 0, &ids[range.clone()], chunk, Mode::Sparse);
            let what = format!("{name}, tokens {range:?} in chunks of {chunk}");
            assert_same(&part, &whole[range.start * row..range.end * row], vocab, &what);
        }
    }
}

#[test]
fn a_request_has_the_same_bits_alone_and_beside_three_others() {
    for (model, name) in models() {
        let vocab = model.config().vocab_size;
        let modes = if name == "fp8" { &[Mode::Sparse][..] } else { &[Mode::Sparse, Mode::Dense] };
        for mode in modes.iter().copied() {
            // Contexts shorter and longer than what is kept.
            let lengths = [50, 8, 65, 30];
            let prompts: Vec<_> = (0..4).map(|r| ids(&model, 11 * r)).collect();
            let mut together = model.cache(4, TOKENS).unwrap();
            for (r, n) in lengths.into_iter().enumerate() {
                prefill(&model, &mut together, r, &prompts[r][..n], 40, mode);
            }
            let mut beside = vec![vec![]; 4];
            for step in 0..2 {
                let at = lengths.map(|n| n + step);
                let ids: Vec<_> = at.iter().zip(&prompts).map(|(at, ids)| ids[*at]).collect();
                let batch = Batch::decode(&together, &at, mode).unwrap();
                let logits = model.forward(&ids, &batch, &mut together).unwrap();
                for (r, row) in logits.download().unwrap().chunks(4 * vocab).enumerate() {
                    beside[r].extend_from_slice(row);
                }
            }
            for (r, n) in lengths.into_iter().enumerate() {
                let mut cache = model.cache(1, TOKENS).unwrap();
                prefill(&model, &mut cache, 0, &prompts[r][..n], 40, mode);
                let alone = prefill(&model, &mut cache, 0, &prompts[r][n..n + 2], 1, mode);
                assert_same(&beside[r], &alone, vocab, &format!("{name}, {mode:?}, request {r}"));
            }
        }
    }
}

#[test]
fn twenty_runs_have_the_same_bits() {
    for (model, name) in models() {
        let (ids, vocab) = (ids(&model, 5), model.config().vocab_size);
        let run = || {
            let mut cache = model.cache(1, TOKENS).unwrap();
            let mut all = prefill(&model, &mut cache, 0, &ids[..26], 26, Mode::Sparse);
            all.extend(prefill(&model, &mut cache, 0, &ids[26..27], 1, Mode::Sparse));
            all
        };
        let first = run();
        for n in 1..20 {
            assert_same(&run(), &first, vocab, &format!("{name}, run {n}"));
        }
    }
}
