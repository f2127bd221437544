//! Requests side by side on a made-up model: what an answer depends on, and how it ends.

use crate::support::device;
use dsa_kernels::DType;
use dsa_model::generate::{
    Attention, Comparison, Ended, Finish, Generator, Request, Settings, Token, What, divergence,
};
use dsa_model::layers::Precision;
use dsa_model::make_tiny::{Like, MakeTiny};
use dsa_model::run::{Batch, Mode};
use dsa_model::sample::Sampling;
use dsa_model::tokenizer::Tokenizer;
use dsa_model::weights::{Checkpoint, Stored};
use dsa_model::{Config, Model};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

/// A model of two layers that selects 16 keys, and its tokenizer.
pub fn made() -> &'static (tempfile::TempDir, Tokenizer) {
    static MADE: LazyLock<(tempfile::TempDir, Tokenizer)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let small = MakeTiny::like(Like::DeepseekV32);
        let make = MakeTiny { layers: Some(2), stored: Stored::F32, seed: 5, ..small };
        make.checked().unwrap().write(&device(), &folder.path().join("model")).unwrap();
        let tokenizer = Tokenizer::read(&folder.path().join("model")).unwrap();
        (folder, tokenizer)
    });
    &MADE
}

/// Its folder.
pub fn folder() -> std::path::PathBuf {
    made().0.path().join("model")
}

fn model(folder: &Path) -> Model {
    let (config, weights) = (Config::read(folder).unwrap(), Checkpoint::open(folder).unwrap());
    Model::new(&device(), &config, weights.root(), Precision::dequantised(DType::F32)).unwrap()
}

fn settings(attention: Attention, requests: usize, chunk: usize) -> Settings {
    Settings { attention, requests, max_seq: 128, chunk, ..Settings::default() }
}

/// A prompt of `n` bytes.
fn prompt(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i * 37 + seed * 11) % 256).collect()
}

fn request(number: u64, n: u32, new: usize) -> Request {
    Request { number, max_new_tokens: new, ..Request::new(prompt(n, number as u32)) }
}

/// What became of each request, in the order in which they ended: its number here, its tokens and its end.
type Answers = BTreeMap<usize, (Vec<Token>, Ended)>;

/// Runs requests as they find room.
fn run(generator: &mut Generator, requests: &[Request]) -> Answers {
    let (mut next, mut at, mut tokens) = (0, BTreeMap::new(), BTreeMap::new());
    let mut answers = Answers::new();
    loop {
        while next < requests.len() && generator.has_room() {
            let slot = generator.begin(requests[next].clone()).unwrap();
            at.insert(slot, next);
            tokens.insert(next, vec![]);
            next += 1;
        }
        if !generator.is_busy() {
            return answers;
        }
        for event in generator.step().unwrap() {
            let of = at[&event.slot];
            match event.what {
                What::Read(read, all) => assert!(read <= all && all == requests[of].prompt.len()),
                What::Token(token) => tokens.get_mut(&of).unwrap().push(token),
                What::Ended(ended) => {
                    answers.insert(of, (tokens.remove(&of).unwrap(), ended));
                }
            }
        }
    }
}

fn ids(answers: &Answers) -> Vec<Vec<u32>> {
    answers.values().map(|(tokens, _)| tokens.iter().map(|token| token.id).collect()).collect()
}

#[test]
fn an_answer_depends_neither_on_its_company_nor_on_chunks_nor_on_what_the_cache_held_before() {
    let (model, tokenizer) = (model(&folder()), &made().1);
    let requests = [request(0, 40, 6), request(1, 5, 12), request(2, 33, 3), request(3, 1, 9)];
    let alone: Vec<Vec<u32>> = requests
        .iter()
        .flat_map(|request| {
            let one = settings(Attention::Sparse, 1, 512);
            let mut generator = Generator::new(&model, tokenizer, &[], one).unwrap();
            ids(&run(&mut generator, std::slice::from_ref(request)))
        })
        .collect();
    // Two at a time, so that the others come when one ends, in chunks that end anywhere and pages of another size.
    for (places, chunk, page_size) in [(2, 7, 16), (4, 512, 64)] {
        let many = Settings { page_size, ..settings(Attention::Sparse, places, chunk) };
        let mut generator = Generator::new(&model, tokenizer, &[], many).unwrap();
        assert_eq!(ids(&run(&mut generator, &requests)), alone, "{places} places");
        // Again, with the prompts in the cache.
        assert_eq!(ids(&run(&mut generator, &requests)), alone, "{places} places again");
    }
    let mut generator =
        Generator::new(&model, tokenizer, &[], settings(Attention::Sparse, 1, 512)).unwrap();
    let first = run(&mut generator, &requests[..1]);
    let longer: Vec<u32> =
        requests[0].prompt.iter().copied().chain(ids(&first)[0].clone()).collect();
    let longer = Request { prompt: [longer, prompt(9, 7)].concat(), ..requests[0].clone() };
    let cached = run(&mut generator, std::slice::from_ref(&longer));
    // All of the first conversation but its last token, which was never computed.
    assert_eq!(cached[&0].1.cached_tokens, 40 + 6 - 1);
    let mut fresh =
        Generator::new(&model, tokenizer, &[], settings(Attention::Sparse, 1, 512)).unwrap();
    assert_eq!(ids(&run(&mut fresh, &[longer])), ids(&cached));
}

