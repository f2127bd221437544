//! What decides the result, in words: so that who runs a model sees what was understood of its file.

use super::Config;

impl Config {
    /// Name and value of everything that decides what the attention computes, beside its sizes.
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
        let (topk, eps) = (self.index_topk, self.rms_norm_eps);
        [
            ("rope theta", self.rope_theta.to_string()),
            ("YaRN", yarn),
            ("softmax scale", format!("{:.10}", self.softmax_scale())),
            ("rotary pairs, attention", pairing(self.rope_interleaved).to_string()),
            ("rotary pairs, indexer", pairing(self.indexer_rope_interleaved).to_string()),
            ("indexer", format!("{topk} keys kept, scale {:.10}", self.index_scale())),
            ("eps of the norms", format!("{eps:e}; of the indexer's LayerNorm 1e-6")),
            ("weights", weights),
            ("lossy step: Hadamard", if options.hadamard { "on" } else { "off" }.to_string()),
            ("lossy step: indexer's queries and keys", keys),
            ("lossy step: latent in the cache", latent),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec()
    }
}
