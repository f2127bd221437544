//! The golden models: configuration, weights and what others computed of them.
use dsa_reference::attention::{AttentionWeights, IndexerWeights};
use dsa_reference::attention_layer::AttentionConfig;
use dsa_reference::experts::ExpertsWeights;
use dsa_reference::feed_forward::FeedForwardWeights;
use dsa_reference::model::{LayerWeights, Mlp, ModelConfig, ModelWeights};
use dsa_reference::rope::Yarn;
use dsa_reference::router::RouterConfig;
use dsa_reference::weight::Weight;
use ndarray::{Array1, Array2, Array3};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One tensor of a file, as it is stored.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of some files.
pub struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    fn read(folder: &Path, names: &[&str]) -> Self {
        let mut tensors = BTreeMap::new();
        for name in names {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            for (name, t) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                let (dtype, shape) = (t.dtype(), t.shape().to_vec());
                tensors.insert(name.to_string(), Tensor { dtype, shape, bytes: t.data().to_vec() });
            }
        }
        Self(tensors)
    }

    fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// A tensor's numbers, bf16 or f32, all axes but the last as rows.
    pub fn matrix(&self, name: &str) -> Array2<f32> {
        let t = self.get(name);
        let values: Vec<f32> = match t.dtype {
            // bf16 is the upper half of an f32.
            Dtype::BF16 => {
                t.bytes.chunks(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
            }
            Dtype::F32 => {
                t.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        let cols = *t.shape.last().unwrap();
        Array2::from_shape_vec((values.len() / cols, cols), values).unwrap()
    }

    /// A tensor `[a, b, c]`.
    pub fn cube(&self, name: &str) -> Array3<f32> {
        let shape = &self.get(name).shape;
        let shape = (shape[0], shape[1], shape[2]);
        self.matrix(name).into_shape_with_order(shape).unwrap()
    }

    pub fn vector(&self, name: &str) -> Array1<f32> {
        self.matrix(name).flatten().to_owned()
    }

    /// e4m3 codes, all axes but the last as rows.
    pub fn codes(&self, name: &str) -> Array2<u8> {
        let t = self.get(name);
        assert_eq!(t.dtype, Dtype::F8_E4M3, "{name}");
        let cols = *t.shape.last().unwrap();
        Array2::from_shape_vec((t.bytes.len() / cols, cols), t.bytes.clone()).unwrap()
    }

    pub fn integers(&self, name: &str) -> Vec<i32> {
        let t = self.get(name);
        assert_eq!(t.dtype, Dtype::I32, "{name}");
        t.bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn weight(&self, name: &str) -> Weight {
        let scale = format!("{name}.weight_scale_inv");
        let name = format!("{name}.weight");
        if !self.0.contains_key(&scale) {
            return Weight::F32(self.matrix(&name));
        }
        Weight::Fp8 { codes: self.codes(&name), scale: self.matrix(&scale) }
    }

    fn feed_forward(&self, at: &str) -> FeedForwardWeights {
        let weight = |part: &str| self.weight(&format!("{at}.{part}"));
        FeedForwardWeights {
            gate_proj: weight("gate_proj"),
            up_proj: weight("up_proj"),
            down_proj: weight("down_proj"),
        }
    }

    fn indexer(&self, at: &str) -> Option<IndexerWeights> {
        self.0.contains_key(&format!("{at}.wk.weight")).then(|| IndexerWeights {
            wq_b: self.weight(&format!("{at}.wq_b")),
            wk: self.weight(&format!("{at}.wk")),
            k_norm_weight: self.vector(&format!("{at}.k_norm.weight")),
            k_norm_bias: self.vector(&format!("{at}.k_norm.bias")),
            weights_proj: self.matrix(&format!("{at}.weights_proj.weight")),
        })
    }

    fn layer(&self, layer: usize, dense: bool, experts: usize) -> LayerWeights {
        let at = format!("model.layers.{layer}");
        let weight = |part: &str| self.weight(&format!("{at}.self_attn.{part}"));
        let norm = |part: &str| self.vector(&format!("{at}.{part}.weight"));
        let mlp = if dense {
            Mlp::Dense(self.feed_forward(&format!("{at}.mlp")))
        } else {
            let expert = |e| self.feed_forward(&format!("{at}.mlp.experts.{e}"));
            Mlp::Experts(ExpertsWeights {
                gate: self.matrix(&format!("{at}.mlp.gate.weight")),
                bias: self.vector(&format!("{at}.mlp.gate.e_score_correction_bias")),
                experts: (0..experts).map(expert).collect(),
                shared: self.feed_forward(&format!("{at}.mlp.shared_experts")),
            })
        };
        LayerWeights {
            input_layernorm: norm("input_layernorm"),
            self_attn: AttentionWeights {
                q_a_proj: weight("q_a_proj"),
                q_a_layernorm: norm("self_attn.q_a_layernorm"),
                q_b_proj: weight("q_b_proj"),
                kv_a_proj_with_mqa: weight("kv_a_proj_with_mqa"),
                kv_a_layernorm: norm("self_attn.kv_a_layernorm"),
                kv_b_proj: weight("kv_b_proj"),
                o_proj: weight("o_proj"),
                indexer: self.indexer(&format!("{at}.self_attn.indexer")),
            },
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp,
        }
    }
}

/// A golden model.
pub struct Golden {
    pub config: ModelConfig,
    pub weights: ModelWeights,
    pub expected: Tensors,
}

impl Golden {
    /// `name` is the folder's; `files` are those of the weights.
    pub fn read(name: &str, files: &[&str]) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name);
        let json = std::fs::read(root.join("config.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let n = |name: &str| json[name].as_u64().unwrap() as usize;
        let model = Tensors::read(&root, files);
        let layer = |i| model.layer(i, i < n("first_k_dense_replace"), n("n_routed_experts"));
        let weights = ModelWeights {
            embed_tokens: model.matrix("model.embed_tokens.weight"),
            layers: (0..n("num_hidden_layers")).map(layer).collect(),
            norm: model.vector("model.norm.weight"),
            lm_head: model.matrix("lm_head.weight"),
        };
        let expected = Tensors::read(&root, &["expected.safetensors"]);
        Self { config: config(&json), weights, expected }
    }

    pub fn ids(&self) -> Vec<i32> {
        self.expected.integers("input_ids")
    }

    /// A layer's stored keys as sets, without the future positions that the causal mask hides.
    pub fn keys(&self, name: &str, start: usize) -> Vec<BTreeSet<i32>> {
        let topk = self.config.attention.index_topk;
        let stored = self.expected.integers(name);
        let row = |(t, row): (usize, &[i32])| seen(row.iter(), start + t);
        stored.chunks(topk).enumerate().map(row).collect()
    }
}

/// The keys that the query at position t may see.
pub fn seen<'a>(row: impl IntoIterator<Item = &'a i32>, t: usize) -> BTreeSet<i32> {
    row.into_iter().copied().filter(|&n| n >= 0 && n <= t as i32).collect()
}

fn config(json: &Value) -> ModelConfig {
    let n = |name: &str| json[name].as_u64().unwrap() as usize;
    // The older form has rope_theta outside, and rope_scaling.
    let rope = json.get("rope_parameters").or(json.get("rope_scaling")).unwrap();
    let theta = rope.get("rope_theta").or(json.get("rope_theta")).unwrap();
    let r = |name: &str| rope[name].as_f64().unwrap();
    let kind = rope.get("rope_type").or(rope.get("type")).unwrap();
    let yarn = (kind == "yarn").then(|| Yarn {
        factor: r("factor"),
        original_max_position_embeddings: r("original_max_position_embeddings") as usize,
        beta_fast: r("beta_fast"),
        beta_slow: r("beta_slow"),
        mscale: r("mscale"),
        mscale_all_dim: r("mscale_all_dim"),
    });
    ModelConfig {
        attention: AttentionConfig {
            hidden_size: n("hidden_size"),
            num_attention_heads: n("num_attention_heads"),
            q_lora_rank: n("q_lora_rank"),
            kv_lora_rank: n("kv_lora_rank"),
            qk_nope_head_dim: n("qk_nope_head_dim"),
            qk_rope_head_dim: n("qk_rope_head_dim"),
            v_head_dim: n("v_head_dim"),
            index_n_heads: n("index_n_heads"),
            index_head_dim: n("index_head_dim"),
            index_topk: n("index_topk"),
            rms_norm_eps: 1e-6, // the latents'
            rope_theta: theta.as_f64().unwrap(),
            yarn,
        },
        rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap(),
        router: RouterConfig {
            num_experts_per_tok: n("num_experts_per_tok"),
            n_group: n("n_group"),
            topk_group: n("topk_group"),
            norm_topk_prob: json["norm_topk_prob"].as_bool().unwrap(),
            routed_scaling_factor: json["routed_scaling_factor"].as_f64().unwrap() as f32,
        },
    }
}
