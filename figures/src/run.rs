//! The rows of one run of a bench: which are measured already, which are of this run, what is drawn.
//!
//! A run that measures again what a finished run has measured leaves the old rows where they are until its
//! own last row is there. So at any moment the file has a row of everything that was ever finished.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dsa_files::printable;

use crate::append::{append, drop_older, writable};
use crate::error::make_folder;
use crate::store::{Rows, Torn, read_all};
use crate::{Device, Error, Key, Row, What, latest};

/// A run of a bench and its file of rows.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    rows: Vec<Row>,
    torn: Option<Torn>,
    mine: BTreeMap<Key, Row>,
}

/// The rows that a picture of this run shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Current {
    /// Of this device and of the kernels as they are now, the newest of each place.
    pub rows: Vec<Row>,
    /// Names in the file that this build has no kernel for; their rows stay in it.
    pub unknown: BTreeSet<String>,
}

impl Run {
    /// Reads the file of rows, which is made if it is not there, its folder too. What could stop the run
    /// from keeping its first row stops it here.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        writable(path)?;
        let Rows { rows, torn } = read_all(path)?;
        Ok(Self { path: path.to_owned(), rows, torn, mine: BTreeMap::new() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was torn at the end of the file, if anything was.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Says what this run is to measure; [`Run::has`] then tells what of it an interrupted run has measured.
    ///
    /// If each of `all` has as many rows as every other, the last run was finished, or there was none: all
    /// is measured again. If some have more rows than others, the last run was interrupted behind those,
    /// and this one goes on. With `fresh` nothing counts as measured. A run that starts from the beginning
    /// leaves one row of each, the newest, so that at most two are ever there.
    pub fn plan(&mut self, all: &[What], fresh: bool) -> Result<(), Error> {
        self.mine.clear();
        let mut found: BTreeMap<Key, (usize, Option<&Row>)> = BTreeMap::new();
        for what in all {
            let same: Vec<&Row> = self.rows.iter().filter(|row| row.what() == what).collect();
            found.insert(what.key(), (same.len(), same.last().copied()));
        }
        let most = found.values().map(|(count, _)| *count).max().unwrap_or(0);
        let finished = found.values().all(|(count, _)| *count == most);
        if finished || fresh {
            if drop_older(&self.path, &found.into_keys().collect())? > 0 {
                self.rows = read_all(&self.path)?.rows;
            }
            return Ok(());
        }
        let done = found.into_iter().filter(|(_, (count, _))| *count == most);
        self.mine = done.filter_map(|(key, (_, row))| Some((key, row?.clone()))).collect();
        Ok(())
    }

    /// The row that this run has of it, or the interrupted run that it goes on from.
    pub fn has(&self, what: &What) -> Option<&Row> {
        self.mine.get(&what.key())
    }

    /// Appends a row to the file.
    pub fn keep(&mut self, row: Row) -> Result<(), Error> {
        append(&self.path, &row)?;
        self.rows.push(row.clone());
        self.mine.insert(row.key(), row);
        Ok(())
    }

    /// The rows of this run, those of the interrupted run that it went on from among them.
    pub fn mine(&self) -> Vec<Row> {
        self.mine.values().cloned().collect()
    }

    /// Everything is measured: drops from the file the older rows of the same measurements. Rows of other
    /// devices, of other measurements and of other versions of a kernel stay.
    pub fn finish(&self) -> Result<usize, Error> {
        drop_older(&self.path, &self.mine.keys().cloned().collect())
    }

    /// The rows to draw. `hash_of`: the hash of a kernel's source as it is now, none where this build has
    /// no kernel of that name.
    pub fn current(&self, device: &Device, hash_of: impl Fn(&str) -> Option<String>) -> Current {
        let mut hashes: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut rows = self.rows.clone();
        rows.retain(|row| {
            let what = row.what();
            let hash = hashes.entry(what.bench.clone()).or_insert_with(|| hash_of(&what.bench));
            what.device == *device && hash.as_ref() == Some(&what.kernel_hash)
        });
        let unknown = hashes.into_iter().filter(|(_, hash)| hash.is_none());
        Current {
            rows: latest(&rows),
            unknown: unknown.map(|(bench, _)| printable(&bench, 60)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
