//! JSON in which nothing is said twice.
//!
//! serde_json keeps the last of two equal keys in silence, so which of them a file means would depend on
//! who reads it. Here the second one is an error.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// The value that `text` holds.
///
/// Refused, each with line and column: a key that an object has twice, at any depth; what is no JSON;
/// a number beyond f64; more than 128 objects and arrays inside one another. A byte order mark at the
/// start is refused too: JSON has none (RFC 8259, 8.1).
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    if text.starts_with('\u{feff}') {
        return Err("it starts with a byte order mark, expected {".into());
    }
    serde_json::from_str::<Once>(text).map(|once| once.0).map_err(|error| error.to_string())
}

/// A value whose objects have every key once.
pub(crate) struct Once(pub Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Once)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Once(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            let Once(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use serde_json::{Value, json};

    #[test]
    fn every_kind_of_value_is_read_as_serde_json_reads_it() {
        let text = r#"{"a": [null, true, -3, 18446744073709551615, 0.5, "é\n"], "b": {}}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(parse("[1]").unwrap(), json!([1]));
    }

    #[test]
    fn what_is_said_twice_at_any_depth_is_refused_with_its_place() {
        assert!(parse(r#"{"x": 1, "x": 1}"#).unwrap_err().contains("twice"));
        let error = parse("{\"a\": [{\"x\": 1,\n \"x\": 2}]}").unwrap_err();
        assert!(error.contains("\"x\" is there twice at line 2"), "{error}");
        // The same key written in two ways.
        assert!(parse(r#"{"x": 1, "\u0078": 2}"#).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_byte_order_mark_a_huge_number_and_depth_are_refused_plainly() {
        for (text, said) in [
            ("\u{feff}{}".to_string(), "byte order mark"),
            ("{\"x\": 1e999}".to_string(), "number out of range"),
            ("[".repeat(100_000), "recursion limit"),
            ("{} {}".to_string(), "trailing"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
