//! What decides the result, in words: so that who runs a model sees what was understood of its file.

use super::{Config, Overridden};

impl Config {
    /// Name and value of everything that decides what the model computes, beside its sizes, and what the
    /// command line replaced.
    pub fn deciding(&self) -> Vec<(String, String)> {
        let yarn = match &self.rope_scaling {
            None => "none: plain rotary embedding".to_string(),
            Some(y) => format!(
                "factor {}, original length {}, beta {} to {}, mscale {}, mscale_all_dim {}",
                y.factor,
                y.original_max_position_embeddings,
                y.beta_fast,
                y.beta_slow,
                y.mscale,
                y.mscale_all_dim
            ),
        };
        let pairing = |interleaved| match interleaved {
            true => "interleaved, (2i, 2i+1)",
            false => "half split, (i, i+d/2)",
        };
        let weights = match self.quantization {
            None => "as stored, no fp8 by the configuration".to_string(),
            Some(_) => "fp8 (e4m3), a scale for each 128 x 128, dequantised when read".to_string(),
        };
        let scales = if self.ue8m0() { "powers of two (ue8m0)" } else { "f32 (float)" };
        let options = &self.attention_options;
        let keys = match options.index_fp8 {
            true => format!("fp8, scales {scales}"),
            false => "not rounded".to_string(),
        };
        let latent = match options.kv_fp8 {
            true => format!("through fp8 and back, scales {scales}"),
            false => "not rounded".to_string(),
        };
        let (topk, eps, latent_eps) = (self.index_topk, self.rms_norm_eps, self.latent_norm_eps);
        let (layers, indexers) = (self.num_hidden_layers, self.indexers());
        let sharing = match layers - indexers {
            0 => format!("an indexer in each of {layers} layers"),
            shared => format!(
                "an indexer in {indexers} of {layers} layers, {shared} take the keys of one before: {}",
                self.index_pattern()
            ),
        };
        let mut deciding = [
            ("family", self.family.model_type().to_string()),
            ("rope theta", self.rope_theta.to_string()),
            ("YaRN", yarn),
            ("softmax scale", format!("{:.10}", self.softmax_scale())),
            ("rotary pairs, attention", pairing(self.rope_interleaved).to_string()),
            ("rotary pairs, indexer", pairing(self.indexer_rope_interleaved).to_string()),
            ("indexer", format!("{topk} keys kept, scale {:.10}", self.index_scale())),
            ("index sharing", sharing),
            (
                "eps of the norms",
                format!("{eps:e}; of the latents' {latent_eps:e}; of the indexer's LayerNorm 1e-6"),
            ),
            ("experts", self.routing()),
            ("weights", weights),
            ("lossy step: Hadamard", if options.hadamard { "on" } else { "off" }.to_string()),
            ("lossy step: indexer's queries and keys", keys),
            ("lossy step: latent in the cache", latent),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec();
        let replaced = |one: &Overridden| ("override".to_string(), one.to_string());
        deciding.extend(self.overrides.iter().map(replaced));
        deciding
    }

    /// How a token's experts are chosen and weighed.
    fn routing(&self) -> String {
        let groups = match self.n_group {
            1 => String::new(),
            groups => format!(" in {} of {groups} groups", self.topk_group),
        };
        let norm = if self.norm_topk_prob { "divided by their sum" } else { "as they are" };
        format!(
            "{} of {}{groups}, gates sigmoid, {norm}, times {}; {} for every token; none in the first \
             {} layers",
            self.num_experts_per_tok,
            self.n_routed_experts,
            self.routed_scaling_factor,
            self.n_shared_experts,
            self.first_k_dense_replace
        )
    }
}
