//! Cost against context: one whole layer, attention and experts, dense (V3.1) and sparse (V3.2), prefill and decode,
//! over a ladder of contexts; then US$ per million tokens and the pictures.
//!
//! On a GPU the layer has the true sizes, all 256 experts. On a CPU it is DeepSeek-V3.2-Exp divided by 4 (heads,
//! ranks, hidden, inner widths, index heads, topk), so that context L here stands for 4 L there; the ladder stops before the run
//! would take longer than `--budget` seconds. `--help` lists the axes.

use anyhow::Context;
use dsa_benches::args::{CostArgs, command, parsed};
use dsa_benches::curves::{Plan, Point, points};
use dsa_benches::peaks::Ceilings;
use dsa_benches::sentence;
use dsa_benches::session::{Session, before};
use dsa_figures::plot::CostFigure;
use dsa_figures::row::COST_BENCH;
use dsa_figures::terminal::{closed_pipes_are_silent, end, note, say};
use dsa_figures::{Gate, PassedGate, Row, Stage, Timing, Variant, What, Work};
use dsa_gate::layer::timed::{Judged, Timed, experts_visited, judge_timed};
use dsa_gate::layer::{Bound, Check, verify_random};
use dsa_kernels::{Device, DeviceKind};
use dsa_model::Config;
use dsa_model::layers::Block;
use dsa_model::run;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Samples of each point: the fewest that a comparison judges, and some to spare.
const SAMPLES: usize = 7;

/// The plan with what measures it.
struct Bench {
    plan: Plan,
    layer: Block,
    gate: PassedGate,
    ceilings: Ceilings,
}

fn main() -> ExitCode {
    closed_pipes_are_silent();
    end(run().map_err(|error| sentence(&error)))
}

