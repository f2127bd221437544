//! A tokenizer that every text fits in: a token for each byte, and the control tokens of the family.

use crate::config::{Config, Family};
use serde_json::{Map, Value, json};

/// Where the control tokens of a small vocabulary begin.
pub(super) const SMALL_SPECIALS: u32 = 259;

/// The control tokens of DeepSeek-V3.2 that are not its first three, from `<think>` on as they follow each other there.
const DEEPSEEK: [&str; 8] = [
    "<think>",
    "</think>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "｜DSML｜",
];
/// Its first three, which are the first of the vocabulary.
const DEEPSEEK_FIRST: [&str; 3] =
    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"];
/// Those of GLM-5, in its order, from the one that ends a text on.
const GLM: [&str; 12] = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<think>",
    "</think>",
];

/// Turns as DeepSeek-V3.2 writes them.
const DEEPSEEK_TEMPLATE: &str = r"{%- set ns = namespace(system='') -%}
{%- for message in messages if message.role == 'system' -%}
{%- set ns.system = ns.system + message.content -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<｜User｜>' + message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '<｜Assistant｜></think>' + message.content + '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜>' + ('<think>' if thinking is defined and thinking else '</think>') -}}
{%- endif -%}
";
/// Turns as GLM-5 writes them.
const GLM_TEMPLATE: &str = r"{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '<|system|>' + message.content -}}
{%- elif message.role == 'user' -%}
{{- '<|user|>' + message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|></think>' + message.content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' + ('<think>' if enable_thinking is not defined or enable_thinking else '</think>') -}}
{%- endif -%}
";

/// The control tokens and their numbers, ascending.
fn controls(config: &Config) -> Vec<(u32, &'static str)> {
    let from = |first: u32, names: &[&'static str]| -> Vec<_> {
        (first..).zip(names.iter().copied()).collect()
    };
    let whole = config.vocab_size > 100_000;
    match config.family {
        Family::DeepseekV32 => {
            let mut all = from(0, &DEEPSEEK_FIRST);
            all.extend(from(if whole { 128_798 } else { SMALL_SPECIALS }, &DEEPSEEK));
            all
        }
        Family::GlmMoeDsa => from(if whole { 154_820 } else { SMALL_SPECIALS }, &GLM),
    }
}

/// The character that stands for each byte in a byte-level vocabulary: itself if it can be seen, and otherwise the next
/// one from U+0100 on (GPT-2's `bytes_to_unicode`).
fn letters() -> Vec<char> {
    let mut hidden = 0x100u32..;
    let letter = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(char::from(byte)),
        _ => hidden.next().and_then(char::from_u32),
    };
    (0..=255).filter_map(letter).collect()
}

/// `tokenizer.json`: byte-level, without merges. Bytes are tokens 3 to 258.
pub(super) fn tokenizer(config: &Config) -> Value {
    let byte = |(nth, letter): (usize, char)| (letter.to_string(), json!(nth + 3));
    let vocab: Map<String, Value> = letters().into_iter().enumerate().map(byte).collect();
    let added = |(id, name): (u32, &str)| {
        json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": controls(config).into_iter().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

/// `tokenizer_config.json`.
pub(super) fn settings(config: &Config) -> Value {
    let [bos, eos, pad] = match config.family {
        Family::DeepseekV32 => DEEPSEEK_FIRST.map(|name| json!(name)),
        Family::GlmMoeDsa => [Value::Null, json!(GLM[0]), json!(GLM[0])],
    };
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "add_eos_token": false,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": false,
        "model_max_length": config.max_position_embeddings,
    })
}

/// `chat_template.jinja`: turns of the family's form, without tools.
pub(super) fn template(config: &Config) -> &'static str {
    match config.family {
        Family::DeepseekV32 => DEEPSEEK_TEMPLATE,
        Family::GlmMoeDsa => GLM_TEMPLATE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        let letters = letters();
        assert_eq!(letters.iter().collect::<BTreeSet<_>>().len(), 256);
        assert_eq!((letters[0x41], letters[0x20], letters[0]), ('A', 'Ġ', 'Ā'));
        assert!(letters.iter().all(|letter| !letter.is_whitespace() && !letter.is_control()));
    }

    #[test]
    fn tokens_are_of_the_vocabulary_and_no_two_have_one_number() {
        use crate::make_tiny::{Like, MakeTiny};
        for like in [Like::DeepseekV32, Like::Glm5, Like::Glm52] {
            for true_dims in [false, true] {
                let make = MakeTiny { true_dims, layers: Some(4), ..MakeTiny::like(like) };
                let config = make.checked().unwrap().config().clone();
                let made = tokenizer(&config);
                let vocab = made["model"]["vocab"].as_object().unwrap();
                let bytes = vocab.values().map(|id| id.as_u64().unwrap());
                let added = made["added_tokens"].as_array().unwrap();
                let named = |token: &Value| {
                    (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_string())
                };
                let controls: Vec<_> = added.iter().map(named).collect();
                let all: BTreeSet<u64> = bytes.chain(controls.iter().map(|(id, _)| *id)).collect();
                assert_eq!(all.len(), 256 + controls.len());
                assert!(all.last().is_some_and(|id| *id < config.vocab_size as u64));
                // What ends a text in the configuration is what is named so.
                let name = |id: u32| {
                    controls.iter().find(|(at, _)| *at == u64::from(id)).unwrap().1.clone()
                };
                let ends: Vec<_> = config.eos_token_id.iter().map(|id| name(*id)).collect();
                match config.family {
                    Family::DeepseekV32 => assert_eq!(ends, ["<｜end▁of▁sentence｜>"]),
                    Family::GlmMoeDsa => {
                        assert_eq!(ends, ["<|endoftext|>", "<|user|>", "<|observation|>"]);
                    }
                }
            }
        }
    }
}
