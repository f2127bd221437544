//! Writing the ranks' files: from where an earlier run stopped, and over nothing that is another's.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dsa_files::{FileError, free_bytes, read, replace, same_file};

use super::{RankFile, Split};
use crate::error::{Error, Result};
use crate::weights::is_there;

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 24;
/// Bytes of each tensor that are compared with what an earlier run wrote.
const SAMPLE: u64 = 1 << 12;
/// Files beside the weights that go with them, none larger than this.
const MAX_BESIDE: u64 = 1 << 26;

/// How far a file is.
#[derive(Debug)]
pub(super) enum State {
    /// Whole, from an earlier run.
    Done,
    /// So many of its tensors are there, from an earlier run.
    Begun(usize),
    /// Not there.
    New,
}

impl Split<'_> {
    /// Writes the files to the folder `to`, which is made if it is not there, and copies what goes with them from the
    /// folder `from`: `config.json`, `generation_config.json`, `chat_template.jinja`, and files with `token` in their name.
    /// A file is called `….part` until it is whole. What an earlier run wrote stays, and is gone on with. `progress` is
    /// told how many bytes of all are there, again and again.
    ///
    /// # Errors
    /// [`Error::File`] before anything is written: the folder has weights that this conversion would not make, or not
    /// enough room; or when the checkpoint can no longer be read or the files not be written.
    pub fn write(&self, from: &Path, to: &Path, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        if same_file(from, to) {
            let reason = "is the checkpoint's own folder, expected another";
            return Err(FileError::refused(to, reason).into());
        }
        let made = make(to)?;
        let free = free_bytes(to).map_err(Error::from);
        let begun = free.and_then(|free| self.begin(from, to, free));
        let (states, mut there) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                if made {
                    // Only what was made here, and only if it is empty.
                    let _ = fs::remove_dir(to);
                }
                return Err(error);
            }
        };
        let all = self.bytes();
        progress(there, all);
        for (file, state) in self.files.iter().zip(states) {
            self.write_file(file, &state, to, |bytes| {
                there += bytes;
                progress(there, all);
            })?;
        }
        Ok(())
    }

    /// Refuses what cannot be written to a disk with `free` bytes, and copies what goes with the weights: how far each
    /// file is, and how many bytes are there.
    pub(super) fn begin(&self, from: &Path, to: &Path, free: u64) -> Result<(Vec<State>, u64)> {
        let states = self.look(to)?;
        let there = self.files.iter().zip(&states).map(|(file, state)| file.there(state)).sum();
        let missing = self.bytes() - there;
        if missing > free {
            let reason = format!("{missing} bytes to write, and the disk has room for {free}");
            return Err(FileError::refused(to, reason).into());
        }
        copy_beside(from, to)?;
        Ok((states, there))
    }

    /// How far each file is, and that there are no others.
    fn look(&self, to: &Path) -> Result<Vec<State>> {
        let expected = "an empty folder, or one in which this conversion was begun";
        for entry in fs::read_dir(to).map_err(Error::io(to))? {
            let path = entry.map_err(Error::io(to))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let whole = name.strip_suffix(".part").unwrap_or(&name);
            let weights =
                whole.ends_with(".safetensors") || whole.ends_with(".safetensors.index.json");
            if weights && !self.files.iter().any(|file| file.name == whole) {
                let reason = format!("is not of this conversion, expected {expected}");
                return Err(FileError::refused(&path, reason).into());
            }
        }
        let state = |file: &RankFile| {
            let (path, part) = file.paths(to);
            let differs = |path: &Path| {
                let reason =
                    format!("holds other weights than this conversion makes, expected {expected}");
                Err(FileError::refused(path, reason).into())
            };
            if is_there(&path)? {
                let whole = self.tensors_in(file, &path)? == Some(file.tensors.len());
                let right = whole && size(&path)? == file.bytes();
                return if right { Ok(State::Done) } else { differs(&path) };
            }
            if !is_there(&part)? || size(&part)? < file.header.len() as u64 {
                return Ok(State::New);
            }
            match self.tensors_in(file, &part)? {
                Some(tensors) => Ok(State::Begun(tensors)),
                None => differs(&part),
            }
        };
        self.files.iter().map(state).collect()
    }

    /// How many of the tensors of `file` are in the file at `path`, whole; `None` if it is another's.
    fn tensors_in(&self, file: &RankFile, path: &Path) -> Result<Option<usize>> {
        let there = File::open(path).map_err(Error::io(path))?;
        let length = size(path)?;
        let start = file.header.len() as u64;
        let same = |bytes: &[u8], at: u64| {
            let mut found = vec![0; bytes.len()];
            match there.read_exact_at(&mut found, at) {
                Ok(()) => Ok(found == bytes),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
                Err(error) => Err(Error::io(path)(error)),
            }
        };
        if !same(&file.header, 0)? {
            return Ok(None);
        }
        let whole = file.tensors.iter().take_while(|out| start + out.place.end <= length).count();
        for out in &file.tensors[..whole] {
            if let Some(sample) = self.pieces(out, SAMPLE).next()
                && !same(&sample?, start + out.place.start)?
            {
                return Ok(None);
            }
        }
        Ok(Some(whole))
    }

    fn write_file(
        &self,
        file: &RankFile,
        state: &State,
        to: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<()> {
        let (path, part) = file.paths(to);
        let first = match state {
            State::Done => return Ok(()),
            State::Begun(tensors) => *tensors,
            State::New => 0,
        };
        let failed = || Error::io(&part);
        let options = OpenOptions::new().write(true).create(true).truncate(false).open(&part);
        let mut out = options.map_err(failed())?;
        let there = file.there(state);
        out.set_len(there).map_err(failed())?;
        out.seek(SeekFrom::Start(there)).map_err(failed())?;
        if there == 0 {
            out.write_all(&file.header).map_err(failed())?;
            progress(file.header.len() as u64);
        }
        for tensor in &file.tensors[first..] {
            for piece in self.pieces(tensor, PIECE) {
                let piece = piece?;
                out.write_all(&piece).map_err(failed())?;
                progress(piece.len() as u64);
            }
        }
        out.sync_all().map_err(failed())?;
        fs::rename(&part, &path).map_err(Error::io(&path))
    }
}

