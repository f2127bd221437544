//! How much work one token is: FLOP and bytes by stage, counted from the model's dimensions.
//!
//! Everything is for one token at position `context` (that many keys before it), one layer.

use crate::{Error, Stage, Variant};

/// Sizes of the model; the names are those of the published configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimensions {
    /// Layers.
    pub layers: u64,
    /// Layers at the start whose feed-forward part is dense.
    pub dense_layers: u64,
    /// Width of the residual stream.
    pub dim: u64,
    /// Inner width of a dense feed-forward part.
    pub inter_dim: u64,
    /// Inner width of one expert.
    pub moe_inter_dim: u64,
    /// Query heads.
    pub heads: u64,
    /// Width of the compressed query.
    pub q_lora_rank: u64,
    /// Width of the compressed key and value.
    pub kv_lora_rank: u64,
    /// Part of a head without a position.
    pub qk_nope_head_dim: u64,
    /// Part of a head with a rotary position.
    pub qk_rope_head_dim: u64,
    /// Width of a value head.
    pub v_head_dim: u64,
    /// Experts that the router chooses from.
    pub routed_experts: u64,
    /// Experts that every token visits.
    pub shared_experts: u64,
    /// Routed experts that a token visits.
    pub activated_experts: u64,
    /// Heads of the indexer.
    pub index_heads: u64,
    /// Width of an indexer head.
    pub index_head_dim: u64,
    /// Keys that the indexer keeps.
    pub index_topk: u64,
}

/// Work of one token in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenWork {
    /// Floating-point operations, a multiply-add being two.
    pub flop: f64,
    /// Bytes moved to or from the device's memory.
    pub bytes: f64,
}

/// Work of one token in one layer by stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerWork {
    /// The projections around attention.
    pub projections: TokenWork,
    /// The indexer: its projections and its scores. Nothing in V3.1.
    pub indexer: TokenWork,
    /// The choice of the best keys; comparisons are not counted as FLOP. Nothing in V3.1.
    pub top_k: TokenWork,
    /// Scores and sums over the keys, in the form with the fewest FLOP.
    pub attention: TokenWork,
    /// The feed-forward part, the mean over dense and expert layers.
    pub moe: TokenWork,
}

/// The ways to compute the attention of these models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
    /// All keys, keys and values expanded to every head.
    DenseMha,
    /// All keys, all heads against the one compressed key.
    DenseMqa,
    /// Chosen keys by a mask over all of them, expanded; dear per key kept, cheap when few.
    MaskedMha,
    /// Chosen keys gathered, all heads against the one compressed key.
    SparseMqa,
}

impl AttentionForm {
    /// The forms that a model may use in a stage (paper, section on inference costs: V3.2 runs a
    /// short prefill as masked MHA).
    pub fn choices(variant: Variant, stage: Stage) -> &'static [AttentionForm] {
        match (variant, stage) {
            (Variant::V32Exp, Stage::Prefill) => &[Self::MaskedMha, Self::SparseMqa],
            (Variant::V32Exp, Stage::Decode) => &[Self::SparseMqa],
            (_, Stage::Prefill) => &[Self::DenseMha],
            (_, Stage::Decode) => &[Self::DenseMqa],
        }
    }
}

impl Dimensions {
    /// DeepSeek-V3.2-Exp, its published configuration. V3.1 is the same without the indexer.
    pub const V32: Dimensions = Dimensions {
        layers: 61,
        dense_layers: 3,
        dim: 7168,
        inter_dim: 18432,
        moe_inter_dim: 2048,
        heads: 128,
        q_lora_rank: 1536,
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        routed_experts: 256,
        shared_experts: 1,
        activated_experts: 8,
        index_heads: 64,
        index_head_dim: 128,
        index_topk: 2048,
    };

