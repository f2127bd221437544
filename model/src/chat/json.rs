//! JSON whose objects keep their order: a model is shown the schema of a tool as its author wrote it.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Number;
use std::fmt;

use crate::error::{Error, Result};

/// A JSON value. [`Display`](fmt::Display) writes it in one line as Python's `json.dumps(value, ensure_ascii=False)`
/// does, which is what models were trained on: a space behind `,` and `:`.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer of 64 bits, or an f64.
    Number(Number),
    /// A text.
    String(String),
    /// `[ … ]`
    Array(Vec<Json>),
    /// `{ … }`, in the order written; no key is there twice.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads `text`, which `what` names in an error.
    ///
    /// # Errors
    /// [`Error::Json`] with line and column: no JSON, a key twice in an object, a number beyond f64, more than 128
    /// arrays and objects inside one another.
    pub fn parse(what: &str, text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::Json { what: what.into(), detail: error.to_string() })
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    /// The entries, if it is an object.
    pub fn as_object(&self) -> Option<&[(String, Json)]> {
        match self {
            Self::Object(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of `key`, if it is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.as_object()?.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value over several lines, as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
    pub fn indented(&self, indent: usize) -> String {
        self.lines(indent, 0)
    }

    fn lines(&self, indent: usize, depth: usize) -> String {
        let deeper = |value: &Json| value.lines(indent, depth + indent);
        let (entries, [open, close]) = match self {
            Self::Array(values) if !values.is_empty() => {
                (values.iter().map(deeper).collect::<Vec<_>>(), ['[', ']'])
            }
            Self::Object(entries) if !entries.is_empty() => {
                let entry = |(key, value)| format!("{}: {}", quoted(key), deeper(value));
                (entries.iter().map(|(key, value)| entry((key, value))).collect(), ['{', '}'])
            }
            other => return other.to_string(),
        };
        let line = format!("\n{}", " ".repeat(depth));
        let inner = format!("{line}{}", " ".repeat(indent));
        format!("{open}{inner}{}{line}{close}", entries.join(&format!(",{inner}")))
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_string())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => match number.as_f64() {
                Some(value) if number.is_f64() => f.write_str(&float(value)),
                _ => write!(f, "{number}"),
            },
            Self::String(text) => f.write_str(&quoted(text)),
            Self::Array(values) => {
                f.write_str("[")?;
                for (n, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if n == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Object(entries) => {
                f.write_str("{")?;
                for (n, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{}: {value}", if n == 0 { "" } else { ", " }, quoted(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A text in quotes, escaped no more than JSON demands.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A finite number as Python's `repr` writes it: the fewest digits that mean it, with an exponent below 1e-4 and
/// from 1e16.
fn float(value: f64) -> String {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        let number = Number::from_f64(value);
        number.map(Json::Number).ok_or_else(|| E::custom("expected a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            entries.push((key, map.next_value()?));
        }
        Ok(Json::Object(entries))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(values) => values.serialize(serializer),
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Json;

    #[test]
    fn a_value_is_written_in_its_own_order_and_as_python_writes_it() {
        let text = r#"{"z": [1, -2, 0.5, 1e3, 1e16, 1e-7, 2.5e100], "a": {"ü": "a\"\\\n\u0001\u007f/é"}, "n": null, "t": true, "e": [], "o": {}}"#;
        let expected = r#"{"z": [1, -2, 0.5, 1000.0, 1e+16, 1e-07, 2.5e+100], "a": {"ü": "a\"\\\n\u0001/é"}, "n": null, "t": true, "e": [], "o": {}}"#;
        let written = Json::parse("text", text).unwrap().to_string();
        assert_eq!(written.replace('\u{7f}', ""), expected);
        assert_eq!(Json::parse("text", &written).unwrap().to_string(), written);
    }

    #[test]
    fn a_value_over_several_lines_is_written_as_python_writes_it() {
        let value = Json::parse("text", r#"{"a": [1, {"b": 2}], "e": {}, "f": []}"#).unwrap();
        let expected = "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ],\n  \"e\": {},\n  \"f\": []\n}";
        assert_eq!(value.indented(2), expected);
    }

    #[test]
    fn what_is_no_json_or_said_twice_is_refused_with_its_place() {
        for (text, said) in [
            ("{\"a\": 1,\n \"a\": 2}", "\"a\" is there twice at line 2"),
            ("[1, ", "EOF"),
            ("1e999", "out of range"),
            ("{} x", "trailing"),
        ] {
            let error = Json::parse("request", text).unwrap_err().to_string();
            assert!(error.starts_with("request: ") && error.contains(said), "{error}");
        }
        assert!(Json::parse("request", &"[".repeat(100_000)).is_err());
    }
}
