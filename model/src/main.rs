//! The command line of the workbench.

use std::process::ExitCode;

fn main() -> ExitCode {
    match dsa_model::cli::run(std::env::args_os(), &mut std::io::stdout()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