    /// FLOP of one query with one expanded key and value: 2·heads·(nope + rope + v); 81,920.
    pub fn mha_flop_per_key(&self) -> u64 {
        2 * self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)
    }

    /// FLOP of one query with one compressed key: 2·heads·(2·kv_lora + rope); 278,528.
    pub fn mqa_flop_per_key(&self) -> u64 {
        2 * self.heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
    }

    /// Matrix FLOP of the indexer for one key: 2·heads·width; 16,384.
    pub fn index_flop_per_key(&self) -> u64 {
        2 * self.index_heads * self.index_head_dim
    }

    /// Vector FLOP of the indexer for one key (ReLU, weight, sum): 3·heads; 192.
    pub fn index_vector_flop_per_key(&self) -> u64 {
        3 * self.index_heads
    }

    /// Weights of the projections around attention, one layer; 187.1 million.
    pub fn projection_weights(&self) -> u64 {
        let qk = self.qk_nope_head_dim + self.qk_rope_head_dim;
        self.dim * self.q_lora_rank
            + self.q_lora_rank * self.heads * qk
            + self.dim * (self.kv_lora_rank + self.qk_rope_head_dim)
            + self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_head_dim)
            + self.heads * self.v_head_dim * self.dim
    }

    /// Weights of the indexer's three projections, one layer; 13.96 million.
    pub fn index_weights(&self) -> u64 {
        self.q_lora_rank * self.index_heads * self.index_head_dim
            + self.dim * (self.index_head_dim + self.index_heads)
    }

    /// Cache of one key in fp8: e4m3 with one fp32 scale each 128, bf16 rotary part; 656 bytes.
    pub fn kv_bytes_fp8(&self) -> u64 {
        self.kv_lora_rank + 4 * self.kv_lora_rank.div_ceil(128) + 2 * self.qk_rope_head_dim
    }

    /// Cache of one key in bf16; 1152 bytes.
    pub fn kv_bytes_bf16(&self) -> u64 {
        2 * (self.kv_lora_rank + self.qk_rope_head_dim)
    }

    /// Indexer cache of one key: e4m3 with one fp32 scale; 132 bytes.
    pub fn index_bytes(&self) -> u64 {
        self.index_head_dim + 4
    }

    /// Attention of one token in one form. Sparse decode gathers fp8, sparse prefill bf16, and a
    /// gather is never shared; dense forms share their keys between `sharing` queries (1 or more).
    pub fn attention(
        &self,
        form: AttentionForm,
        stage: Stage,
        context: u64,
        sharing: u64,
    ) -> TokenWork {
        let per_head = self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim;
        let gathered = match stage {
            Stage::Prefill => self.kv_bytes_bf16(),
            Stage::Decode => self.kv_bytes_fp8(),
        };
        let (keys, flop, bytes, shared) = match form {
            AttentionForm::DenseMha | AttentionForm::MaskedMha => {
                (context, self.mha_flop_per_key(), 2 * self.heads * per_head, sharing)
            }
            AttentionForm::DenseMqa => {
                (context, self.mqa_flop_per_key(), self.kv_bytes_fp8(), sharing)
            }
            AttentionForm::SparseMqa => {
                (context.min(self.index_topk), self.mqa_flop_per_key(), gathered, 1)
            }
        };
        let keys = keys as f64;
        TokenWork { flop: keys * flop as f64, bytes: keys * bytes as f64 / shared as f64 }
    }

    /// Scores of the indexer without its projections: 16,384·L FLOP, keys read once for `sharing`
    /// queries, one fp32 score written for each key.
    pub fn index_scores(&self, context: u64, sharing: u64) -> TokenWork {
        let keys = context as f64;
        TokenWork {
            flop: keys * self.index_flop_per_key() as f64,
            bytes: keys * (self.index_bytes() as f64 / sharing as f64 + 4.0),
        }
    }

    /// All stages of one token of a call with `tokens` tokens.
    ///
    /// Weights are one byte each and read once a call. In prefill the call's tokens share one
    /// context, so its keys are read once a call, the least that is possible; in decode each
    /// token has its own.
    pub fn layer_work(
        &self,
        variant: Variant,
        stage: Stage,
        context: u64,
        tokens: u64,
    ) -> Result<LayerWork, Error> {
        if tokens == 0 {
            return Err(Error::value("tokens", tokens, "at least 1"));
        }
        let sharing = if stage == Stage::Prefill { tokens } else { 1 };
        let weights = |count: u64| TokenWork {
            flop: 2.0 * count as f64,
            bytes: count as f64 / tokens as f64,
        };
        let attention = AttentionForm::choices(variant, stage)
            .iter()
            .map(|form| self.attention(*form, stage, context, sharing))
            .min_by(|a, b| a.flop.total_cmp(&b.flop))
            .unwrap_or_default();
        let (mut indexer, mut top_k) = (TokenWork::default(), TokenWork::default());
        if variant == Variant::V32Exp {
            let (scores, fixed) =
                (self.index_scores(context, sharing), weights(self.index_weights()));
            indexer =
                TokenWork { flop: scores.flop + fixed.flop, bytes: scores.bytes + fixed.bytes };
            // Two reads of the scores, one write of the chosen indices, four bytes each.
            top_k.bytes = 8.0 * context as f64 + 4.0 * context.min(self.index_topk) as f64;
        }
        let projections = weights(self.projection_weights());
        Ok(LayerWork { projections, indexer, top_k, attention, moe: self.moe(tokens) })
    }

    /// Feed-forward part, mean over the layers. The experts that at least one of the tokens visits
    /// are read once: routed·(1 - (1 - activated/routed)^tokens), were the router even-handed.
    fn moe(&self, tokens: u64) -> TokenWork {
        let expert = (3 * self.dim * self.moe_inter_dim) as f64;
        let dense = (3 * self.dim * self.inter_dim) as f64;
        let router = (self.dim * self.routed_experts) as f64;
        let routed = self.routed_experts as f64;
        let visited = (self.activated_experts + self.shared_experts) as f64;
        let missed = (1.0 - self.activated_experts as f64 / routed).powf(tokens as f64);
        let read = routed * (1.0 - missed) + self.shared_experts as f64;
        let share = self.dense_layers as f64 / self.layers as f64;
        let mean = |dense: f64, experts: f64| share * dense + (1.0 - share) * experts;
        TokenWork {
            flop: 2.0 * mean(dense, visited * expert + router),
            bytes: mean(dense, read * expert + router) / tokens as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers published for, or derived from, the V3.2-Exp configuration.
    #[test]
    fn the_known_counts() {
        let v32 = Dimensions::V32;
        assert_eq!(v32.mha_flop_per_key(), 81_920);
        assert_eq!(v32.mqa_flop_per_key(), 278_528);
        assert_eq!(v32.index_flop_per_key(), 16_384);
        assert_eq!(v32.index_vector_flop_per_key(), 192);
        assert_eq!((v32.kv_bytes_fp8(), v32.kv_bytes_bf16(), v32.index_bytes()), (656, 1152, 132));
        assert_eq!(v32.projection_weights() / 100_000, 1871);
        assert_eq!(2 * v32.index_weights() / 100_000, 279);
    }

    #[test]
    fn decode_bytes_at_128k() {
        let at = 131_072;
        let sparse = Dimensions::V32.layer_work(Variant::V32Exp, Stage::Decode, at, 1).unwrap();
        let weights = Dimensions::V32.index_weights() as f64;
        let bytes = sparse.indexer.bytes - weights + sparse.top_k.bytes + sparse.attention.bytes;
        assert!((bytes / 20.22e6 - 1.0).abs() < 1e-3, "{bytes}");
        let dense = Dimensions::V32.layer_work(Variant::V31Terminus, Stage::Decode, at, 1).unwrap();
        assert!((dense.attention.bytes / 85.98e6 - 1.0).abs() < 1e-3);
        assert_eq!(dense.indexer, TokenWork::default());
    }

    #[test]
    fn the_whole_model_is_75_gflop_a_token() {
        let v32 = Dimensions::V32;
        let work = v32.layer_work(Variant::V32Exp, Stage::Decode, 0, 1).unwrap();
        let layer = work.projections.flop + work.indexer.flop + work.moe.flop;
        let head = 2.0 * 7168.0 * 129_280.0;
        let total = 61.0 * layer + head;
        assert!((total / 74.95e9 - 1.0).abs() < 1e-3, "{total}");
        assert!(v32.layer_work(Variant::V32Exp, Stage::Decode, 0, 0).is_err());
    }
}
