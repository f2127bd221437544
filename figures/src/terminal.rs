//! How the programs of the workbench speak: lines that a closed pipe swallows, and one line for an error.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use dsa_files::FileError;

use crate::Error;

/// Writes a line to standard output. Whoever has read enough (`| head`) is no error: the work goes on, and its
/// exit status says how it ended. Anything else, a full disk behind `>`, is.
pub fn say(line: impl Display) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let path = std::path::Path::new("standard output");
            Err(FileError::io(path, error).into())
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error, terminal or not. A line that cannot be written is no reason to stop.
pub fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The exit status of a program. An error is said once in one line, without a backtrace; status 1.
pub fn end(result: Result<ExitCode, impl Display>) -> ExitCode {
    result.unwrap_or_else(|error| {
        note(format!("error: {error}"));
        ExitCode::FAILURE
    })
}

/// Ends the program in silence when a library's `println!` meets a closed pipe, where it would panic.
pub fn closed_pipes_are_silent() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            // What a shell reports of a program that SIGPIPE ended.
            std::process::exit(141);
        }
        before(panic);
    }));
}
