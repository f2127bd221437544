//! The bounds that every [`Config`] keeps, and the errors of those that do not.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{AttentionOptions, Config, QUANT_BLOCK, sharing};
use crate::error::{Error, Result};

/// Kernels index the elements of one tensor with 32 bits.
const MAX_ELEMENTS: usize = u32::MAX as usize;
/// Positions are turned into f32 for the rotary angle, which is exact up to here.
pub(super) const MAX_POSITIONS: usize = 1 << 24;

impl Config {
    /// Checks every bound; whoever builds a configuration by hand calls it.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that is out of bounds.
    pub fn validate(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_indexers()?;
        self.check_rotary()?;
        self.check_experts()?;
        self.check_options()?;
        self.check_products()
    }

    /// The bounds of single fields.
    fn check_sizes(&self) -> Result<()> {
        within(
            1..=1 << 20,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("moe_intermediate_size", self.moe_intermediate_size),
                ("q_lora_rank", self.q_lora_rank),
                ("kv_lora_rank", self.kv_lora_rank),
            ],
        )?;
        within(
            1..=4096,
            &[
                ("num_attention_heads", self.num_attention_heads),
                ("qk_nope_head_dim", self.qk_nope_head_dim),
                ("qk_rope_head_dim", self.qk_rope_head_dim),
                ("v_head_dim", self.v_head_dim),
                ("index_n_heads", self.index_n_heads),
            ],
        )?;
        within(
            1..=MAX_POSITIONS,
            &[
                ("index_topk", self.index_topk),
                ("max_position_embeddings", self.max_position_embeddings),
                ("vocab_size", self.vocab_size),
            ],
        )?;
        let (layers, dense) = (self.num_hidden_layers, self.first_k_dense_replace);
        check_layers(layers)?;
        within(0..=layers, &[("first_k_dense_replace", dense)])?;
        let extra = self.num_nextn_predict_layers;
        within(0..=16, &[("num_nextn_predict_layers", extra)])?;
        within(1e-12..=0.1, &[("rms_norm_eps", self.rms_norm_eps)])?;
        let field = "attention_options.latent_norm_eps";
        within(1e-12..=0.1, &[(field, self.latent_norm_eps)])?;
        let last = self.vocab_size as u32 - 1;
        let first = self.bos_token_id.map(|id| ("bos_token_id", id));
        within(0..=last, first.as_slice())?;
        let ends = self.eos_token_id.iter();
        ends.copied().try_for_each(|id| within(0..=last, &[("eos_token_id", id)]))
    }

    /// Every layer has an indexer, or one before it whose keys it takes.
    fn check_indexers(&self) -> Result<()> {
        let types = self.indexer_types.as_deref();
        match types.and_then(|types| sharing::broken_rule(types, self.num_hidden_layers)) {
            None => Ok(()),
            Some((value, rule)) => Err(Error::config("indexer_types", value, rule)),
        }
    }

    /// The bounds of the rotary embedding.
    fn check_rotary(&self) -> Result<()> {
        let (rope, index) = (self.qk_rope_head_dim, self.index_head_dim);
        let expected = "an even number (values rotate in pairs)";
        check(rope.is_multiple_of(2), "qk_rope_head_dim", rope, expected)?;
        within(rope..=4096, &[("index_head_dim", index)])?;
        within(2.0..=1e12, &[("rope_theta", self.rope_theta)])?;
        let Some(yarn) = &self.rope_scaling else {
            return Ok(());
        };
        within(1.0..=1e6, &[("rope_scaling.factor", yarn.factor)])?;
        let (slow, fast) = (yarn.beta_slow, yarn.beta_fast);
        within(1e-6..=1e6, &[("rope_scaling.beta_slow", slow)])?;
        within(slow..=1e6, &[("rope_scaling.beta_fast", fast)])?;
        let m = yarn.mscale_all_dim;
        within(0.0..=100.0, &[("rope_scaling.mscale_all_dim", m)])?;
        let expected = format!("mscale_all_dim = {m} (cos and sin stay unscaled)");
        check(yarn.mscale == m, "rope_scaling.mscale", yarn.mscale, expected)?;
        let original = yarn.original_max_position_embeddings;
        let field = "rope_scaling.original_max_position_embeddings";
        within(1..=MAX_POSITIONS, &[(field, original)])
    }

    /// The bounds of the experts and their groups.
    fn check_experts(&self) -> Result<()> {
        let (experts, groups) = (self.n_routed_experts, self.n_group);
        within(1..=1 << 14, &[("n_routed_experts", experts)])?;
        within(1..=64, &[("n_shared_experts", self.n_shared_experts)])?;
        within(1..=experts, &[("n_group", groups)])?;
        let expected = format!("a divisor of n_routed_experts = {experts}");
        check(experts.is_multiple_of(groups), "n_group", groups, expected)?;
        let group = experts / groups;
        let expected = format!("at least 2 of n_routed_experts = {experts} in a group");
        check(groups == 1 || group >= 2, "n_group", groups, expected)?;
        within(1..=groups, &[("topk_group", self.topk_group)])?;
        let most = self.topk_group * group;
        within(1..=most, &[("num_experts_per_tok", self.num_experts_per_tok)])?;
        let factor = self.routed_scaling_factor;
        within(1e-6..=1e6, &[("routed_scaling_factor", factor)])
    }

    /// What the lossy steps of the attention ask of the widths.
    fn check_options(&self) -> Result<()> {
        let AttentionOptions { hadamard, index_fp8, kv_fp8 } = self.attention_options;
        let (index, latent) = (self.index_head_dim, self.kv_lora_rank);
        let right = !hadamard || index.is_power_of_two();
        let expected = "a power of two (attention_options.hadamard is on)";
        check(right, "index_head_dim", index, expected)?;
        let right = !index_fp8 || index <= QUANT_BLOCK;
        let expected = "at most 128: one scale a vector (attention_options.index_fp8 is on)";
        check(right, "index_head_dim", index, expected)?;
        let blocks = latent < QUANT_BLOCK || latent.is_multiple_of(QUANT_BLOCK);
        let expected = "a multiple of 128, or less (attention_options.kv_fp8 is on)";
        check(!kv_fp8 || blocks, "kv_lora_rank", latent, expected)
    }

    /// No weight has more elements than 32 bits can index. The factors are bounded by now, so that what
    /// is counted in 64 bits cannot overflow either: the bytes of all experts of a layer stay below
    /// 2^14 · 2^32 · 4 = 2^48 for each of their three matrices, those of all layers below 2^60.
    fn check_products(&self) -> Result<()> {
        let (hidden, heads, query) = (self.hidden_size, self.num_attention_heads, self.q_lora_rank);
        let shared = self.moe_intermediate_size * self.n_shared_experts;
        let expanded = self.qk_nope_head_dim + self.v_head_dim;
        let weights = [
            ("embed_tokens", [self.vocab_size, hidden, 1]),
            ("gate_proj", [self.intermediate_size, hidden, 1]),
            ("shared_experts.gate_proj", [shared, hidden, 1]),
            ("gate", [self.n_routed_experts, hidden, 1]),
            ("q_a_proj", [query, hidden, 1]),
            ("q_b_proj", [heads, self.qk_head_dim(), query]),
            ("kv_a_proj_with_mqa", [self.latent_dim(), hidden, 1]),
            ("kv_b_proj", [heads, expanded, self.kv_lora_rank]),
            ("o_proj", [heads, self.v_head_dim, hidden]),
            ("indexer.wq_b", [self.index_n_heads, self.index_head_dim, query]),
            ("indexer.wk", [self.index_head_dim, hidden, 1]),
            ("indexer.weights_proj", [self.index_n_heads, hidden, 1]),
        ];
        for (name, [a, b, c]) in weights {
            let elements = a.checked_mul(b).and_then(|ab| ab.checked_mul(c));
            let right = elements.is_some_and(|n| n <= MAX_ELEMENTS);
            let expected = format!("a product of at most {MAX_ELEMENTS} (elements of one weight)");
            let field = format!("the size of {name}.weight");
            check(right, &field, format!("{a} × {b} × {c}"), expected)?;
        }
        Ok(())
    }
}

/// The bound that whatever is made for each layer relies on.
pub(super) fn check_layers(layers: usize) -> Result<()> {
    within(1..=1024, &[("num_hidden_layers", layers)])
}

/// Fails with the first of `fields` that is not in `range`.
fn within<T>(range: RangeInclusive<T>, fields: &[(&str, T)]) -> Result<()>
where
    T: PartialOrd + Display,
{
    fields.iter().try_for_each(|(field, value)| {
        let expected = format!("{} to {}", range.start(), range.end());
        check(range.contains(value), field, value, expected)
    })
}

/// Fails with `field`, `value` and what was expected, unless `right`.
pub(super) fn check(
    right: bool,
    field: &str,
    value: impl ToString,
    expected: impl Into<String>,
) -> Result<()> {
    if right { Ok(()) } else { Err(Error::config(field, value, expected)) }
}