fn run() -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let args: CostArgs = parsed();
    let common = &args.common;
    if !common.concerns(&[COST_BENCH])? {
        return Ok(ExitCode::SUCCESS);
    }
    if common.list {
        for Point { stage, variant, .. } in points(0) {
            say(format!("{COST_BENCH}/{}/{}: benchmark", stage.name(), variant.name()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let device = common.open()?;
    let cpu = device.kind() == DeviceKind::Cpu;
    let scale = args.scale.unwrap_or(if cpu { 4 } else { 1 });
    let mut config = Config::scaled(scale)?;
    config.index_topk = common.topk.unwrap_or(config.index_topk);
    let (shortest, longest) = if cpu { (256, 64 * 1024) } else { (4096, 256 * 1024) };
    let doubled = std::iter::successors(Some(shortest), |n| Some(2 * n));
    let ladder = common.ladder(doubled.take_while(|n| *n <= longest).collect());
    note(format!(
        "{} ({}): V3.2 / {scale}, {} heads, {} index heads, topk {}, contexts {ladder:?}",
        device.kind(),
        device.name(),
        config.num_attention_heads,
        config.index_n_heads,
        config.index_topk
    ));
    let plan = Plan {
        device: device.clone(),
        config,
        scale,
        s_q: common.s_q.unwrap_or(if cpu { 64 } else { 1024 }),
        batch: common.batch.unwrap_or(if cpu { 8 } else { 64 }),
        seed: common.seed,
        layer: args.layer,
        weights: args.weights,
    };
    if common.once {
        let layer = plan.layer()?;
        for point in ladder.iter().flat_map(|n| points(*n)) {
            plan.step(point, &layer, &mut plan.inputs(point)?)?;
            device.sync()?;
            say(plan.what(point).place())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let command = command::<CostArgs>(COST_BENCH);
    let mut session = Session::open(COST_BENCH, command, common.clone(), device.clone())?;
    let all = || ladder.iter().flat_map(|n| points(*n));
    session.plan(&all().map(|point| plan.what(point)).collect::<Vec<_>>())?;
    if let Some(reason) = all().map(|point| plan.too_large(point)).reduce(|a, b| a.and(b)).flatten()
    {
        anyhow::bail!("no context fits this machine: {reason}");
    }

    let ceilings = Ceilings::measure(&device)?;
    note(format!("measured ceilings:{ceilings}"));
    let gate = verified(&device, plan.seed)?;
    let bench = Bench { layer: plan.layer()?, plan, gate, ceilings };
    climb(&bench, &mut session, &ladder, start, args.budget)?;

    // Rows of other sizes, of an earlier run with other flags, belong into another picture.
    let rows = session.finish(|row| bench.plan.has(row.what()))?;
    match CostFigure::new(&rows, common.price) {
        Ok(figure) => {
            for stage in Stage::ALL {
                say(format!("measured, {}", figure.findings(stage)))?;
            }
            for found in dsa_figures::findings::official_findings()? {
                say(format!("official, {found}"))?;
            }
            figure.noise(&rows).map_or(Ok(()), say)?;
        }
        // One context makes no curve; its rows are kept all the same.
        Err(dsa_figures::Error::Nothing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let (path, seconds) = (session.path().display(), start.elapsed().as_secs_f64());
    say(format!("rows: {path}; {seconds:.0} s in all"))?;
    session.verdict()
}

/// The layer's own gate: sparse against dense and against the reference, on small layers of this kind.
fn verified(device: &Device, seed: u64) -> anyhow::Result<PassedGate> {
    let config = Config::scaled(32)?;
    let report = verify_random(device, &config, 160, seed)?;
    anyhow::ensure!(report.passed(), "the layer fell before it was timed:\n{report}");
    // Each check as the share of its bound that the worst case uses.
    let share = |check: &Check| match check.bound {
        Bound::AtMost(most) => check.value / most,
        Bound::AtLeast(least) => (1.0 - check.value) / (1.0 - least),
    };
    let shares = report.checks().map(|check| (share(check), &check.name));
    let (worst, at) = shares.max_by(|a, b| a.0.total_cmp(&b.0)).context("no check ran")?;
    let against = "dsa-reference attention layer, sparse and dense; share of the allowed error";
    Ok(Gate::judge(against, worst, 1.0, at, report.checks().count() as u64)?)
}

/// Measures every point, from the shortest context up, until the next would not fit the budget.
fn climb(
    bench: &Bench,
    session: &mut Session,
    ladder: &[usize],
    start: Instant,
    budget: f64,
) -> anyhow::Result<()> {
    let bar = ProgressBar::new((4 * ladder.len()) as u64).with_style(
        ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {pos}/{len} {msg}")
            .context("the progress bar's template")?,
    );
    // Also where standard error is no terminal and the bar draws nothing: a log must say what is missing.
    let said = |line: String| bar.suspend(|| note(line));
    // Seconds that the last context took for each curve: the next takes at most the ratio as long.
    let mut last: BTreeMap<(Stage, Variant), (usize, f64)> = BTreeMap::new();
    for (context, point) in ladder.iter().flat_map(|n| points(*n).map(move |point| (n, point))) {
        let Point { stage, variant, .. } = point;
        let what = bench.plan.what(point);
        let place = what.place();
        bar.set_message(place.to_string());
        let ratio = |(before, took): &(usize, f64)| took * *context as f64 / *before as f64;
        let expected = last.get(&(stage, variant)).map_or(0.0, ratio);
        let left = budget - start.elapsed().as_secs_f64();
        if let Some(row) = session.has(&what) {
            let calls = (SAMPLES + 1) as f64;
            last.insert((stage, variant), (*context, calls * row.timing().median_s()));
            said(before(row));
        } else if expected > left {
            said(format!(
                "{place}: left out, it would take about {expected:.0} s and {left:.0} s are left \
                 (--budget)"
            ));
        } else if let Some(reason) = bench.plan.too_large(point) {
            said(format!("{place}: left out, {reason}"));
        } else {
            let began = Instant::now();
            let row = bench.measure(point, what, session)?;
            last.insert((stage, variant), (*context, began.elapsed().as_secs_f64()));
            let token = row.timing().median_s() / bench.plan.tokens(point) as f64;
            said(format!("{place}: {:.3} ms a token", 1e3 * token));
            session.keep(row)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

impl Bench {
    /// Runs the layer at the end of a context that was made up, several times.
    fn measure(&self, point: Point, what: What, session: &Session) -> anyhow::Result<Row> {
        let Plan { device, seed, .. } = &self.plan;
        let chunk = self.plan.chunk(point);
        let mut inputs = self.plan.inputs(point)?;
        let origin = session.origin();

        let mut samples = Vec::new();
        let mut by_stage: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut timed = None;
        // One call more than is kept: the first compiles the kernels.
        for call in 0..=SAMPLES {
            // What the call before computed goes first, so that a call needs no more memory than it does.
            drop(timed.take());
            let step = self.plan.step(point, &self.layer, &mut inputs)?;
            let Timed { batch, .. } = timed.insert(step);
            if call == 0 {
                continue;
            }
            let mut total = 0.0;
            for stage in run::Stage::ALL {
                // The keys and values of each head are expanded once a prompt, not once a chunk: a
                // chunk owes its share of that.
                let (name, share) = match stage {
                    run::Stage::Expansion => ("projections", chunk as f64 / point.context as f64),
                    _ => (stage.name(), 1.0),
                };
                let seconds = batch.stages().seconds(stage) * share;
                total += seconds;
                let of_stage = by_stage.entry(name.to_string()).or_default();
                if of_stage.len() < samples.len() + 1 {
                    of_stage.push(0.0);
                }
                of_stage[samples.len()] += seconds;
            }
            samples.push(total);
        }
        let timed = timed.context("nothing was timed")?;
        let judged = judge_timed(device, &self.layer, &mut inputs.cache, &timed, *seed)?;
        let gate = with_judged(&self.gate, judged)?;
        let mut stages: BTreeMap<String, f64> = BTreeMap::new();
        for (name, seconds) in by_stage {
            stages.insert(name, median(seconds));
        }
        let visited = experts_visited(&self.layer.mlp(), &timed.output)?.unwrap_or(0);
        let (flop, bytes) = self.plan.work(point, visited);
        let peak = self.ceilings.of_mixed(&flop);
        let flop = flop.iter().map(|(_, flop)| *flop).sum::<f64>() as u64;
        let work = Work { flop, bytes: bytes as u64, peak: Some(peak) };
        let timing = Timing::from_samples(samples)?;
        Ok(Row::new(what, gate, timing, work, origin)?.with_stages(stages)?)
    }
}

/// The layer's gate, and what was judged of the timed call itself.
fn with_judged(gate: &PassedGate, judged: Vec<Judged>) -> anyhow::Result<PassedGate> {
    let cases = gate.cases() + judged.len() as u64;
    let worst = judged.into_iter().max_by(|a, b| a.share.total_cmp(&b.share));
    let worst = worst.context("nothing of the timed call was judged")?;
    let (error, at) = if worst.share > gate.worst_error() {
        (worst.share, worst.what)
    } else {
        (gate.worst_error(), gate.worst_at().to_string())
    };
    Gate::judge(gate.against(), error, 1.0, at, cases).context("the layer fell after it was timed")
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}
