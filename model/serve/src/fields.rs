//! The fields of a request's body, each read once by its name and type.

use super::error::ApiError;
use dsa_model::chat::Json;

/// An object of a request.
pub(crate) struct Fields<'a> {
    entries: &'a [(String, Json)],
}

impl<'a> Fields<'a> {
    /// The entries of `json`; a field that is null counts as absent.
    pub fn of(name: &str, json: &'a Json) -> Result<Self, ApiError> {
        let entries = json.as_object().ok_or_else(|| ApiError::field(name, json, "an object"))?;
        Ok(Self { entries })
    }

    /// The names of those that are there.
    pub fn given(&self) -> impl Iterator<Item = (&'a str, &'a Json)> {
        self.entries
            .iter()
            .filter(|(_, value)| *value != Json::Null)
            .map(|(name, value)| (&name[..], value))
    }

    pub fn get(&self, name: &str) -> Option<&'a Json> {
        self.given().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", |value| match value {
            Json::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn whole(&self, name: &str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number, 0 or more", |value| match value {
            Json::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
            _ => None,
        })
    }

    pub fn number(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| match value {
            Json::Number(number) => number.as_f64().map(|number| number as f32),
            _ => None,
        })
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a text", Json::as_str)
    }

    /// A text or a list of texts.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let read = |value: &'a Json| {
            let all = value.as_array().unwrap_or(std::slice::from_ref(value));
            all.iter().map(|text| text.as_str().map(str::to_string)).collect::<Option<Vec<_>>>()
        };
        Ok(self.read(name, "a text or a list of texts", read)?.unwrap_or_default())
    }

    /// Refuses the field if it says anything but `only`, which is what is done anyway.
    pub fn must_be(&self, name: &str, only: &[Json]) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !only.contains(value) => {
                let only: Vec<String> = only.iter().map(ToString::to_string).collect();
                let expected = format!("{}: nothing else is done here", only.join(" or "));
                Err(ApiError::field(name, value, &expected))
            }
            _ => Ok(()),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ApiError::field(name, value, expected))
    }
}