impl RankFile {
    /// Its place in the folder `to`, and where it is until it is whole.
    fn paths(&self, to: &Path) -> (PathBuf, PathBuf) {
        (to.join(&self.name), to.join(format!("{}.part", self.name)))
    }

    /// Bytes of it that an earlier run wrote.
    fn there(&self, state: &State) -> u64 {
        match state {
            State::Done => self.bytes(),
            State::New => 0,
            State::Begun(tensors) => {
                let written = &self.tensors[..*tensors];
                self.header.len() as u64 + written.last().map_or(0, |last| last.place.end)
            }
        }
    }
}

/// Makes the folder if it is not there; whether it did.
fn make(folder: &Path) -> Result<bool> {
    match fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io(folder)(error)),
    }
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(Error::io(path))?.len())
}

/// Copies what goes with the weights. A file that is there must be the same.
fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = ["config.json", "generation_config.json", "chat_template.jinja"];
        if known.contains(&&*name) || (name.contains("token") && path.is_file()) {
            copies.push((read(&path, MAX_BESIDE)?, to.join(&name)));
        }
    }
    for (bytes, path) in &copies {
        if is_there(path)? && read(path, MAX_BESIDE)? != *bytes {
            let reason = "is not the checkpoint's, expected the same or none";
            return Err(FileError::refused(path, reason).into());
        }
    }
    for (bytes, path) in copies {
        replace(&path, |out| out.write_all(&bytes))?;
    }
    Ok(())
}
