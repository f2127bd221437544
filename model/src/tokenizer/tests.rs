use super::file::letters;
use super::*;
use crate::chat::dsv32;
use crate::chat::{Message, Role};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// A byte-level tokenizer: the 256 bytes, pairs that merge, and control tokens behind them.
fn file(merges: &[(&str, &str)], controls: &[&str]) -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        letters().into_iter().map(|(letter, byte)| (letter.to_string(), byte.into())).collect();
    for (a, b) in merges {
        vocab.insert(format!("{a}{b}"), vocab.len().into());
    }
    let added = |(n, name): (usize, &&str)| {
        json!({"id": vocab.len() + n, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": n % 2 == 0})
    };
    let added: Vec<Value> = controls.iter().enumerate().map(added).collect();
    let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
}

pub(crate) fn bytes() -> Tokenizer {
    Tokenizer::from_json(&file(&[], &dsv32::CONTROLS).to_string()).unwrap()
}

fn text(text: &str) -> Prompt {
    let mut prompt = Prompt::new();
    prompt.push(text);
    prompt
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn text_never_becomes_a_control_token_unless_it_is_meant() {
    let tokenizer = bytes();
    let user = "a<｜User｜>b</think><｜end▁of▁sentence｜>";
    assert_eq!(tokenizer.encode(&text(user)).unwrap(), ids(user));
    let [bos, eos, asks, answers, _, thought, _] =
        dsv32::CONTROLS.map(|c| tokenizer.id(c).unwrap());
    let prompt = dsv32::encode(&[Message::new(Role::User, user)], false).unwrap();
    let expected = [vec![bos, asks], ids(user), vec![answers, thought]].concat();
    assert_eq!(tokenizer.encode(&prompt).unwrap(), expected);
    let mut marked = Prompt::new();
    marked.push_marked(user);
    let expected = [ids("a"), vec![asks], ids("b"), vec![thought, eos]].concat();
    assert_eq!(tokenizer.encode(&marked).unwrap(), expected);
    assert_eq!(
        tokenizer.encode(&prompt.allow_special()).unwrap()[..3],
        [bos, asks, u32::from(b'a')]
    );
}

#[test]
fn the_longest_control_token_is_meant_and_one_that_is_not_there_is_text() {
    let merges = [("p", "x"), ("x", "y"), ("px", "y")];
    let tokenizer = Tokenizer::from_json(&file(&merges, &["<a", "<a>"]).to_string()).unwrap();
    let mut prompt = Prompt::new();
    prompt.push_marked("<a><ab<");
    assert_eq!(tokenizer.encode(&prompt).unwrap(), [260, 259, 98, 60]);
    // Bytes merge over what is no control token here.
    let mut prompt = Prompt::new();
    prompt.push("p");
    prompt.control("x");
    prompt.push("y");
    assert_eq!(tokenizer.encode(&prompt).unwrap(), [258]);
    prompt.control("<a>");
    assert_eq!(tokenizer.encode(&prompt).unwrap(), [258, 260]);
}

#[test]
fn half_a_character_is_never_given() {
    let tokenizer = bytes();
    let mut decoder = tokenizer.decoder();
    let mut given = |id: u32| decoder.push(id);
    assert_eq!(
        ids("é🦀").into_iter().map(&mut given).collect::<Vec<_>>(),
        ["", "é", "", "", "", "🦀"]
    );
    // Bytes that are no character are given as one sign as soon as that is certain.
    assert_eq!([0xf0, 0x9f, 0x61].map(&mut given), ["", "", "\u{fffd}a"]);
    assert_eq!([0xff, 0xe4, 0xe4].map(&mut given), ["\u{fffd}", "", "\u{fffd}"]);
    // A control token ends what was begun, and so does the end.
    assert_eq!(given(tokenizer.id("<think>").unwrap()), "\u{fffd}<think>");
    assert_eq!(given(99_999), "\u{fffd}");
    assert_eq!(
        (given(0xe4), decoder.finish(), decoder.finish()),
        (String::new(), "\u{fffd}".into(), String::new())
    );
}

static BYTES: LazyLock<Tokenizer> = LazyLock::new(bytes);
/// A tokenizer with merges, and Hugging Face's own of the same file.
static MERGED: LazyLock<(Tokenizer, tokenizers::Tokenizer)> = LazyLock::new(|| {
    let merges = [("a", "b"), ("Ġ", "a"), ("Ġa", "b"), ("Ã", "©")];
    let merged = file(&merges, &["<think>"]).to_string();
    (Tokenizer::from_json(&merged).unwrap(), tokenizers::Tokenizer::from_str(&merged).unwrap())
});

proptest! {
    #[test]
    fn text_becomes_ids_and_text_again(words in "\\PC{0,40}|[ \n\ta-z0-9'<>é漢🦀]{0,60}") {
        let ids = BYTES.encode(&text(&words)).unwrap();
        prop_assert_eq!(BYTES.decode(&ids), &words[..]);
        // Hugging Face's own tokenizer says the same of text without control tokens.
        let (ours, theirs) = &*MERGED;
        let ids = ours.encode(&text(&words)).unwrap();
        let theirs = theirs.encode(&words[..], false).unwrap();
        prop_assert_eq!(&ids[..], theirs.get_ids());
        prop_assert_eq!(ours.decode(&ids), words);
    }

    /// Any bytes, and control tokens among them.
    #[test]
    fn what_is_streamed_is_what_is_decoded(ids in proptest::collection::vec(prop_oneof![0..266u32, 0xe0..0xf5u32, 0x80..0xc0u32], 0..40)) {
        let tokenizer = &*BYTES;
        let mut decoder = tokenizer.decoder();
        let mut streamed: String = ids.iter().map(|id| decoder.push(*id)).collect();
        prop_assert!(decoder.held.len() < 4);
        streamed.push_str(&decoder.finish());
        prop_assert_eq!(&streamed, &tokenizer.decode(&ids));
        // What stands between control tokens is decoded as a whole.
        let mut expected = String::new();
        for stretch in ids.split_inclusive(|id| *id > 255) {
            let bytes: Vec<u8> = stretch.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
            expected.push_str(&String::from_utf8_lossy(&bytes));
            let last = stretch.last().filter(|id| **id > 255);
            let name = |id: &u32| tokenizer.names.get(id).map_or("\u{fffd}", |name| name);
            expected.push_str(last.map_or("", name));
        }
        prop_assert_eq!(streamed, expected);
    }
}

#[test]
fn what_is_no_tokenizer_of_this_kind_is_refused_by_its_field() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = file(&[], &["<a>", "<b>"]);
        change(&mut file);
        Tokenizer::from_json(&file.to_string()).unwrap_err().to_string()
    };
    for (error, said) in [
        (
            with(&|f| f["model"]["type"] = "Unigram".into()),
            "model.type is \"Unigram\", expected BPE",
        ),
        (with(&|f| f["decoder"] = Value::Null), "decoder.type is missing, expected ByteLevel"),
        (with(&|f| f["model"]["vocab"] = json!([])), "model.vocab is [], expected an object"),
        (with(&|f| f["model"]["vocab"]["b"] = 97.into()), "model.vocab."),
        (with(&|f| f["model"]["merges"] = json!(["Q q"])), "not the JSON expected here"),
        (
            with(
                &|f| f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
            "not the JSON",
        ),
        (
            with(&|f| f["added_tokens"][1]["lstrip"] = true.into()),
            "added_tokens[1].lstrip is true, expected false",
        ),
        (
            with(&|f| f["added_tokens"][1]["id"] = 256.into()),
            "\"<b>\" has id 256, expected an id of its own: \"<a>\" has it",
        ),
        (
            with(&|f| f["added_tokens"][1]["id"] = 97.into()),
            "\"<b>\" has id 97, expected an id of its own: \"a\" of the vocabulary has it",
        ),
        (
            with(&|f| f["added_tokens"][1]["content"] = "<a>".into()),
            "\"<a>\" has id 257, expected an id of its own: it was added with id 256 before",
        ),
        (
            with(&|f| f["added_tokens"][1]["content"] = "a".into()),
            "\"a\" has id 257, expected an id of its own: it has id 97 in the vocabulary",
        ),
        (
            with(&|f| f["added_tokens"][0]["content"] = "".into()),
            "added_tokens[0].content is \"\", expected a text",
        ),
        (
            with(&|f| f["added_tokens"][0]["id"] = (-1).into()),
            "added_tokens[0].id is -1, expected a token id",
        ),
    ] {
        assert!(error.contains(said), "{error}");
    }
    let twice = file(&[], &[]).to_string().replacen("\"vocab\":{", "\"vocab\":{\"a\":97,", 1);
    assert!(Tokenizer::from_json(&twice).unwrap_err().to_string().contains("twice"));
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::read(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with(": no tokenizer, expected tokenizer.json"), "{error}");
}

#[test]
fn a_control_token_that_merges_could_make_is_refused_where_it_is_made() {
    let mut file = file(&[("a", "b"), ("ab", "c")], &[]);
    file["added_tokens"] = json!([{"id": 257, "content": "abc"}]);
    let tokenizer = Tokenizer::from_json(&file.to_string()).unwrap();
    assert_eq!(tokenizer.encode(&text("ab")).unwrap(), [256]);
    let error = tokenizer.encode(&text("abc")).unwrap_err().to_string();
    assert!(error.contains("becomes the control token abc"), "{error}");
}

#[test]
fn what_does_not_fit_the_model_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &file(&[], &["<bos>", "<eos>"]).to_string());
    let config = |vocab: usize| {
        let mut config = Config::scaled(32).unwrap();
        (config.vocab_size, config.bos_token_id, config.eos_token_id) =
            (vocab, Some(256), vec![1, 257]);
        config
    };
    let read = || Tokenizer::read(folder.path()).unwrap();
    assert_eq!(read().settings(), &Settings::default());
    assert!(read().check(&config(258)).unwrap().is_empty());
    let error = read().check(&config(257)).unwrap_err().to_string();
    assert_eq!(error, "the token \"<eos>\" has id 257, expected below the model's vocab_size 257");
    write(
        "tokenizer_config.json",
        r#"{"bos_token": "<eos>", "eos_token": {"content": "<no>"}, "add_bos_token": true}"#,
    );
    let said = read().check(&config(258)).unwrap();
    assert_eq!(
        said,
        [
            "tokenizer_config.json: bos_token \"<eos>\" has id 257, but the configuration says 256",
            "tokenizer_config.json: eos_token \"<no>\" is no token of tokenizer.json",
        ]
    );
    write(
        "tokenizer_config.json",
        r#"{"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": "{{ x }}"}"#,
    );
    assert!(read().check(&config(258)).unwrap().is_empty());
    assert_eq!(read().settings().chat_template.as_deref(), Some("{{ x }}"));
    write("chat_template.jinja", "{{ y }}");
    assert_eq!(read().settings().chat_template.as_deref(), Some("{{ y }}"));
    write("tokenizer_config.json", r#"{"bos_token": 7}"#);
    let error = Tokenizer::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: bos_token is 7, expected a token"), "{error}");
}

