//! What is said of a command that fails, and the status it exits with.

use dsa_files::FileError;
use dsa_kernels::Device;
use std::ffi::OsString;
use std::io::ErrorKind;

/// A command line or an environment that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub(super) String);

impl Usage {
    /// As an error of one line.
    pub(super) fn error(text: impl std::fmt::Display) -> anyhow::Error {
        Self(format!("error: {text}\n")).into()
    }
}

/// The status of a program that a closed pipe ended, as the shell shows it.
const BROKEN_PIPE: u8 = 128 + 13;

/// What to print of `error` and the status to exit with: 2 for a [`Usage`], otherwise 1. Of a pipe that
/// its reader closed nothing is said, as by other tools.
pub fn report(error: &anyhow::Error) -> (String, u8) {
    if let Some(usage) = error.downcast_ref::<Usage>() {
        return (usage.0.clone(), 2);
    }
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let file = cause.downcast_ref::<FileError>().map(|file| file.kind);
        io.or(file) == Some(ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return (String::new(), BROKEN_PIPE);
    }
    // Many errors say their cause themselves: each is said once.
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    (format!("error: {text}\n"), 1)
}

/// Refuses a variable of ours that means nothing, whatever the command: what is mistyped would otherwise
/// be taken for what is not set.
pub(super) fn check_environment(get: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<()> {
    let check = |name: &str, right: &dyn Fn(&str) -> bool, expected: &str| match get(name) {
        // An empty variable is one that is not set.
        Some(value) if !value.is_empty() && !value.to_str().is_some_and(right) => {
            Err(Usage::error(format!("{name} is {value:?}, expected {expected}")))
        }
        _ => Ok(()),
    };
    let device = |text: &str| Device::parse(text).is_ok();
    check("DSA_DEVICE", &device, "cpu, cuda, hip, cuda:N or hip:N")?;
    check("DSA_SEED", &|text| text.parse::<u64>().is_ok(), "an integer from 0 to 2^64 - 1")?;
    check(
        "DSA_CASES",
        &|text| text.parse::<u32>().is_ok_and(|cases| cases > 0),
        "an integer from 1 to 2^32 - 1",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_means_nothing_is_refused_by_its_name() {
        for (name, value) in [
            ("DSA_DEVICE", "tpu"),
            ("DSA_DEVICE", "cpu:7"),
            ("DSA_SEED", "abc"),
            ("DSA_CASES", "0"),
        ] {
            let get = |asked: &str| (asked == name).then(|| value.into());
            let error = check_environment(get).unwrap_err();
            let (text, status) = report(&error);
            assert!(text.starts_with(&format!("error: {name} is {value:?}, expected ")), "{text}");
            assert_eq!(status, 2);
        }
        let get = |name: &str| Some(if name == "DSA_DEVICE" { "cuda:1" } else { "7" }.into());
        check_environment(get).unwrap();
        check_environment(|_| None).unwrap();
        check_environment(|_| Some("".into())).unwrap();
    }

    #[test]
    fn an_error_says_each_cause_once_and_a_closed_pipe_nothing() {
        let io = || std::io::Error::other("not a file");
        let file = FileError::io(std::path::Path::new("f"), io());
        let error = anyhow::Error::from(file).context("f: not a file");
        assert_eq!(report(&error), ("error: f: not a file\n".to_string(), 1));
        let error = anyhow::Error::from(io()).context("g");
        assert_eq!(report(&error), ("error: g: not a file\n".to_string(), 1));
        let closed = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(report(&anyhow::Error::from(closed).context("written")).0, "");
    }
}
