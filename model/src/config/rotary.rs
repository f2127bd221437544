//! Reading the rotary embedding: `rope_theta` and YaRN, from any of the places they are written in.

use serde_json::json;

use super::Yarn;
use super::fields::Fields;
use crate::error::Result;

/// Fields of `rope_parameters` and `rope_scaling` that are read for every type.
const READ: [&str; 3] = ["rope_type", "type", "rope_theta"];
/// Fields that are read for YaRN.
const YARN: [&str; 6] = [
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
];
/// Fields with one supported value: what cos and sin, and what the ramp is multiplied with; whether the
/// ends of the ramp are whole; how much of a head rotates.
const ONE: [&str; 4] =
    ["attention_factor", "attn_factor", "extrapolation_factor", "partial_rotary_factor"];
const TRUNCATE: &str = "truncate";

/// What one object says.
#[derive(PartialEq)]
struct Rotary {
    theta: Option<f64>,
    yarn: Option<Yarn>,
}

/// `rope_theta` and YaRN of a Hugging Face file.
///
/// There are three places for them: `rope_theta`, `rope_scaling` (the older) and `rope_parameters` (the
/// newer, with `rope_theta` in it). Readers differ in which of them they prefer, so where two say
/// different things, the file is refused. An empty object is absent, as in transformers. A `rope_theta` that
/// is in none of them is `default`, or refused where there is none.
pub(super) fn read(f: &Fields, default: Option<f64>) -> Result<(f64, Option<Yarn>)> {
    let newer = filled(f.object("rope_parameters", "rope_parameters.")?);
    let older = filled(f.object("rope_scaling", "rope_scaling.")?);
    let of = |fields: &Option<Fields>| fields.as_ref().map(Rotary::from_fields).transpose();
    let (by_newer, by_older) = (of(&newer)?, of(&older)?);
    if let (Some(newer), Some(older)) = (&by_newer, &by_older) {
        let thetas = newer.theta.zip(older.theta);
        let same = newer.yarn == older.yarn && thetas.is_none_or(|(a, b)| a == b);
        let value = f.present("rope_parameters").map_or(String::new(), ToString::to_string);
        let other = f.present("rope_scaling").map_or(String::new(), ToString::to_string);
        let expected = format!("the same as rope_scaling, {other}, or one of them alone");
        f.check(same, "rope_parameters", value, &expected)?;
    }
    let nested = [&by_newer, &by_older].into_iter().flatten().find_map(|rotary| rotary.theta);
    let top: Option<f64> = f.optional("rope_theta")?;
    if let (Some(top), Some(nested)) = (top, nested) {
        let expected = format!("{nested}, as in rope_parameters or rope_scaling");
        f.check(top == nested, "rope_theta", top, &expected)?;
    }
    let yarn = by_newer.or(by_older).and_then(|rotary| rotary.yarn);
    let expected = "a value, here or in rope_parameters (GLM-5 has 1e6, GLM-5.2 8e6)";
    let missing = || f.error("rope_theta", "missing", expected);
    Ok((nested.or(top).or(default).ok_or_else(missing)?, yarn))
}

fn filled(fields: Option<Fields>) -> Option<Fields> {
    fields.filter(|fields| fields.map.values().any(|value| !value.is_null()))
}

impl Rotary {
    fn from_fields(f: &Fields) -> Result<Self> {
        // Transformers allows one set of parameters for each type of layer; all our layers have one.
        if let Some((name, value)) = f.map.iter().find(|(_, value)| value.is_object()) {
            let expected = "one set of parameters for all layers, not one for each type of layer";
            return Err(f.error(name, value, expected));
        }
        f.only(READ.into_iter().chain(YARN).chain(ONE).chain([TRUNCATE]))?;
        let kind = |name| f.optional::<String>(name);
        let (newer, older) = (kind("rope_type")?, kind("type")?);
        if let (Some(newer), Some(older)) = (&newer, &older) {
            f.check(newer == older, "rope_type", newer, &format!("{older:?}, as type says"))?;
        }
        let (name, kind) = match (newer, older) {
            (Some(kind), _) => ("rope_type", kind),
            (None, Some(kind)) => ("type", kind),
            (None, None) => ("rope_type", "default".into()),
        };
        for name in ONE {
            f.must_be(name, &json!(1))?;
        }
        f.must_be(TRUNCATE, &json!(true))?;
        let yarn = match kind.as_str() {
            "yarn" => Some(Yarn {
                factor: f.required("factor")?,
                original_max_position_embeddings: f.required("original_max_position_embeddings")?,
                beta_fast: f.or("beta_fast", 32.0)?,
                beta_slow: f.or("beta_slow", 1.0)?,
                mscale: f.required("mscale")?,
                mscale_all_dim: f.required("mscale_all_dim")?,
            }),
            "default" => {
                if let Some(name) = YARN.into_iter().find(|name| f.present(name).is_some()) {
                    let expected = "nothing: the type of the rotary embedding is \"default\", \
                                    which does not read it";
                    return Err(f.error(name, &f.map[name], expected));
                }
                None
            }
            other => return Err(f.error(name, other, "\"yarn\" or \"default\"")),
        };
        Ok(Self { theta: f.optional("rope_theta")?, yarn })
    }
}
