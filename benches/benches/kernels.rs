//! One bench per kernel and stage: gate, time, row. `cargo bench --bench kernels -- --help` lists the axes;
//! `cargo bench --bench kernels -- --ceilings` prints how fast every form of every probe of the device is, and ends.

use dsa_benches::args::{KernelArgs, axes, command, parsed};
use dsa_benches::peaks::Ceilings;
use dsa_benches::session::{Effort, Session};
use dsa_benches::{sentence, specs};
use dsa_figures::Noise;
use dsa_figures::terminal::{closed_pipes_are_silent, end, note, say};
use std::process::ExitCode;

fn main() -> ExitCode {
    closed_pipes_are_silent();
    end(measure().map_err(|error| sentence(&error)))
}

fn measure() -> anyhow::Result<ExitCode> {
    let args: KernelArgs = parsed();
    let device = args.common.open()?;
    let axes = axes(&args, &device);
    note(format!("{} ({}), {axes:?}", device.kind(), device.name()));
    if args.ceilings {
        for probe in Ceilings::measure(&device)?.probes() {
            say(probe)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let only = args.only.as_deref().unwrap_or("");
    specs::check(&device, &axes, only)?;
    let command = command::<KernelArgs>("kernels");
    let mut session = Session::open("kernels", command, args.common.clone(), device.clone())?;
    let chosen = specs::all(&device, &axes, args.common.seed, only)?;
    anyhow::ensure!(!chosen.is_empty(), "--only {only:?} is in the name of no kernel");
    session.plan(&session.whats(&chosen)?)?;
    let ceilings = Ceilings::measure(&device)?;
    note(format!("measured ceilings:{ceilings}"));
    let effort = Effort { seconds: args.seconds, gate_cases: args.gate_cases };
    session.kernels(chosen, effort, &ceilings)?;
    let rows = session.finish(|_| true)?;
    if let Some(noise) = Noise::of(&rows.iter().collect::<Vec<_>>(), &[]) {
        say(noise)?;
    }
    session.verdict()
}
