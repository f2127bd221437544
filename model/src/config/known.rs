//! The closed set of fields: what decides the result is understood or refused, never passed over.
//!
//! Three lists for a Hugging Face file. What is in none of them is refused by name, with the nearest
//! name that is. A field that is `null` is absent.
//!
//! | list | a field of it |
//! |---|---|
//! | [`READ`] | is read, and decides |
//! | [`fixed`] | decides elsewhere; here it has one value, any other is refused |
//! | [`FREE`] | decides nothing that this crate computes, whatever its value |
//!
//! Sources: the classes `DeepseekV3Config`, `DeepseekV32Config`, `GlmMoeDsaConfig` and their base
//! `PreTrainedConfig` in transformers 5, `modeling_rope_utils` there, what the models of vLLM and SGLang
//! ask of `hf_config`, and the published files of DeepSeek-V3.2-Exp, V3.2 and GLM-5.

use serde_json::{Value, json};

use super::Config;
use super::fields::Fields;
use crate::error::Result;

/// A field, and why it is in its list.
pub(super) type Known = (&'static str, &'static str);

/// Fields that are read.
pub(super) const READ: &[Known] = &[
    ("architectures", "the class of the model: must be one that this crate computes"),
    ("attention_options", "our own: the lossy steps of the attention"),
    ("bos_token_id", "first token of a text"),
    ("eos_token_id", "tokens that end a text"),
    ("first_k_dense_replace", "layers without experts"),
    ("hidden_size", "width of the residual stream"),
    ("index_head_dim", "width of an indexer head"),
    ("index_n_heads", "heads of the indexer"),
    ("index_skip_topk_offset", "with index_topk_freq: which layers choose their keys"),
    ("index_topk", "keys that a query keeps"),
    ("index_topk_freq", "every how many layers one chooses its keys"),
    ("index_topk_pattern", "which layers choose their keys, in letters"),
    ("indexer_rope_interleave", "which values of an indexer head rotate together"),
    ("indexer_rope_interleaved", "the same, spelled as in the text of the models"),
    ("indexer_types", "which layers choose their keys"),
    ("intermediate_size", "inner width of a dense feed-forward"),
    ("kv_lora_rank", "width of the latent"),
    ("layer_types", "what attention a layer has: must be sparse in all"),
    ("max_position_embeddings", "positions"),
    ("mlp_layer_types", "which layers have experts"),
    ("model_type", "the family: decides defaults, others are refused"),
    ("moe_intermediate_size", "inner width of an expert"),
    ("n_group", "groups of experts"),
    ("n_routed_experts", "experts"),
    ("n_shared_experts", "experts of every token"),
    ("norm_topk_prob", "whether gates are divided by their sum"),
    ("num_attention_heads", "heads"),
    ("num_experts", "another name of n_routed_experts: must say the same"),
    ("num_experts_per_tok", "experts of a token"),
    ("num_hidden_layers", "layers"),
    ("num_key_value_heads", "the latent is expanded to all heads: must be num_attention_heads"),
    ("num_local_experts", "another name of n_routed_experts: must say the same"),
    ("num_nextn_predict_layers", "layers at the end that are not run"),
    ("q_lora_rank", "width of the compressed query"),
    ("qk_head_dim", "must be qk_nope_head_dim + qk_rope_head_dim"),
    ("qk_nope_head_dim", "width of a head without position"),
    ("qk_rope_head_dim", "width of a head with position"),
    ("quantization_config", "how weights are stored, and how scales are rounded"),
    ("rms_norm_eps", "added to the mean square in the norms"),
    ("rope_interleave", "which values of an attention head rotate together"),
    ("rope_parameters", "rotary frequencies, the newer spelling"),
    ("rope_scaling", "rotary frequencies, the older spelling"),
    ("rope_theta", "base of the rotary frequencies"),
    ("routed_scaling_factor", "factor on the gates"),
    ("topk_group", "groups of a token"),
    ("use_index_cache", "vLLM's switch of shared keys: must be on where layers share them"),
    ("v_head_dim", "width of a head's value"),
    ("vocab_size", "rows of the embedding"),
];

