//! What the command line says instead of the file.

use std::fmt;

use serde::Serialize;

use super::check::MAX_POSITIONS;
use super::{Config, IndexerType, sharing};
use crate::error::{Error, Result};

/// The fields of a configuration that the command line may replace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--topk N`: keys that a query attends to, 1 to 2^24.
    pub topk: Option<usize>,
    /// `--share-index PATTERN`: which layers have an indexer, one letter for each (`FFFSSSF…`: F has one, S
    /// attends to the keys of the last F before it), or `FREQUENCY:OFFSET` as in `index_topk_freq` and
    /// `index_skip_topk_offset` (`4:3` is GLM-5.2's).
    pub share_index: Option<String>,
    /// `--max-seq N`: positions, 1 to 2^24.
    pub max_seq: Option<usize>,
}

/// A field whose value is the command line's: every result says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overridden {
    /// The field, by its Hugging Face name.
    pub field: &'static str,
    /// What the file says (layers in letters).
    pub file: String,
    /// What is used instead.
    pub value: String,
}

impl fmt::Display for Overridden {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} is {}, not the file's {}", self.field, self.value, self.file)
    }
}

impl Overrides {
    /// `config` with these fields replaced, and what is worth a warning. Each is recorded in
    /// [`Config::overrides`].
    ///
    /// More positions than the model was made for are a warning; what rotary angles in f32 cannot tell
    /// apart is refused. A layer that becomes full needs the weights of an indexer, which whoever reads
    /// the checkpoint finds out.
    ///
    /// # Errors
    /// [`Error::Argument`] with the option, its value and what was expected.
    pub fn apply(&self, mut config: Config) -> Result<(Config, Vec<String>)> {
        let mut warnings = Vec::new();
        let within = |name, n: usize| {
            let right = (1..=MAX_POSITIONS).contains(&n);
            Error::check(right, name, n, format!("1 to {MAX_POSITIONS}"))
        };
        if let Some(topk) = self.topk {
            within("--topk", topk)?;
            config.overrides.push(replaced("index_topk", config.index_topk, topk));
            config.index_topk = topk;
        }
        if let Some(pattern) = &self.share_index {
            let types = sharing::from_command_line(pattern, config.num_hidden_layers)?;
            let before = config.index_pattern();
            let shared = types.contains(&IndexerType::Shared);
            config.indexer_types = shared.then_some(types);
            let after = config.index_pattern();
            config.overrides.push(replaced("indexer_types", before, after));
        }
        if let Some(positions) = self.max_seq {
            within("--max-seq", positions)?;
            let made_for = config.max_position_embeddings;
            if positions > made_for {
                warnings.push(format!(
                    "--max-seq is {positions}, more than the {made_for} positions that the model \
                     is made for (max_position_embeddings)"
                ));
            }
            config.overrides.push(replaced("max_position_embeddings", made_for, positions));
            config.max_position_embeddings = positions;
        }
        config.validate()?;
        Ok((config, warnings))
    }
}

fn replaced(field: &'static str, file: impl ToString, value: impl ToString) -> Overridden {
    Overridden { field, file: file.to_string(), value: value.to_string() }
}
