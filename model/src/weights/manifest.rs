//! Every tensor of a model by its Hugging Face name and shape: what a checkpoint must hold, and all it may.

use std::collections::{BTreeSet, HashMap};

use super::Checkpoint;
use crate::config::{Config, Indexer};
use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// The tensors that the model of `config` reads: names, and shapes (a matrix is `[out, in]`).
///
/// Scales of quantised matrices are not among them.
pub fn manifest(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (c, hidden) = (config, config.hidden_size);
    let mut all = List(Vec::new());
    all.add("model.embed_tokens.weight", &[c.vocab_size, hidden]);
    for layer in 0..c.num_hidden_layers {
        let at = format!("model.layers.{layer}");
        all.add(&format!("{at}.input_layernorm.weight"), &[hidden]);
        all.attention(&format!("{at}.self_attn"), c);
        if c.indexer_of(layer) == Indexer::Full {
            all.indexer(&format!("{at}.self_attn.indexer"), c);
        }
        all.add(&format!("{at}.post_attention_layernorm.weight"), &[hidden]);
        match c.is_moe_layer(layer) {
            true => all.experts(&format!("{at}.mlp"), c),
            false => all.feed_forward(&format!("{at}.mlp"), hidden, c.intermediate_size),
        }
    }
    all.add("model.norm.weight", &[hidden]);
    all.add("lm_head.weight", &[c.vocab_size, hidden]);
    all.0
}

struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_string(), shape.to_vec()));
    }

    fn attention(&mut self, at: &str, c: &Config) {
        let (hidden, heads, query) = (c.hidden_size, c.num_attention_heads, c.q_lora_rank);
        let (rank, expanded) = (c.kv_lora_rank, c.qk_nope_head_dim + c.v_head_dim);
        self.add(&format!("{at}.q_a_proj.weight"), &[query, hidden]);
        self.add(&format!("{at}.q_a_layernorm.weight"), &[query]);
        self.add(&format!("{at}.q_b_proj.weight"), &[heads * c.qk_head_dim(), query]);
        self.add(&format!("{at}.kv_a_proj_with_mqa.weight"), &[c.latent_dim(), hidden]);
        self.add(&format!("{at}.kv_a_layernorm.weight"), &[rank]);
        self.add(&format!("{at}.kv_b_proj.weight"), &[heads * expanded, rank]);
        self.add(&format!("{at}.o_proj.weight"), &[hidden, heads * c.v_head_dim]);
    }

    fn indexer(&mut self, at: &str, c: &Config) {
        let (n, dim) = (c.index_n_heads, c.index_head_dim);
        self.add(&format!("{at}.wq_b.weight"), &[n * dim, c.q_lora_rank]);
        self.add(&format!("{at}.wk.weight"), &[dim, c.hidden_size]);
        self.add(&format!("{at}.k_norm.weight"), &[dim]);
        self.add(&format!("{at}.k_norm.bias"), &[dim]);
        self.add(&format!("{at}.weights_proj.weight"), &[n, c.hidden_size]);
    }

    fn experts(&mut self, at: &str, c: &Config) {
        let (hidden, inner) = (c.hidden_size, c.moe_intermediate_size);
        self.add(&format!("{at}.gate.weight"), &[c.n_routed_experts, hidden]);
        self.add(&format!("{at}.gate.e_score_correction_bias"), &[c.n_routed_experts]);
        for expert in 0..c.n_routed_experts {
            self.feed_forward(&format!("{at}.experts.{expert}"), hidden, inner);
        }
        self.feed_forward(&format!("{at}.shared_experts"), hidden, inner * c.n_shared_experts);
    }

    fn feed_forward(&mut self, at: &str, hidden: usize, inner: usize) {
        self.add(&format!("{at}.gate_proj.weight"), &[inner, hidden]);
        self.add(&format!("{at}.up_proj.weight"), &[inner, hidden]);
        self.add(&format!("{at}.down_proj.weight"), &[hidden, inner]);
    }
}

impl Checkpoint {
    /// Checks that every tensor of the model of `config` is here in its shape and of a type that can be read, and that
    /// nothing else is. As many layers behind the last as `num_nextn_predict_layers` says may hold anything. No weight is
    /// read.
    ///
    /// The weights of an indexer in a layer that shares another's keys may be here, and so may the table of
    /// frequencies that old writers stored; neither is read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`], [`Error::Unread`].
    pub fn expect(&self, config: &Config) -> Result<()> {
        let expected: HashMap<String, Vec<usize>> = manifest(config).into_iter().collect();
        // In alphabetical order, so that of several errors the same is said each time.
        let mut names: Vec<&String> = expected.keys().collect();
        names.sort();
        names.into_iter().try_for_each(|name| self.check(name, &expected[name]))?;
        let scale = |name: &str| self.scaled_by(name).is_some_and(|w| expected.contains_key(w));
        let behind = self.layers_behind(config);
        let known = |name: &&str| {
            expected.contains_key(*name) || scale(name) || free(name, config, &behind)
        };
        match self.names().find(|name| !known(name)) {
            Some(name) => Err(Error::Unread(name.to_string())),
            None => Ok(()),
        }
    }

    /// The layers behind the last that may hold anything: those of multi-token prediction. They are told by their
    /// number, 61 or 78, which a copy with fewer layers keeps; more of them than there are must be something else.
    fn layers_behind(&self, config: &Config) -> BTreeSet<usize> {
        let layers = self.names().filter_map(layer_of).map(|(layer, _)| layer);
        let behind: BTreeSet<usize> = layers.filter(|n| *n >= config.num_hidden_layers).collect();
        if behind.len() <= config.num_nextn_predict_layers { behind } else { BTreeSet::new() }
    }
}

/// The number of the layer of a tensor, and its name there.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Whether the tensor `name` may be there and is not read.
fn free(name: &str, config: &Config, behind: &BTreeSet<usize>) -> bool {
    let Some((layer, rest)) = layer_of(name) else {
        return false;
    };
    let shares = layer < config.num_hidden_layers && config.indexer_of(layer) != Indexer::Full;
    behind.contains(&layer)
        || (shares && rest.starts_with("self_attn.indexer."))
        || (layer < config.num_hidden_layers && rest == "self_attn.rotary_emb.inv_freq")
}
