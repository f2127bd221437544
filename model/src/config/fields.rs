//! One JSON object, read field by field so that every error names its field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::demo;
use crate::error::{Error, Result};
use crate::names::nearest;

/// An object of a configuration. `null` is absent.
pub(super) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    /// What stands before a field's name in an error.
    pub prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub fn present(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An error about field `name`, with the demo's name for it where it has another.
    pub fn error(&self, name: &str, value: impl ToString, expected: &str) -> Error {
        let demo = demo::NAMES.iter().find(|(_, ours)| self.prefix.is_empty() && *ours == name);
        let demo = demo.map_or(String::new(), |(theirs, _)| format!(" (the demo's {theirs})"));
        Error::config(format!("{}{name}{demo}", self.prefix), value, expected)
    }

    /// That error, unless `right`.
    pub fn check(
        &self,
        right: bool,
        name: &str,
        value: impl ToString,
        expected: &str,
    ) -> Result<()> {
        if right { Ok(()) } else { Err(self.error(name, value, expected)) }
    }

    pub fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let read = |value: &Value| {
            T::deserialize(value).map_err(|e| self.error(name, value, &wanted(&e.to_string())))
        };
        self.present(name).map(read).transpose()
    }

    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let missing = || self.error(name, "missing", "a value (it has no default)");
        self.optional(name)?.ok_or_else(missing)
    }

    pub fn or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// The object `name`, whose fields are called `prefix` and their name.
    pub fn object(&self, name: &str, prefix: &'static str) -> Result<Option<Fields<'a>>> {
        match self.present(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix })),
            Some(other) => Err(self.error(name, other, "an object { … }")),
        }
    }

    /// A field that is absent or has the one value supported; absent if that is null.
    pub fn must_be(&self, name: &str, only: &Value) -> Result<()> {
        let same = |value: &Value| match (value.as_f64(), only.as_f64()) {
            (Some(value), Some(only)) => value == only,
            _ => value == only,
        };
        match self.present(name) {
            Some(value) if !same(value) => Err(self.error(name, value, &only.to_string())),
            _ => Ok(()),
        }
    }

    /// Refuses the first field that has another name than these.
    pub fn only(&self, names: impl Iterator<Item = &'static str> + Clone) -> Result<()> {
        for name in self.map.keys() {
            if self.present(name).is_none() || names.clone().any(|known| known == name) {
                continue;
            }
            let value = &self.map[name];
            let meant = nearest(name, names.clone());
            let meant = meant.map_or(String::new(), |meant| format!(" (is {meant} meant?)"));
            let expected = format!("no field of this name, which nobody here reads{meant}");
            return Err(self.error(name, value, &expected));
        }
        Ok(())
    }
}

/// What serde's message says it expected, in plain words.
fn wanted(message: &str) -> String {
    match message.rsplit("expected ").next() {
        Some("usize" | "u32") => "a whole number, 0 or more".into(),
        Some("f64") => "a number".into(),
        Some("a boolean") => "true or false".into(),
        Some("a sequence") => "a list".into(),
        other => other.unwrap_or("another type").into(),
    }
}
