//! The families of checkpoints: what a file means where it is silent, and the relatives that are refused.

use super::fields::Fields;
use crate::error::Result;

/// A family, as `model_type` names it. It decides what an absent field means:
///
/// | absent | `deepseek_v32` | `glm_moe_dsa` |
/// |---|---|---|
/// | `indexer_rope_interleave` | false | true |
/// | `rms_norm_eps` | 1e-6 | 1e-5 |
/// | `rope_theta` | 10000 | refused: 1e6 in GLM-5 and 5.1, 8e6 in GLM-5.2 |
/// | `bos_token_id` | 0 | none |
/// | `eos_token_id` | 1 | refused: its texts end in several ways |
///
/// Sources: `DeepseekV32Config` and `GlmMoeDsaConfig` in transformers 5; what is refused has a default there
/// that no published file of GLM has. The indexer's pairs are those of mlx-lm too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// DeepSeek-V3.2-Exp, V3.2, V3.2-Speciale, Math-V2; a file in the demo's spelling is one of these.
    DeepseekV32,
    /// GLM-5, 5.1 and 5.2.
    GlmMoeDsa,
}

/// What a field means where it is absent; `None` is refused, but for the first token of a text.
pub(super) struct Defaults {
    pub indexer_rope_interleaved: bool,
    pub rms_norm_eps: f64,
    pub rope_theta: Option<f64>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

impl Family {
    /// Every family that is computed here.
    pub const ALL: [Self; 2] = [Self::DeepseekV32, Self::GlmMoeDsa];

    /// Its name in `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::DeepseekV32 => "deepseek_v32",
            Self::GlmMoeDsa => "glm_moe_dsa",
        }
    }

    /// Its classes in transformers, of which `architectures` holds the first.
    pub(super) fn classes(self) -> [&'static str; 2] {
        match self {
            Self::DeepseekV32 => ["DeepseekV32ForCausalLM", "DeepseekV32Model"],
            Self::GlmMoeDsa => ["GlmMoeDsaForCausalLM", "GlmMoeDsaModel"],
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        match self {
            Self::DeepseekV32 => Defaults {
                indexer_rope_interleaved: false,
                rms_norm_eps: 1e-6,
                rope_theta: Some(10_000.0),
                bos_token_id: Some(0),
                eos_token_id: Some(1),
            },
            Self::GlmMoeDsa => Defaults {
                indexer_rope_interleaved: true,
                rms_norm_eps: 1e-5,
                rope_theta: None,
                bos_token_id: None,
                eos_token_id: None,
            },
        }
    }

    /// The family of a Hugging Face file: by `model_type`, or by `architectures` where that is absent.
    /// That both say the same is checked with the other fields.
    pub(super) fn read(f: &Fields) -> Result<Self> {
        let expected = Self::ALL.map(Self::model_type).join(" or ");
        if let Some(name) = f.optional::<String>("model_type")? {
            let family = Self::ALL.into_iter().find(|family| family.model_type() == name);
            return family.ok_or_else(|| match relative(&name) {
                Some(why) => {
                    f.error("model_type", &name, &format!("{expected}; this relative {why}"))
                }
                None => f.error("model_type", &name, &expected),
            });
        }
        let classes = f.optional::<Vec<String>>("architectures")?.unwrap_or_default();
        let of = |family: &Self| classes.iter().any(|c| family.classes().contains(&c.as_str()));
        let missing = || f.error("model_type", "missing", &expected);
        Self::ALL.into_iter().find(of).ok_or_else(missing)
    }
}

/// Models that look like those here, and why they are not. A name that goes on after an underscore is the
/// same model (`glm5_next_text`).
const RELATIVES: [(&str, &str); 11] = [
    ("axk2", "needs gated attention, which is not here"),
    ("deepseek_v2", "is dense: it has no indexer"),
    ("deepseek_v3", "is dense: it has no indexer"),
    ("deepseek_v4", "needs compressed keys and experts chosen by a hash, which are not here"),
    ("deepseek_v41", "needs two-level indexing (candidate blocks of keys), which is not here"),
    ("dots3_note", "needs layers without sparse attention, which are not here"),
    ("glm5_next", "needs a pooled indexer and linear attention (KDA), which are not here"),
    ("hy_v4", "needs a clamped feed-forward (swiglu_limit), which is not here"),
    ("kimi_k2", "is dense: it has no indexer"),
    ("minimax_m3", "needs sparse attention to blocks of grouped heads, which is not here"),
    (
        "mistral_large4",
        "has no q_lora, and needs layers without position that share keys: neither is here",
    ),
];

/// Why the model of this type is not one of those here.
fn relative(model_type: &str) -> Option<&'static str> {
    let same = |name: &str| {
        let rest = model_type.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    RELATIVES.iter().find(|(name, _)| same(name)).map(|(_, why)| *why)
}
