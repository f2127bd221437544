//! How a file is damaged: a function of its bytes and of a seed.

use dsa_kernels::random::Rng;
use serde_json::Value;

/// A source of damage.
pub struct Mutator {
    pub rng: Rng,
}

/// What may stand where a value of JSON stood: extremes, other types, text that a terminal acts on.
const VALUES: [&str; 32] = [
    "null",
    "true",
    "[]",
    "{}",
    "0",
    "-0",
    "1",
    "2",
    "-1",
    "0.5",
    "1e-320",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "[0, 0]",
    "[0, 18446744073709551615]",
    "[2147483647, 0]",
    "\"\"",
    "\"../../../../etc/passwd\"",
    "\"\\u001b[2J\\u0007\\u202ePASS\\n\"",
    "\"NaN\"",
    "\"-1\"",
    "\"\\u0000\"",
    "\"F64\"",
];

/// What may stand where a name stood.
const NAMES: [&str; 5] = ["", "x", "\\u001b]0;title\\u0007\\nPASS", "__metadata__", "kernel"];

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed) }
    }

    /// JSON with a value, a name or an entry changed, or the same bytes changed anywhere.
    pub fn json_or_bytes(&mut self, original: &[u8]) -> Vec<u8> {
        match serde_json::from_slice(original) {
            Ok(value) if !self.rng.one_in(4) => self.json(&value),
            _ => self.bytes(original),
        }
    }

    /// A line of JSON changed, cut or doubled, or the same bytes changed anywhere.
    pub fn lines(&mut self, original: &str) -> Vec<u8> {
        let mut lines: Vec<Vec<u8>> = original.lines().map(|line| line.as_bytes().into()).collect();
        let at = self.rng.below(lines.len());
        match self.rng.below(6) {
            0 => return self.bytes(original.as_bytes()),
            1 => lines.insert(at, lines[at].clone()),
            _ => lines[at] = self.json_or_bytes(&lines[at].clone()),
        }
        lines.into_iter().flat_map(|line| [line, b"\n".to_vec()]).flatten().collect()
    }

    /// A safetensors file with another header of the right length, or with any bytes changed.
    pub fn safetensors(&mut self, original: &[u8]) -> Vec<u8> {
        let (header, data) = split(original);
        match self.rng.below(8) {
            0 => self.bytes(original),
            1 => [&original[..8 + header.len()], &self.bytes(data)].concat(),
            2 => {
                let length = self.rng.bits() >> self.rng.below(64);
                [&length.to_le_bytes(), &original[8..]].concat()
            }
            _ => {
                let header = self.json_or_bytes(header);
                let mut data = data.to_vec();
                // So that a shape with more or fewer elements finds its bytes.
                if self.rng.one_in(4) {
                    data.resize(self.rng.below(2 * data.len() + 8), 0);
                }
                [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
            }
        }
    }

    /// Bytes flipped, cut, doubled, removed, or overwritten.
    pub fn bytes(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        let (a, b) = (self.rng.below(bytes.len() + 1), self.rng.below(bytes.len() + 1));
        let range = a.min(b)..a.max(b).min(a.min(b) + 4096);
        match self.rng.below(6) {
            0 => bytes.truncate(a),
            1 => {
                let part = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, part);
            }
            2 => drop(bytes.drain(range)),
            3 => bytes[range].fill([0, 0xff, b'9', b'['][a % 4]),
            _ => {
                for _ in 0..=self.rng.below(4) {
                    if !bytes.is_empty() {
                        let at = self.rng.below(bytes.len());
                        bytes[at] ^= 1 << self.rng.below(8);
                    }
                }
            }
        }
        bytes
    }

    /// `value` as text, one or two of whose values, names or entries are others.
    fn json(&mut self, value: &Value) -> Vec<u8> {
        let nodes = count(value);
        let changed = (0..=self.rng.below(2)).map(|_| self.rng.below(nodes)).collect();
        let mut writer = Writer { mutator: self, changed, seen: 0, text: String::new() };
        writer.write(value);
        writer.text.into_bytes()
    }

    /// What stands in the place of `value`.
    fn another(&mut self, value: &Value) -> String {
        match self.rng.below(12) {
            0 => "[".repeat(self.rng.below(2000)),
            1 => {
                let depth = 1 + self.rng.below(300);
                format!("{}{value}{}", "[".repeat(depth), "]".repeat(depth))
            }
            2 => format!("\"{}\"", "x".repeat(1 << self.rng.below(18))),
            3 => format!("[{}1]", "1,".repeat(self.rng.below(5000))),
            4 => match value.as_f64() {
                // A neighbour: nothing else may notice it.
                Some(number) => (number + [1.0, -1.0][self.rng.below(2)]).to_string(),
                None => value.to_string(),
            },
            _ => VALUES[self.rng.below(VALUES.len())].to_string(),
        }
    }
}

/// Values of a document, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(entries) => entries.values().map(count).sum(),
        _ => 0,
    }
}

struct Writer<'a> {
    mutator: &'a mut Mutator,
    /// The values that are changed, by their order in the text.
    changed: Vec<usize>,
    seen: usize,
    text: String,
}

impl Writer<'_> {
    fn write(&mut self, value: &Value) {
        let changed = self.changed.contains(&self.seen);
        self.seen += 1;
        if changed {
            self.text += &self.mutator.another(value);
            return;
        }
        match value {
            Value::Array(values) => {
                self.text.push('[');
                for (i, value) in values.iter().enumerate() {
                    self.comma(i);
                    self.write(value);
                }
                self.text.push(']');
            }
            Value::Object(entries) => {
                self.text.push('{');
                for (i, (name, value)) in entries.iter().enumerate() {
                    self.comma(i);
                    self.entry(name, value);
                }
                self.text.push('}');
            }
            plain => self.text += &plain.to_string(),
        }
    }

    fn comma(&mut self, i: usize) {
        if i > 0 {
            self.text.push(',');
        }
    }

    /// An entry of an object, which may be there twice, be missing, or have another name.
    fn entry(&mut self, name: &str, value: &Value) {
        let plain = format!("{}:", Value::from(name));
        if !self.changed.contains(&self.seen) || self.mutator.rng.one_in(2) {
            self.text += &plain;
            return self.write(value);
        }
        // The entry is what is changed, not its value.
        self.seen += count(value);
        let rng = &mut self.mutator.rng;
        match rng.below(4) {
            0 => self.text += &format!("{plain}{value},{plain}{value}"),
            1 => self.text += &format!("\"\":{value}"),
            2 => self.text += &format!("\"{}\":{value}", "n".repeat(1 << rng.below(18))),
            _ => self.text += &format!("\"{}\":{value}", NAMES[rng.below(NAMES.len())]),
        }
    }
}

/// Header and data of a safetensors file.
fn split(file: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = file.split_first_chunk().unwrap();
    rest.split_at(u64::from_le_bytes(*length) as usize)
}

/// The names in the header of a safetensors file.
pub fn tensor_names(file: &[u8]) -> Vec<String> {
    let header: Value = serde_json::from_slice(split(file).0).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    names.cloned().collect()
}

#[test]
fn a_mutant_is_a_function_of_its_seed_and_differs_from_its_original() {
    let original = br#"{"a":[1,2,{"b":"c"}],"d":null,"e":-0.5}"#;
    let mutants: Vec<_> = (0..200).map(|n| Mutator::new(n).json_or_bytes(original)).collect();
    assert_eq!(mutants[7], Mutator::new(7).json_or_bytes(original));
    assert!(mutants.iter().filter(|mutant| *mutant != original).count() > 150);
}
