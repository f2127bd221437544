//! Which layers choose their keys, and which attend to those that an earlier layer chose (IndexShare in
//! GLM-5.2, IndexCache elsewhere; arXiv 2603.12201).

use serde::Serialize;

use super::Config;
use super::fields::Fields;
use crate::error::{Error, Result};

/// What `indexer_types` says of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexerType {
    /// It has an indexer.
    Full,
    /// It attends to the keys of the last layer before it that has one.
    Shared,
}

/// Where a layer's keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexer {
    /// From its own indexer: it has the weights of one, and caches index keys.
    Full,
    /// From this earlier layer's. Weights of an indexer that the checkpoint has for it are not read.
    SharedWith(usize),
}

impl Config {
    /// Where the keys of layer `layer` come from. A layer that does not exist has an indexer.
    pub fn indexer_of(&self, layer: usize) -> Indexer {
        let types = self.indexer_types.as_deref().unwrap_or_default();
        let up_to = types.get(..=layer).unwrap_or_default();
        match up_to.iter().rposition(|kind| *kind == IndexerType::Full) {
            Some(source) if source < layer => Indexer::SharedWith(source),
            _ => Indexer::Full,
        }
    }

    /// Layers that have an indexer, and so a cache of index keys: 61 of 61 in V3.2, 21 of 78 in GLM-5.2.
    pub fn indexers(&self) -> usize {
        let full = |layer: &usize| self.indexer_of(*layer) == Indexer::Full;
        (0..self.num_hidden_layers).filter(full).count()
    }

    /// One letter for each layer: F has an indexer, S shares.
    pub fn index_pattern(&self) -> String {
        let letter = |layer| match self.indexer_of(layer) {
            Indexer::Full => 'F',
            Indexer::SharedWith(_) => 'S',
        };
        (0..self.num_hidden_layers).map(letter).collect()
    }
}

/// Layer i has an indexer if max(i − offset + 1, 0) is a multiple of the frequency.
///
/// `GlmMoeDsaConfig` in transformers and `skip_topk` in vLLM.
pub(super) fn schedule(layers: usize, frequency: usize, offset: usize) -> Vec<IndexerType> {
    let kind = |i: usize| match (i + 1).saturating_sub(offset).is_multiple_of(frequency) {
        true => IndexerType::Full,
        false => IndexerType::Shared,
    };
    (0..layers).map(kind).collect()
}

/// What is wrong with the types of `layers` layers: the value, and the rule it breaks.
pub(super) fn broken_rule(types: &[IndexerType], layers: usize) -> Option<(String, String)> {
    if types.len() != layers {
        return Some((
            format!("a list of {}", types.len()),
            format!("one for each of {layers} layers"),
        ));
    }
    (types.first() == Some(&IndexerType::Shared)).then(|| {
        let rule = "full: there is no layer before it whose keys it could take";
        ("shared in layer 0".into(), rule.into())
    })
}

/// The types that a pattern of F and S says.
pub(super) fn letters(text: &str) -> std::result::Result<Vec<IndexerType>, char> {
    let kind = |letter| match letter {
        'F' => Ok(IndexerType::Full),
        'S' => Ok(IndexerType::Shared),
        other => Err(other),
    };
    text.chars().map(kind).collect()
}

/// What letters must be.
pub(super) const LETTERS: &str = "F (it has an indexer) or S (it shares) for each layer";

/// What one field says.
struct Source {
    name: &'static str,
    /// What stands before a layer's type in an error.
    prefix: String,
    types: Vec<IndexerType>,
}

/// The types of the layers of a Hugging Face file; `None` if each has an indexer. There are three places
/// for them, of which readers prefer different ones: where two say different things, the file is refused.
pub(super) fn read(f: &Fields, layers: usize) -> Result<Option<Vec<IndexerType>>> {
    let sources = [listed(f, "indexer_types")?, pattern(f)?, scheduled(f, layers)?];
    let mut chosen: Option<Source> = None;
    for source in sources.into_iter().flatten() {
        let Source { name, prefix, types } = &source;
        if let Some((value, rule)) = broken_rule(types, layers) {
            return Err(f.error(name, format!("{prefix}{value}"), &rule));
        }
        let Some(Source { name: first, types: want, .. }) = &chosen else {
            chosen = Some(source);
            continue;
        };
        if let Some(layer) = (0..layers).find(|&layer| types[layer] != want[layer]) {
            let value = format!("{prefix}{} in layer {layer}", word(types[layer]));
            let expected = format!("{}, as {first} says, or one of them alone", word(want[layer]));
            return Err(f.error(name, value, &expected));
        }
    }
    let types = chosen.map(|source| source.types);
    let types = types.filter(|types| types.contains(&IndexerType::Shared));
    let cached: Option<bool> = f.optional("use_index_cache")?;
    let right = types.is_none() || cached != Some(false);
    f.check(right, "use_index_cache", false, "true, or nothing: some layers share their keys")?;
    Ok(types)
}

