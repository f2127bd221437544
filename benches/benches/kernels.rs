//! One bench per kernel and stage: gate, time, row. `cargo bench --bench kernels -- --help` lists the axes;
//! `cargo bench --bench kernels -- --ceilings` prints how fast every form of every probe of the device is, and ends.

use clap::Parser;
use dsa_benches::args::{Args, Axes};
use dsa_benches::peaks::Ceilings;
use dsa_benches::session::Session;
use dsa_benches::specs;
use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let device = args.open()?;
    let axes = Axes::new(&args, &device)?;
    eprintln!("{} ({}), {axes:?}", device.kind(), device.name());
    let only = args.only.clone().unwrap_or_default();
    if !args.ceilings {
        specs::check(&device, &axes, &only)?;
    }
    let ceilings = Ceilings::measure(&device)?;
    if args.ceilings {
        for probe in ceilings.probes() {
            println!("{probe}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("measured ceilings:{ceilings}");
    let figures = args.figures_of(&device);
    let options = dsa_figures::Options { price_per_hour: args.price, ..Default::default() };
    let chosen = specs::all(&device, &axes, args.seed, &only)?;
    let mut session = Session::new("kernels", args, device, ceilings)?;
    session.kernels(chosen)?;
    for file in dsa_figures::draw(&session.current()?, &figures, &options)? {
        println!("{}", file.display());
    }
    session.verdict()
}
