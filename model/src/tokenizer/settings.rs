//! `tokenizer_config.json`: which tokens begin and end a text, and the chat template.

use std::path::Path;

use dsa_files::{printable, read_text};
use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::json;
use crate::weights::is_there;

/// The file, beside `tokenizer.json`.
const FILE: &str = "tokenizer_config.json";
/// The template in a file of its own, which comes first.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Larger files are refused unread.
const MAX_BYTES: u64 = 1 << 22;

/// What is read of it. All of it may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The token that begins a text.
    pub bos_token: Option<String>,
    /// The token that ends an answer.
    pub eos_token: Option<String>,
    /// Whether a text that is no chat begins with `bos_token`.
    pub add_bos_token: bool,
    /// The chat template, a Jinja text: that of `chat_template.jinja` if there is one.
    pub chat_template: Option<String>,
}

impl Settings {
    /// Reads those of `folder`; the empty ones if there is no such file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Json`], [`Error::Config`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut settings = match is_there(&path)? {
            true => Self::from_json(&path.display().to_string(), &read_text(&path, MAX_BYTES)?)?,
            false => Self::default(),
        };
        let template = folder.join(TEMPLATE_FILE);
        if is_there(&template)? {
            settings.chat_template = Some(read_text(&template, MAX_BYTES)?);
        }
        Ok(settings)
    }

    /// Reads the text of such a file, which `what` names in errors.
    fn from_json(what: &str, text: &str) -> Result<Self> {
        let json = |detail| Error::Json { what: what.into(), detail };
        let Value::Object(map) = json::parse(text).map_err(json)? else {
            return Err(json("expected an object { … } with bos_token, …".into()));
        };
        let field = |name: &str| map.get(name).filter(|value| !value.is_null());
        let wrong = |name: &str, value: &Value, expected: &str| match Error::config(
            name, value, expected,
        ) {
            Error::Config { field, value, expected, .. } => {
                Error::Config { what: what.into(), field, value, expected }
            }
            other => other,
        };
        let token = |name: &str| match field(name) {
            None => Ok(None),
            Some(value) => match value.as_str().or_else(|| value["content"].as_str()) {
                Some(token) => Ok(Some(token.to_string())),
                None => Err(wrong(name, value, "a token")),
            },
        };
        let add_bos_token = match field("add_bos_token") {
            None => false,
            Some(value) => {
                value.as_bool().ok_or_else(|| wrong("add_bos_token", value, "true or false"))?
            }
        };
        let chat_template = match field("chat_template") {
            None => None,
            Some(Value::String(template)) => Some(template.clone()),
            // Several with names, of which one is the default.
            Some(Value::Array(named)) => {
                let default = named.iter().find(|named| named["name"] == "default");
                default.and_then(|named| named["template"].as_str()).map(ToString::to_string)
            }
            Some(value) => return Err(wrong("chat_template", value, "a text")),
        };
        let (bos_token, eos_token) = (token("bos_token")?, token("eos_token")?);
        Ok(Self { bos_token, eos_token, add_bos_token, chat_template })
    }

    /// In what these and the configuration differ, a sentence each; `id` tells the id of a token.
    pub(super) fn differences(
        &self,
        config: &Config,
        id: impl Fn(&str) -> Option<u32>,
    ) -> Vec<String> {
        let list = |ids: &[u32]| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.join(" or ")
        };
        let (bos, eos) = (config.bos_token_id.as_slice(), &config.eos_token_id[..]);
        let mut said = Vec::new();
        for (field, token, ids) in
            [("bos_token", &self.bos_token, bos), ("eos_token", &self.eos_token, eos)]
        {
            let Some(token) = token else {
                continue;
            };
            let shown = printable(token, 80);
            match id(token) {
                None => {
                    said.push(format!("{FILE}: {field} \"{shown}\" is no token of tokenizer.json"))
                }
                Some(id) if !ids.is_empty() && !ids.contains(&id) => said.push(format!(
                    "{FILE}: {field} \"{shown}\" has id {id}, but the configuration says {}",
                    list(ids)
                )),
                Some(_) => {}
            }
        }
        said
    }
}