fn word(kind: IndexerType) -> &'static str {
    match kind {
        IndexerType::Full => "full",
        IndexerType::Shared => "shared",
    }
}

/// A list of `full` and `shared`, or of F and S.
fn listed(f: &Fields, name: &'static str) -> Result<Option<Source>> {
    let Some(words) = f.optional::<Vec<String>>(name)? else {
        return Ok(None);
    };
    let kind = |text: &String| match text.as_str() {
        "full" | "F" => Ok(IndexerType::Full),
        "shared" | "S" => Ok(IndexerType::Shared),
        other => {
            let value = format!("{other:?} for one of them");
            Err(f.error(name, value, "\"full\" or \"shared\" for each layer"))
        }
    };
    let types = words.iter().map(kind).collect::<Result<_>>()?;
    Ok(Some(Source { name, prefix: String::new(), types }))
}

/// `index_topk_pattern`: letters, or a list.
fn pattern(f: &Fields) -> Result<Option<Source>> {
    let name = "index_topk_pattern";
    match f.present(name).map(|value| value.as_str()) {
        None => Ok(None),
        Some(None) => listed(f, name),
        Some(Some(text)) => match letters(text) {
            Ok(types) => Ok(Some(Source { name, prefix: String::new(), types })),
            Err(other) => Err(f.error(name, format!("{other:?} for one of them"), LETTERS)),
        },
    }
}

/// `index_topk_freq` with `index_skip_topk_offset`. A frequency above 1 without an offset is refused, since
/// implementations take 1 or 2 for it.
fn scheduled(f: &Fields, layers: usize) -> Result<Option<Source>> {
    let frequency: Option<usize> = f.optional("index_topk_freq")?;
    let offset: Option<usize> = f.optional("index_skip_topk_offset")?;
    let Some(frequency) = frequency else {
        return Ok(None);
    };
    f.check(frequency > 0, "index_topk_freq", frequency, "1 or more")?;
    let expected = format!(
        "a value beside index_topk_freq = {frequency}, since implementations take 1 or 2 for it"
    );
    let missing = || f.error("index_skip_topk_offset", "missing", &expected);
    // With a frequency of 1 every layer is full, whatever the offset.
    let offset = offset.or((frequency == 1).then_some(0)).ok_or_else(missing)?;
    let prefix = format!("{frequency} with index_skip_topk_offset {offset}: ");
    Ok(Some(Source { name: "index_topk_freq", prefix, types: schedule(layers, frequency, offset) }))
}

/// The types that `--share-index` says: letters, or `FREQUENCY:OFFSET`.
pub(super) fn from_command_line(text: &str, layers: usize) -> Result<Vec<IndexerType>> {
    let wrong = |value: String, expected: String| Error::Argument {
        name: "--share-index",
        value,
        expected,
    };
    let types = match text.split_once(':') {
        Some((frequency, offset)) => match (frequency.parse(), offset.parse()) {
            (Ok(frequency), Ok(offset)) if frequency > 0 => schedule(layers, frequency, offset),
            _ => {
                let expected = "two numbers, the first 1 or more, as 4:3";
                let value = dsa_files::printable(text, 80);
                return Err(wrong(value, expected.into()));
            }
        },
        None => letters(text).map_err(|other| {
            let expected = format!("{LETTERS}, or FREQUENCY:OFFSET");
            wrong(format!("{other:?} for one of them"), expected)
        })?,
    };
    match broken_rule(&types, layers) {
        None => Ok(types),
        Some((value, rule)) => Err(wrong(value, rule)),
    }
}
