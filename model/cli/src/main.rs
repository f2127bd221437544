//! The command line of the workbench.

use std::io::Write;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_a_runtimes(panic) {
            usual(panic);
        }
    }));
    // Colours only where a terminal shows them and NO_COLOR does not forbid them.
    let mut out = anstream::stdout();
    let done = dsa_cli::run(std::env::args_os(), &mut out);
    let done = done.and_then(|code| out.flush().map(|()| code).map_err(Into::into));
    done.unwrap_or_else(|error| {
        let (text, status) = dsa_cli::report(&error);
        // Where standard error is closed too, the status is all that is left to say.
        let _ = std::io::stderr().write_all(text.as_bytes());
        ExitCode::from(status)
    })
}

/// Whether a panic is that of a library on a thread of its own. CubeCL's threads panic where memory ends or a
/// launch is refused; who waits for the result is told by an error, so that a second text with a backtrace
/// would only hide it.
fn is_a_runtimes(panic: &PanicHookInfo) -> bool {
    let ours = |file: &str| Path::new(file).is_relative() && !file.starts_with("setup");
    std::thread::current().name() != Some("main")
        && panic.location().is_some_and(|location| !ours(location.file()))
}