/// The most probable id after each token of a growing text, by the model's own steps.
fn by_hand(model: &Model, prompt: &[u32], new: usize, mode: Mode) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut cache = model.cache(1, 128).unwrap();
    let (mut ids, mut all, mut next) = (vec![], vec![], prompt.to_vec());
    for _ in 0..new {
        let batch = Batch::chunk(&cache, 0, cache.length(0), next.len(), mode).unwrap();
        let logits = model.forward(&next, &batch, &mut cache).unwrap().download_f32().unwrap();
        let last = logits[logits.len() - model.config().vocab_size..].to_vec();
        let id = Sampling::GREEDY.sample(&last, 0, 0).unwrap();
        (ids, next) = ([ids, vec![id]].concat(), vec![id]);
        all.push(last);
    }
    (ids, all)
}

#[test]
fn greedy_answers_are_those_of_the_models_own_steps_with_the_probabilities_of_its_logits() {
    let (model, tokenizer) = (model(&folder()), &made().1);
    for (attention, mode) in [(Attention::Sparse, Mode::Sparse), (Attention::Dense, Mode::Dense)] {
        let greedy = Request { sampling: Sampling::GREEDY, logprobs: Some(3), ..request(0, 40, 5) };
        let (expected, logits) = by_hand(&model, &greedy.prompt, 5, mode);
        let mut generator =
            Generator::new(&model, tokenizer, &[], settings(attention, 1, 512)).unwrap();
        let answers = run(&mut generator, &[greedy]);
        assert_eq!(ids(&answers)[0], expected, "{mode:?}");
        for (token, logits) in answers[&0].0.iter().zip(logits) {
            let log = dsa_model::sample::log_softmax(&logits).unwrap();
            let own = (token.id, log[token.id as usize]);
            assert_eq!((token.logprob, token.top[0]), (Some(own.1), own));
            assert!(token.top.len() == 3 && token.top[1].1 >= token.top[2].1);
        }
    }
}

#[test]
fn dense_beside_sparse_changes_no_token_and_tells_what_the_selection_costs() {
    let (model, tokenizer) = (model(&folder()), &made().1);
    let greedy = |n| Request { sampling: Sampling::GREEDY, ..request(0, n, 4) };
    let compare = |attention, n| {
        let mut generator =
            Generator::new(&model, tokenizer, &[], settings(attention, 2, 16)).unwrap();
        run(&mut generator, &[greedy(n), request(1, 45, 4)])
    };
    let (sparse, both) = (compare(Attention::Sparse, 50), compare(Attention::Both, 50));
    assert_eq!(ids(&both), ids(&sparse));
    let comparisons = |answers: &Answers| -> Vec<Comparison> {
        answers[&0].0.iter().map(|token| token.comparison.clone().unwrap()).collect()
    };
    assert!(sparse[&0].0.iter().all(|token| token.comparison.is_none()));
    // By hand: dense on the tokens that sparse attention drew.
    let (drawn, logits) = by_hand(&model, &greedy(50).prompt, 4, Mode::Sparse);
    let mut cache = model.cache(1, 128).unwrap();
    let mut next = greedy(50).prompt;
    for (n, comparison) in comparisons(&both).iter().enumerate() {
        let batch = Batch::chunk(&cache, 0, cache.length(0), next.len(), Mode::Dense).unwrap();
        let dense = model.forward(&next, &batch, &mut cache).unwrap().download_f32().unwrap();
        let dense = &dense[dense.len() - model.config().vocab_size..];
        let (kl, same_top) = divergence(dense, &logits[n]).unwrap();
        // Of the prompt's last token the generator's step is a decoded one.
        assert!((kl - comparison.kl).abs() < 1e-4 * kl && kl > 1e-3, "{kl} {comparison:?}");
        assert_eq!(same_top, comparison.same_top);
        for kept in &comparison.layers {
            let kept = kept.unwrap();
            assert!((0.0..=1.0).contains(&kept.recall) && kept.mass > 0.0 && kept.mass < 1.0);
        }
        next = vec![drawn[n]];
    }
    // While every key is selected the two are one, and there is nothing to find.
    for comparison in comparisons(&compare(Attention::Both, 10)) {
        assert!(comparison.kl < 1e-6 && comparison.same_top, "{comparison:?}");
        assert!(comparison.layers.iter().all(Option::is_none));
    }
}

