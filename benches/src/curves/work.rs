//! What one call of a layer has to do.

use super::{Layer, Plan, Point, WeightType};
use dsa_figures::{Stage, Variant};
use dsa_kernels::DType;

impl Plan {
    /// FLOP of one call by the type of its products, and the bytes that it must move at the least: every weight that
    /// is used, those of `visited` routed experts among them, and what is read of the cache.
    pub fn work(&self, point: Point, visited: usize) -> (Vec<(DType, f64)>, f64) {
        let c = &self.config;
        let (heads, rank, rope) = (c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim);
        let (latent, qk, v, hidden) =
            (c.latent_dim(), c.qk_head_dim(), c.v_head_dim, c.hidden_size);
        let tokens = self.tokens(point) as f64;
        // A chunk's tokens see half of the chunk on average.
        let seen = point.context as f64 - (self.chunk(point) as f64 - 1.0) / 2.0;
        let sparse = point.variant == Variant::V32Exp;
        let kept = if sparse { seen.min(c.index_topk as f64) } else { seen };

        let queries = hidden * c.q_lora_rank + c.q_lora_rank * heads * qk;
        let keys = hidden * (rank + rope) + rank * heads * (c.qk_nope_head_dim + v);
        let indexer = c.q_lora_rank * c.index_n_heads * c.index_head_dim
            + hidden * (c.index_head_dim + c.index_n_heads);
        let attention = queries + keys + heads * v * hidden + if sparse { indexer } else { 0 };
        let network = |inner| (3 * hidden * inner) as f64;
        let (mlp, touched) = match self.layer {
            Layer::Dense => (network(c.intermediate_size), network(c.intermediate_size)),
            Layer::Experts => {
                let (chosen, shared) = (c.num_experts_per_tok as f64, c.n_shared_experts as f64);
                let expert = network(c.moe_intermediate_size);
                ((chosen + shared) * expert, (visited as f64 + shared) * expert)
            }
        };
        let linear = 2.0 * tokens * (attention as f64 + mlp);
        let scores = match sparse {
            true => 2.0 * tokens * seen * (c.index_n_heads * c.index_head_dim) as f64,
            false => 0.0,
        };
        let expanded = !sparse && point.stage == Stage::Prefill;
        let width = heads * if expanded { qk + v } else { latent + rank };
        let products = 2.0 * tokens * kept * width as f64;

        let (of_weights, size) = match self.weights {
            WeightType::Fp8 => (DType::E4m3, 1.0),
            WeightType::Bf16 => (DType::Bf16, 2.0),
        };
        // A prompt reads the context once, requests each their own.
        let readers = if point.stage == Stage::Prefill { 1.0 } else { tokens };
        let row = if expanded { heads * (qk + v) } else { latent } as f64 * 2.0;
        let rows = if point.stage == Stage::Prefill { seen } else { kept };
        let index_row = if sparse { c.index_head_dim as f64 + 4.0 } else { 0.0 };
        let cache = readers * (rows * row + seen * index_row);
        let weights = size * (attention as f64 + touched);
        let scored = if c.attention_options.index_fp8 { DType::E4m3 } else { DType::Bf16 };
        (vec![(of_weights, linear), (scored, scores), (DType::Bf16, products)], weights + cache)
    }
}