/// Fields with the one value that is supported, which is also what their absence means, and why.
pub(super) fn fixed() -> [(&'static str, Value, &'static str); 26] {
    [
        ("add_cross_attention", json!(false), "a decoder alone"),
        ("attention_bias", json!(false), "no linear of the model has a bias"),
        ("attention_dropout", json!(0), "nothing is dropped at inference"),
        ("attn_logit_softcapping", Value::Null, "scores are not capped"),
        ("dequantize", json!(false), "weights are read as they are stored"),
        ("final_logit_softcapping", Value::Null, "logits are not capped"),
        ("hidden_act", json!("silu"), "the gate of every feed-forward"),
        ("hidden_dropout", json!(0), "nothing is dropped at inference"),
        ("index_kpool", json!(1), "GLM-5.3 pools keys before it scores them"),
        ("is_encoder_decoder", json!(false), "a decoder alone"),
        ("mla_use_nope", json!(false), "layers without position"),
        ("mlp_bias", json!(false), "no linear of the model has a bias"),
        ("moe_layer_freq", json!(1), "every layer after the dense ones has experts"),
        ("moe_router_dtype", json!("float32"), "gates are computed in f32"),
        ("partial_rotary_factor", json!(1), "all of qk_rope_head_dim rotates"),
        ("router_jitter_noise", json!(0), "gates get no noise"),
        ("scoring_func", json!("sigmoid"), "how a gate is made of its logit"),
        ("sliding_window", Value::Null, "the indexer may select any earlier key"),
        ("swiglu_limit", Value::Null, "DeepSeek-V4 and Hy4 clamp the feed-forward"),
        ("tie_encoder_decoder", json!(false), "a decoder alone"),
        ("tie_word_embeddings", json!(false), "the head has weights of its own"),
        ("topk_method", json!("noaux_tc"), "how experts are chosen"),
        ("use_bidirectional_attention", json!(false), "a token sees what came before it"),
        ("use_qk_norm", json!(false), "heads are not normalised"),
        ("use_sliding_window", json!(false), "the indexer may select any earlier key"),
        ("chunk_size_feed_forward", json!(0), "a whole chunk goes through a layer at once"),
    ]
}

/// Fields that decide nothing here, whatever their value.
pub(super) const FREE: &[Known] = &[
    ("_attn_implementation", "which code computes the attention"),
    ("_experts_implementation", "which code computes the experts"),
    ("_name_or_path", "where the file came from"),
    ("attn_implementation", "which code computes the attention"),
    ("auto_map", "which code reads the file"),
    ("aux_loss_alpha", "training"),
    ("decoder_start_token_id", "generation"),
    ("do_sample", "generation"),
    ("dtype", "the type of the weights in memory: each tensor has its own in its file"),
    ("ep_size", "how many devices share the experts"),
    ("forced_bos_token_id", "generation"),
    ("forced_eos_token_id", "generation"),
    ("head_dim", "transformers and vLLM take the widths of MLA instead"),
    ("id2label", "classification"),
    ("index_share_for_mtp_iteration", "the extra layers at the end are not run"),
    ("initializer_range", "training"),
    ("is_decoder", "a name from models with an encoder"),
    ("label2id", "classification"),
    ("max_length", "generation"),
    ("max_new_tokens", "generation"),
    ("min_length", "generation"),
    ("name_or_path", "where the file came from"),
    ("output_attentions", "what else the model returns"),
    ("output_hidden_states", "what else the model returns"),
    ("output_router_logits", "what else the model returns"),
    ("pad_token_id", "padding never reaches the model"),
    ("pretraining_tp", "how training was divided"),
    ("problem_type", "classification"),
    ("return_dict", "the form in which results are returned"),
    ("router_aux_loss_coef", "training"),
    ("sep_token_id", "generation"),
    ("seq_aux", "training"),
    ("task_specific_params", "generation"),
    ("temperature", "generation"),
    ("tokenizer_class", "the tokenizer"),
    ("top_k", "generation: how many tokens are sampled from"),
    ("top_p", "generation"),
    ("torch_dtype", "as dtype"),
    ("torchscript", "how the model is exported"),
    ("transformers_version", "who wrote the file"),
    ("use_cache", "whether decoding keeps its keys: the result is the same"),
];

/// What a layer's attention is called where it is the sparse one.
const SPARSE_LAYERS: [&str; 2] = ["deepseek_sparse_attention", "indexed_attention"];

/// Refuses what would make the same weights compute something else than this crate does, and what
/// nobody knows.
pub(super) fn check_supported(f: &Fields, config: &Config) -> Result<()> {
    let fixed = fixed();
    for (name, value, _) in &fixed {
        f.must_be(name, value)?;
    }
    let names = READ.iter().chain(FREE).map(|(name, _)| *name);
    f.only(names.chain(fixed.iter().map(|(name, ..)| *name)))?;
    f.must_be("num_key_value_heads", &json!(config.num_attention_heads))?;
    f.must_be("qk_head_dim", &json!(config.qk_head_dim()))?;
    for name in ["num_experts", "num_local_experts"] {
        f.must_be(name, &json!(config.n_routed_experts))?;
    }
    all_of(f, "architectures", &config.family.classes(), None)?;
    all_of(f, "layer_types", &SPARSE_LAYERS, Some(config.num_hidden_layers))
}

/// A list of texts, each among `allowed`; `len` of them if that is known.
fn all_of(f: &Fields, name: &str, allowed: &[&str], len: Option<usize>) -> Result<()> {
    let Some(texts) = f.optional::<Vec<String>>(name)? else {
        return Ok(());
    };
    let expected = allowed.join(" or ");
    if let Some(other) = texts.iter().find(|text| !allowed.contains(&text.as_str())) {
        return Err(f.error(name, format!("{other:?} for one of them"), &expected));
    }
    let right = len.is_none_or(|len| texts.len() == len) && !texts.is_empty();
    let expected = len.map_or("at least one".into(), |len| format!("one for each of {len} layers"));
    f.check(right, name, format!("a list of {}", texts.len()), &expected)
}
