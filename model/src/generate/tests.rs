//! Text up to a stop text, and comparing two distributions; what runs on a device is tested in `tests/`.

use super::compare::{attention, kept};
use super::text::Text;
use super::*;
use crate::tokenizer::tests::bytes;
use proptest::prelude::*;

/// What comes of `text` byte by byte: the pieces, and the stop text.
fn pieces(text: &[u8], stops: &[&str]) -> (Vec<String>, Option<String>) {
    let tokenizer = bytes();
    let mut to = Text::new(tokenizer.decoder(), stops.iter().map(ToString::to_string).collect());
    let mut pieces = vec![];
    for byte in text {
        let (piece, stop) = to.push(u32::from(*byte));
        pieces.push(piece);
        if stop.is_some() {
            assert_eq!(to.finish(), "");
            return (pieces, stop);
        }
    }
    pieces.push(to.finish());
    (pieces, None)
}

#[test]
fn an_answer_ends_before_the_first_stop_text_and_what_may_become_one_is_held_back() {
    let (parts, stop) = pieces(b"one ENEND two", &["END", "two"]);
    assert_eq!((parts.concat(), stop.as_deref()), ("one EN".to_string(), Some("END")));
    // "E", "EN" and "ENE" may yet be followed by the rest.
    assert_eq!(&parts[4..], ["", "", "EN", "", ""].map(String::from).as_slice());
    // What began one and did not become one comes at the end.
    let (parts, stop) = pieces("a\u{fc}EN".as_bytes(), &["END"]);
    assert_eq!((parts.concat(), stop), ("a\u{fc}EN".to_string(), None));
    // Half a character is never given, and nothing behind a stop text is.
    let (parts, stop) = pieces(b"x\xe2\x82", &["|"]);
    assert_eq!((parts, stop), (vec!["x".into(), "".into(), "".into(), "\u{fffd}".into()], None));
}

proptest! {
    #[test]
    fn pieces_are_the_text_before_the_first_stop_however_it_is_cut(text in "[ab\u{fc}]{0,12}", a in "[ab\u{fc}]{1,3}", b in "[ab]{1,2}") {
        let (parts, stop) = pieces(text.as_bytes(), &[&a, &b]);
        // The first that is complete ends the answer, before where it begins.
        let ends = |end: usize| [&a, &b].into_iter().find(|stop| text[..end].ends_with(&stop[..]));
        let first = (0..=text.len()).filter(|end| text.is_char_boundary(*end)).find(|end| ends(*end).is_some());
        match first {
            None => prop_assert_eq!((parts.concat(), stop), (text, None)),
            Some(end) => {
                let whole = &text[..end];
                let begin = [&a, &b].into_iter().filter_map(|stop| whole.find(&stop[..])).min().unwrap();
                prop_assert_eq!(parts.concat(), &text[..begin]);
                prop_assert!(stop.is_some_and(|stop| whole.ends_with(&stop)));
            }
        }
    }
}

#[test]
fn a_divergence_is_that_of_the_two_distributions_and_of_equals_none() {
    let third = (1f32 / 3.0).ln();
    let (kl, same) = divergence(&[0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()], &[third; 3]).unwrap();
    // ½·ln(3/2) + ½·ln(3/4)
    assert!((kl - 0.5 * (9.0f64 / 8.0).ln()).abs() < 1e-6, "{kl}");
    // Of three equal logits the first is the largest.
    assert!(same);
    let never = f32::NEG_INFINITY;
    assert_eq!(divergence(&[1.0, never], &[7.0, never]).unwrap(), (0.0, true));
    let (kl, same) = divergence(&[0.0, 1.0], &[never, 1.0]).unwrap();
    assert!(kl == f64::INFINITY && same);
    assert!(!divergence(&[0.0, 1.0], &[1.0, 0.0]).unwrap().1);
    assert!(divergence(&[0.0], &[0.0, 1.0]).is_err());
    assert!(divergence(&[f32::NAN], &[0.0]).is_err());
}

#[test]
fn recall_and_mass_are_of_the_mean_attention_over_the_heads() {
    // Two heads of four keys: shares 1/2, 1/4, 1/8, 1/8 and 1/8, 1/8, 1/4, 1/2.
    let ln = |shares: [f32; 4]| shares.map(|share| (share * 3.0).ln() / 2.0);
    let scores = [ln([0.5, 0.25, 0.125, 0.125]), ln([0.125, 0.125, 0.25, 0.5])].concat();
    let shares = attention(&scores, 4, 2.0);
    for (share, expected) in shares.iter().zip([0.3125, 0.1875, 0.1875, 0.3125]) {
        assert!((share - expected).abs() < 1e-6, "{shares:?}");
    }
    let Kept { recall, mass } = kept(&[0, 1, -1], &shares).unwrap();
    assert!(recall == 0.5 && (mass - 0.5).abs() < 1e-6, "{recall} {mass}");
    assert_eq!(kept(&[0, 3], &shares).unwrap().recall, 1.0);
    // Where every key is selected there is nothing to find, and where none is neither.
    assert_eq!(kept(&[0, 1, 2, 3], &shares), None);
    assert_eq!(kept(&[-1, -1], &shares), None);
}

#[test]
fn a_request_that_cannot_be_run_is_refused_by_what_is_wrong() {
    let right = Request::new(vec![1, 2]);
    right.check(3).unwrap();
    let greedy = crate::sample::Sampling { top_p: 2.0, ..Default::default() };
    for (request, says) in [
        (Request::new(vec![]), "prompt is 0 tokens, expected at least 1"),
        (
            Request::new(vec![1; 3]),
            "prompt is 3 tokens, expected at most 2, of 3 tokens of context",
        ),
        (
            Request { max_new_tokens: 0, ..right.clone() },
            "max_new_tokens is 0, expected at least 1",
        ),
        (Request { stop: vec!["".into()], ..right.clone() }, "stop is \"\", expected a text"),
        (
            Request { stop: vec!["x".into(); 17], ..right.clone() },
            "stop is 17 texts, expected at most 16",
        ),
        (Request { sampling: greedy, ..right }, "top_p is 2, expected 0 to 1"),
    ] {
        assert_eq!(request.check(3).unwrap_err().to_string(), says);
    }
}

#[test]
fn a_trace_has_an_event_for_every_step_and_its_stages_follow_each_other() {
    let mut timeline = Timeline::default();
    let since = std::time::Instant::now();
    timeline.note(
        "prompt, sparse",
        since,
        &[("tokens", 7)],
        &[("indexer", 0.5), ("top_k", 0.0), ("attention", 0.25)],
    );
    let spans = timeline.spans();
    assert_eq!(
        spans.iter().map(|span| (&span.name[..], span.track)).collect::<Vec<_>>(),
        [("prompt, sparse", 0), ("indexer", 1), ("attention", 1)]
    );
    assert_eq!(spans[2].start, spans[1].start + spans[1].length);
    let json: serde_json::Value = serde_json::from_str(&timeline.to_json()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 2 + 3);
    assert_eq!((&events[2]["ph"], &events[2]["args"]["tokens"]), (&"X".into(), &7.into()));
    assert_eq!(events[4]["dur"], 250_000.0);
}
