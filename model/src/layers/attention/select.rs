//! Attending to other keys with the same weights.

use super::Attention;
use crate::config::Config;
use crate::error::{Error, Result};

impl Attention {
    /// From now on as many keys are selected as `config` says, and by an indexer of its own only if the layer is `full`.
    pub(in crate::layers) fn select(&mut self, config: &Config, full: bool) -> Result<()> {
        let none = "a layer with an indexer that was loaded without one";
        Error::check(
            !full || self.indexer.is_some(),
            "--share-index",
            none,
            "indexers that are there",
        )?;
        if !full {
            self.indexer = None;
        }
        self.config = config.clone();
        Ok(())
    }
}