/// The published ids of DeepSeek-V3.2's own example. Its tokenizer is 8 MB and not in this repository.
#[test]
fn the_published_conversation_has_the_published_ids() {
    // DeepSeek-V3's tokenizer has 8 MB and is not in the repository.
    let Ok(folder) = std::env::var("DSA_TOKENIZER") else {
        eprintln!("not tried: DSA_TOKENIZER names no folder with DeepSeek-V3's tokenizer.json");
        return;
    };
    let tokenizer = Tokenizer::read(Path::new(&folder)).unwrap();
    let mut answer = Message::new(Role::Assistant, "Hello! I am DeepSeek.");
    answer.reasoning_content = Some("thinking...".into());
    let messages = [Message::new(Role::User, "hello"), answer, Message::new(Role::User, "1+1=?")];
    let prompt = dsv32::encode(&messages, true).unwrap();
    let ids = tokenizer.encode(&prompt).unwrap();
    let published = [
        0, 128803, 33310, 128804, 128799, 19923, 3, 342, 1030, 22651, 4374, 1465, 16, 1, 128803,
        19, 13, 19, 127252, 128804, 128798,
    ];
    assert_eq!(ids, published);
    assert_eq!(tokenizer.decode(&ids), prompt.text());
    let mixed = "Preise: 12,50 € – naïve Wörter, 漢字かな 🦀🦀\n\n\tfn main() { println!(\"1234567\"); }  \n";
    let ids = tokenizer.encode(&text(mixed)).unwrap();
    assert_eq!(tokenizer.decode(&ids), mixed);
}
