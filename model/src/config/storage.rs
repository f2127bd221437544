//! Reading how weights are stored, and which lossy steps the attention takes.

use serde_json::{Value, json};

use super::fields::Fields;
use super::{AttentionOptions, LATENT_NORM_EPS, QUANT_BLOCK, Quantization};
use crate::error::Result;

/// Lists of the modules whose weights are not quantised. The type of each tensor in its file says the
/// same, so they decide nothing.
const UNQUANTISED: [&str; 3] = ["ignored_layers", "modules_to_not_convert", "ignore"];

/// The field of `attention_options` that is a number.
const LATENT: &str = "latent_norm_eps";

impl Quantization {
    /// The fields of a `quantization_config` that have one supported value.
    pub(super) fn fixed_fields() -> [(&'static str, Value); 4] {
        [
            ("activation_scheme", json!("dynamic")),
            ("fmt", json!("e4m3")),
            ("quant_method", json!("fp8")),
            ("weight_block_size", json!([QUANT_BLOCK, QUANT_BLOCK])),
        ]
    }

    /// Takes the fields of a `quantization_config`.
    pub(super) fn from_fields(f: &Fields) -> Result<Self> {
        let fixed = Self::fixed_fields();
        let names = fixed.iter().map(|(name, _)| *name);
        f.only(names.chain(["scale_fmt", "dequantize"]).chain(UNQUANTISED))?;
        for (name, value) in &fixed {
            f.must_be(name, value)?;
        }
        f.must_be("dequantize", &json!(false))?;
        for name in UNQUANTISED {
            f.optional::<Vec<String>>(name)?;
        }
        match f.optional::<String>("scale_fmt")?.as_deref() {
            Some("ue8m0") => Ok(Self { ue8m0: true }),
            Some("float") | None => Ok(Self { ue8m0: false }),
            Some(other) => Err(f.error("scale_fmt", other, "\"ue8m0\" or \"float\"")),
        }
    }
}

impl AttentionOptions {
    /// Takes the fields of `attention_options`; those absent are as `quantised` says.
    pub(super) fn from_fields(f: &Fields, quantised: bool) -> Result<Self> {
        let default = if quantised { Self::OFFICIAL } else { Self::EXACT };
        let Some(f) = object(f)? else {
            return Ok(default);
        };
        f.only(["hadamard", "index_fp8", "kv_fp8", LATENT].into_iter())?;
        Ok(Self {
            hadamard: f.or("hadamard", default.hadamard)?,
            index_fp8: f.or("index_fp8", default.index_fp8)?,
            kv_fp8: f.or("kv_fp8", default.kv_fp8)?,
        })
    }
}

/// The eps of the latents' norms, which `attention_options` may say.
pub(super) fn latent_norm_eps(f: &Fields) -> Result<f64> {
    object(f)?.map_or(Ok(LATENT_NORM_EPS), |options| options.or(LATENT, LATENT_NORM_EPS))
}

fn object<'a>(f: &Fields<'a>) -> Result<Option<Fields<'a>>> {
    f.object("attention_options", "attention_options.")
}
