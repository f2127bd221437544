//! Pictures as files, each whole or as it was.

use std::path::{Path, PathBuf};

use dsa_files::{FileError, replace};

use crate::Error;
use crate::error::make_folder;

/// Every picture of a bench.
const STEMS: [&str; 3] = ["cost_vs_context", "time_stack", "roofline"];
const ENDINGS: [&str; 3] = ["svg", "png", "csv"];

/// A picture, drawn and not yet written.
#[derive(Debug)]
pub(crate) struct Picture {
    pub stem: &'static str,
    pub svg: String,
    pub png: Vec<u8>,
    pub csv: String,
}

/// Makes the folder if it is not there, and shows that pictures can be written into it. A bench calls this
/// before it measures anything.
pub fn ready(folder: &Path) -> Result<(), Error> {
    make_folder(folder)?;
    tempfile::tempfile_in(folder).map_err(|error| Error::io(folder, error))?;
    for (stem, ending) in STEMS.into_iter().flat_map(|stem| ENDINGS.map(|ending| (stem, ending))) {
        let path = place(folder, stem, ending);
        if path.is_dir() {
            return Err(
                FileError::refused(&path, "is a folder, expected room for a picture").into()
            );
        }
    }
    Ok(())
}

/// Writes the pictures; gives back the files in the order svg, png, csv.
pub(crate) fn write(pictures: &[Picture], folder: &Path) -> Result<Vec<PathBuf>, Error> {
    make_folder(folder)?;
    let mut written: Vec<PathBuf> = Vec::new();
    for picture in pictures {
        for ending in ENDINGS {
            let path = place(folder, picture.stem, ending);
            let bytes = match ending {
                "svg" => picture.svg.as_bytes(),
                "png" => &picture.png,
                _ => picture.csv.as_bytes(),
            };
            if let Err(reason) = replace(&path, |out| out.write_all(bytes)) {
                return Err(stopped(reason, &written));
            }
            written.push(path);
        }
    }
    Ok(written)
}

fn place(folder: &Path, stem: &str, ending: &str) -> PathBuf {
    folder.join(format!("{stem}.{ending}"))
}

fn stopped(reason: FileError, written: &[PathBuf]) -> Error {
    let names = written.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy()));
    let names: Vec<_> = names.collect();
    let written = if names.is_empty() { "none".to_string() } else { names.join(", ") };
    Error::Partly { reason, written }
}
