//! What is asked of every reader, whatever the file.

use super::mutator::Mutator;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

/// Longest that one file may take, on a machine that does other things too.
const MOST_TIME: Duration = Duration::from_secs(60);
/// Most memory that one file may make this process grow by, in KiB.
const MOST_MEMORY: u64 = 2 << 20;
/// Most bytes of a message.
const MOST_TEXT: usize = 2_000;

/// What a reader made of a file.
pub enum Outcome {
    Accepted,
    Refused(String),
}

/// A reader of files.
pub struct Reader<'a> {
    /// The file's name.
    pub name: &'a str,
    /// Puts what else it reads into the folder.
    pub beside: &'a dyn Fn(&Path),
    /// Makes a file.
    pub mutant: &'a dyn Fn(&mut Mutator) -> Vec<u8>,
    /// Reads the file at a path.
    pub read: &'a dyn Fn(&Path) -> Outcome,
}

impl Reader<'_> {
    /// Reads so many mutants; returns how many were accepted. A mutant that breaks a rule is kept, and the
    /// panic names its file.
    pub fn run(&self, mutants: u64, seed: u64) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(self.name);
        (self.beside)(folder.path());
        let mut accepted = 0;
        let (progress, watched) = channel();
        let watch = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut n: u64 = 0;
                loop {
                    match watched.recv_timeout(MOST_TIME) {
                        Ok(next) => n = next,
                        Err(RecvTimeoutError::Disconnected) => return,
                        Err(RecvTimeoutError::Timeout) => {
                            // Nothing can stop a thread that does not end but the end of the process.
                            eprintln!(
                                "mutant {n} did not end in {MOST_TIME:?}: {}",
                                path.display()
                            );
                            std::process::exit(1);
                        }
                    }
                }
            }
        });
        for n in 0..mutants {
            let mut mutator = Mutator::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(n));
            fs::write(&path, (self.mutant)(&mut mutator)).unwrap();
            let (before, memory) = (listing(folder.path()), peak_kib());
            progress.send(n).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.read)(&path)));
            let grown = peak_kib().saturating_sub(memory);
            let wrong = match &outcome {
                Err(_) => Some("it panicked".to_string()),
                Ok(_) if grown > MOST_MEMORY => Some(format!("it took {grown} KiB")),
                Ok(_) if listing(folder.path()) != before => Some("it wrote".to_string()),
                Ok(Outcome::Refused(text)) => unfit(text),
                Ok(Outcome::Accepted) => None,
            };
            if let Some(wrong) = wrong {
                let kept = folder.keep().join(self.name);
                panic!("mutant {n} (DSA_SEED={seed}), {}: {wrong}", kept.display());
            }
            accepted += u64::from(matches!(outcome, Ok(Outcome::Accepted)));
        }
        drop(progress);
        watch.join().unwrap();
        accepted
    }
}

/// What is wrong with an error's text.
fn unfit(text: &str) -> Option<String> {
    let acts = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}');
    if text.is_empty() || text.len() >= MOST_TEXT {
        return Some(format!("a message of {} bytes: {text:.200}", text.len()));
    }
    text.contains(acts).then(|| format!("a message that acts on a terminal: {text:?}"))
}

/// The files of a folder, with their sizes and times.
fn listing(folder: &Path) -> BTreeMap<std::ffi::OsString, (u64, SystemTime)> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        (entry.file_name(), (metadata.len(), metadata.modified().unwrap()))
    };
    fs::read_dir(folder).unwrap().map(entry).collect()
}

/// The most memory that this process ever had, in KiB; 0 where the system does not say.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The number in an environment variable, which must be one if it is set.
pub fn environment<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number"))
        }
        Err(_) => default,
    }
}