#[test]
fn an_answer_ends_at_its_token_its_stop_text_its_length_the_context_or_when_it_is_cancelled() {
    let (model, tokenizer) = (model(&folder()), &made().1);
    let one = settings(Attention::Sparse, 1, 512);
    let plain = Request { sampling: Sampling::GREEDY, ..request(0, 20, 8) };
    let mut generator = Generator::new(&model, tokenizer, &[], one).unwrap();
    let whole = run(&mut generator, std::slice::from_ref(&plain));
    let drawn = &ids(&whole)[0];
    assert_eq!((&whole[&0].1.finish, whole[&0].1.new_tokens), (&Finish::Length, 8));
    let text = |answers: &Answers| {
        let (tokens, ended) = &answers[&0];
        tokens.iter().map(|token| &token.text[..]).collect::<String>() + &ended.text
    };
    assert_eq!(text(&whole), tokenizer.decode(drawn));
    // The first of its tokens that did not come before ends it, and is no part of the text.
    let at = (1..8).find(|at| !drawn[..*at].contains(&drawn[*at])).unwrap();
    let mut ending = Generator::new(&model, tokenizer, &[9999, drawn[at]], one).unwrap();
    let ended = run(&mut ending, std::slice::from_ref(&plain));
    assert_eq!((&ended[&0].1.finish, ended[&0].1.new_tokens), (&Finish::End(drawn[at]), at + 1));
    assert_eq!(text(&ended), tokenizer.decode(&drawn[..at]));
    let on = run(&mut ending, &[Request { ignore_ends: true, ..plain.clone() }]);
    assert_eq!(ids(&on)[0], *drawn);
    // A text in it.
    let letters: Vec<char> = text(&whole).chars().collect();
    let stop: String = letters[3..5].iter().collect();
    let stopped = run(&mut generator, &[Request { stop: vec![stop.clone()], ..plain.clone() }]);
    assert_eq!(stopped[&0].1.finish, Finish::Stop(stop.clone()));
    assert_eq!(text(&stopped), text(&whole)[..text(&whole).find(&stop).unwrap()]);
    // No room: of 24 tokens 20 are the prompt's, and the one behind the last need not be kept.
    let small = Settings { max_seq: 24, ..one };
    let mut small = Generator::new(&model, tokenizer, &[], small).unwrap();
    let full = run(&mut small, std::slice::from_ref(&plain));
    assert_eq!((&full[&0].1.finish, full[&0].1.new_tokens), (&Finish::Full, 5));
    assert_eq!(ids(&full)[0], drawn[..5]);
    // Cancelled between two tokens, and the place is free again.
    let slot = generator.begin(plain.clone()).unwrap();
    assert!(!generator.has_room() && generator.begin(plain.clone()).is_err());
    generator.step().unwrap();
    generator.step().unwrap();
    let cancelled = generator.cancel(slot).unwrap();
    let What::Ended(ended) = cancelled.what else { panic!("{cancelled:?}") };
    assert_eq!((ended.finish, ended.new_tokens), (Finish::Cancelled, 2));
    assert!(generator.cancel(slot).is_none() && generator.step().unwrap().is_empty());
    assert_eq!(ids(&run(&mut generator, &[plain]))[0], *drawn);
}

#[test]
fn a_request_of_other_tokens_than_the_models_and_a_batch_with_one_twice_are_refused() {
    let (model, tokenizer) = (model(&folder()), &made().1);
    let one = settings(Attention::Sparse, 1, 512);
    let mut generator = Generator::new(&model, tokenizer, &[], one).unwrap();
    let error = generator.begin(Request::new(vec![3, 320])).unwrap_err().to_string();
    assert_eq!(error, "token id is 320, expected below the vocabulary's 320");
    assert!(!generator.is_busy());
    let cache = model.cache(2, 64).unwrap();
    for (next, says) in [
        (&[][..], "requests is none, expected at least 1"),
        (&[(1, 0), (1, 0)], "request is 1, expected each request once"),
        (&[(2, 0)], "request is 2, expected below 2"),
        (&[(0, 64)], "position is 64, expected below 64"),
        (&[(1, 1)], "position is 1, expected at most 0, the tokens that request 1 holds"),
    ] {
        let error = Batch::decode_of(&cache, next, Mode::Sparse).err().unwrap().to_string();
        assert_eq!(error, says);
    }
}
