//! The names of a checkpoint in the layout of DeepSeek-V3.2's inference demo, and what of each tensor a rank holds.
//!
//! Source: `convert.py` of the DeepSeek-V3.2-Exp inference demo.

/// Names of Hugging Face and of the demo, of what a weight belongs to. Others are the same in both.
const NAMES: [(&str, &str); 14] = [
    ("embed_tokens", "embed"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("q_a_proj", "wq_a"),
    ("q_a_layernorm", "q_norm"),
    ("q_b_proj", "wq_b"),
    ("kv_a_proj_with_mqa", "wkv_a"),
    ("kv_a_layernorm", "kv_norm"),
    ("kv_b_proj", "wkv_b"),
    ("o_proj", "wo"),
    ("gate_proj", "w1"),
    ("down_proj", "w2"),
    ("up_proj", "w3"),
    ("lm_head", "head"),
];

/// The parts of a layer likewise.
const PARTS: [(&str, &str); 2] = [("self_attn", "attn"), ("mlp", "ffn")];

/// What a rank holds of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// All of it, as every rank does.
    Whole,
    /// An equal part of this axis.
    Axis(usize),
    /// All of it if the expert of this number is the rank's.
    Expert(usize),
}

/// The demo's name of the tensor that Hugging Face calls `name`.
pub(super) fn to_demo(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let mut parts: Vec<&str> = name.split('.').collect();
    let of_indexer = parts.contains(&"indexer");
    for part in &mut parts {
        *part = swapped(&PARTS, part, |(theirs, ours)| (theirs, ours));
    }
    if let [.., of, leaf] = &mut parts[..] {
        // The indexer has a wq_b of its own, which is that in both.
        if !of_indexer {
            *of = swapped(&NAMES, of, |(theirs, ours)| (theirs, ours));
        }
        *leaf = match *leaf {
            "weight_scale_inv" | "weight_scale" => "scale",
            "e_score_correction_bias" => "bias",
            other => other,
        };
    }
    parts.join(".")
}

/// The name that Hugging Face has for the demo's `name`.
pub(super) fn to_hugging_face(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let of_indexer = parts.contains(&"indexer");
    for part in &mut parts {
        *part = swapped(&PARTS, part, |(theirs, ours)| (ours, theirs));
    }
    if let [.., of, leaf] = &mut parts[..] {
        *leaf = match (*of, *leaf) {
            (_, "scale") => "weight_scale_inv",
            ("gate", "bias") => "e_score_correction_bias",
            (_, other) => other,
        };
        if !of_indexer {
            *of = swapped(&NAMES, of, |(theirs, ours)| (ours, theirs));
        }
    }
    let name = parts.join(".");
    if name.starts_with("lm_head.") { name } else { format!("model.{name}") }
}

fn swapped<'a>(
    names: &[(&'static str, &'static str)],
    name: &'a str,
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> &'a str {
    let found = names.iter().map(|names| order(*names)).find(|(from, _)| *from == name);
    found.map_or(name, |(_, to)| to)
}

/// What a rank holds of the tensor that Hugging Face calls `name`, and of its scales alike.
pub(super) fn share(name: &str) -> Share {
    let parts: Vec<&str> = name.split('.').collect();
    let expert = parts.windows(2).find(|pair| pair[0] == "experts").map(|pair| pair[1].parse());
    if let Some(Ok(expert)) = expert {
        return Share::Expert(expert);
    }
    match parts.iter().rev().nth(1).copied() {
        Some("embed_tokens" | "q_b_proj" | "kv_b_proj" | "gate_proj" | "up_proj" | "lm_head") => {
            Share::Axis(0)
        }
        Some("o_proj" | "down_proj") => Share::Axis(1),
        _ => Share::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::weights::manifest;

    #[test]
    fn every_name_of_a_model_has_one_in_the_demo_and_comes_back() {
        let config = Config::scaled(32).unwrap();
        let mut names: Vec<String> = manifest(&config).into_iter().map(|(name, _)| name).collect();
        let scales: Vec<String> = names.iter().map(|name| format!("{name}_scale_inv")).collect();
        names.extend(scales.into_iter().filter(|name| name.ends_with("weight_scale_inv")));
        let mut seen = std::collections::BTreeSet::new();
        for name in &names {
            let demo = to_demo(name);
            assert_eq!(&to_hugging_face(&demo), name, "{demo}");
            assert!(seen.insert(demo), "{name}");
        }
        for (name, demo, of) in [
            (
                "model.layers.3.self_attn.q_b_proj.weight_scale_inv",
                "layers.3.attn.wq_b.scale",
                Share::Axis(0),
            ),
            (
                "model.layers.3.self_attn.indexer.wq_b.weight",
                "layers.3.attn.indexer.wq_b.weight",
                Share::Whole,
            ),
            (
                "model.layers.3.mlp.experts.7.down_proj.weight",
                "layers.3.ffn.experts.7.w2.weight",
                Share::Expert(7),
            ),
            (
                "model.layers.3.mlp.shared_experts.down_proj.weight",
                "layers.3.ffn.shared_experts.w2.weight",
                Share::Axis(1),
            ),
            (
                "model.layers.3.mlp.gate.e_score_correction_bias",
                "layers.3.ffn.gate.bias",
                Share::Whole,
            ),
            ("lm_head.weight", "head.weight", Share::Axis(0)),
            ("model.norm.weight", "norm.weight", Share::Whole),
        ] {
            assert_eq!((to_demo(name), share(name)), (demo.to_string(), of));
        }
    }
}
