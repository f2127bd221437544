//! One bench per kernel and stage: gate, time, row. `cargo bench --bench kernels -- --help` lists the axes;
//! `cargo bench --bench kernels -- --ceilings` prints how fast every form of every probe of the device is, and ends.

use dsa_benches::args::{KernelArgs, axes, command, parsed};
use dsa_benches::peaks::Ceilings;
use dsa_benches::session::{Effort, Session};
use dsa_benches::{sentence, specs};
use dsa_figures::Noise;
use dsa_figures::terminal::{closed_pipes_are_silent, end, note, say};
use dsa_gate::kernels::ALL;
use std::process::ExitCode;

fn main() -> ExitCode {
    closed_pipes_are_silent();
    end(measure().map_err(|error| sentence(&error)))
}

fn measure() -> anyhow::Result<ExitCode> {
    let args: KernelArgs = parsed();
    let only = args.common.filter();
    if !args.common.concerns(&ALL.iter().map(|kernel| kernel.name).collect::<Vec<_>>())? {
        return Ok(ExitCode::SUCCESS);
    }
    if args.common.list {
        specs::names(only).try_for_each(say)?;
        return Ok(ExitCode::SUCCESS);
    }
    let device = args.common.open()?;
    let axes = axes(&args, &device);
    note(format!("{} ({}), {axes:?}", device.kind(), device.name()));
    if args.ceilings {
        for probe in Ceilings::measure(&device)?.probes() {
            say(probe)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    specs::check(&device, &axes, only)?;
    if args.common.once {
        for spec in specs::all(&device, &axes, args.common.seed, only)? {
            (spec.work)()?;
            device.sync()?;
            say(format!("{}/{} {:?}", spec.kernel, spec.stage.name(), spec.shape))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let command = command::<KernelArgs>("kernels");
    let mut session = Session::open("kernels", command, args.common.clone(), device.clone())?;
    let chosen = specs::all(&device, &axes, args.common.seed, only)?;
    anyhow::ensure!(!chosen.is_empty(), "{only} has no bench");
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
