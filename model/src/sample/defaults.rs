//! What a checkpoint says about how it wants to be sampled.

use std::path::Path;

use dsa_files::{printable, read_text};
use serde_json::Value;

use super::Sampling;
use crate::error::{Error, Result};
use crate::json;
use crate::weights::is_there;

/// The file, beside `config.json`.
const FILE: &str = "generation_config.json";
/// A larger file is refused unread.
const MAX_BYTES: u64 = 1 << 20;
/// Fields that decide nothing here.
const FREE: [&str; 6] = [
    "_from_model_config",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
    "max_length",
    "max_new_tokens",
];

/// How a checkpoint wants to be sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// The settings.
    pub sampling: Sampling,
    /// Tokens that end an answer, beside those of the configuration.
    pub eos_token_id: Vec<u32>,
    /// What the file asks for and nobody here does, a sentence each.
    pub warnings: Vec<String>,
}

impl Defaults {
    /// Reads `generation_config.json` in `folder`; those of [`Sampling::default`] where it or a field is absent.
    /// `do_sample: false` is temperature 0.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Json`] if it cannot be read, [`Error::Config`] for a field of another type or out of
    /// bounds.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !is_there(&path)? {
            return Ok(Self::default());
        }
        Self::from_json(&read_text(&path, MAX_BYTES)?).map_err(|mut error| {
            if let Error::Json { what, .. } | Error::Config { what, .. } = &mut error {
                *what = path.display().to_string();
            }
            error
        })
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// As [`Defaults::read`].
    pub fn from_json(text: &str) -> Result<Self> {
        let json = |detail| Error::Json { what: "generation configuration".into(), detail };
        let Value::Object(map) = json::parse(text).map_err(json)? else {
            return Err(json("expected an object { … } with temperature, …".into()));
        };
        let mut read = Self::default();
        let mut greedy = false;
        for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            let wrong = |expected: &str| Error::config(name, value, expected);
            let number = || value.as_f64().ok_or_else(|| wrong("a number"));
            let share = || {
                let share = number()?;
                if (0.0..=1.0).contains(&share) { Ok(share as f32) } else { Err(wrong("0 to 1")) }
            };
            match &name[..] {
                "temperature" => read.sampling.temperature = number()? as f32,
                "top_p" => read.sampling.top_p = share()?,
                "min_p" => read.sampling.min_p = share()?,
                "top_k" => {
                    let whole = value.as_u64().and_then(|k| usize::try_from(k).ok());
                    read.sampling.top_k =
                        whole.ok_or_else(|| wrong("a whole number, 0 or more"))?;
                }
                "do_sample" => {
                    greedy = !value.as_bool().ok_or_else(|| wrong("true or false"))?;
                }
                "eos_token_id" => {
                    let one = std::slice::from_ref(value);
                    let ids = value.as_array().map_or(one, Vec::as_slice).iter();
                    let ids = ids.map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
                    let ids: Option<_> = ids.collect();
                    read.eos_token_id = ids.ok_or_else(|| wrong("a token id or a list of them"))?;
                }
                free if FREE.contains(&free) => {}
                other => {
                    let (name, value) = (printable(other, 80), printable(&value.to_string(), 80));
                    read.warnings
                        .push(format!("{FILE}: {name} is {value}, which nobody here does"));
                }
            }
        }
        if greedy {
            read.sampling.temperature = 0.0;
        }
        // A number of the file may be beyond f32.
        let temperature = read.sampling.temperature;
        if !temperature.is_finite() {
            return Err(Error::config("temperature", temperature, "a finite number"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_config_is_read_with_its_bounds_and_what_nobody_does_is_said() {
        let published = r#"{"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1, "do_sample": true,
            "temperature": 1.0, "top_p": 0.95, "transformers_version": "4.46.3"}"#;
        let read = Defaults::from_json(published).unwrap();
        let expected = Sampling { temperature: 1.0, top_p: 0.95, ..Sampling::default() };
        assert_eq!(
            (read.sampling, &read.eos_token_id[..], &read.warnings[..]),
            (expected, &[1][..], &[][..])
        );
        let read = Defaults::from_json(
            r#"{"eos_token_id": [1, 7], "do_sample": false, "top_k": 5, "min_p": null, "repetition_penalty": 1.1}"#,
        )
        .unwrap();
        assert_eq!((read.sampling.temperature, read.sampling.top_k), (0.0, 5));
        assert_eq!(read.eos_token_id, [1, 7]);
        let said = "generation_config.json: repetition_penalty is 1.1, which nobody here does";
        assert_eq!(read.warnings, [said]);
        assert_eq!(Defaults::from_json("{}").unwrap().sampling, Sampling::default());
        for (text, said) in [
            (r#"{"top_p": 1.5}"#, "top_p is 1.5, expected 0 to 1"),
            (r#"{"top_k": -1}"#, "top_k is -1, expected a whole number"),
            (r#"{"temperature": "hot"}"#, "temperature is \"hot\", expected a number"),
            (r#"{"temperature": 1e300}"#, "temperature is inf, expected a finite number"),
            (r#"{"eos_token_id": [1, -1]}"#, "eos_token_id is [1,-1], expected a token id"),
            ("[]", "expected an object"),
        ] {
            let error = Defaults::from_json(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_folder_without_the_file_has_the_defaults_and_one_with_it_is_named_in_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Defaults::read(folder.path()).unwrap(), Defaults::default());
        std::fs::write(folder.path().join(FILE), r#"{"top_p": 2}"#).unwrap();
        let error = Defaults::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: top_p is 2"), "{error}");
    }
}
