//! Cost against context: one real attention layer, dense (V3.1) and sparse (V3.2), prefill and decode, over
//! a ladder of contexts; then US$ per million tokens and the pictures.
//!
//! On a GPU the layer has the true sizes. On a CPU it is DeepSeek-V3.2-Exp divided by 4 (heads, ranks,
//! hidden, index heads, topk), so that context L here stands for 4 L there; the ladder stops before the run
//! would take longer than `--budget` seconds. `--help` lists the axes.

use anyhow::Context;
use clap::Parser;
use dsa_benches::args::{Args, Axes};
use dsa_benches::peaks::{Ceilings, random};
use dsa_benches::session::{Session, describe};
use dsa_figures::plot::CostFigure;
use dsa_figures::row::{COST_BENCH, OP_COUNT_SUFFIX};
use dsa_figures::{Gate, Options, PassedGate, Row, Stage, Timing, Variant, What, Work};
use dsa_kernels::{DType, Device, DeviceKind};
use dsa_model::layers::Attention;
use dsa_model::run::{self, Batch, Cache, CacheSize, KvFormat, Mode};
use dsa_model::verify::timed::{Judged, Timed, judge_timed};
use dsa_model::verify::{Bound, Check, verify_random};
use dsa_model::weights::Random;
use dsa_model::{Config, Error};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Samples of each point: the fewest that a comparison judges, and some to spare.
const SAMPLES: usize = 7;
/// Tokens of a cache page, as FlashMLA and DeepGEMM have it.
const PAGE: usize = 64;

/// The layer and everything that decides what its numbers are.
struct Bench {
    device: Device,
    layer: Attention,
    config: Config,
    scale: usize,
    axes: Axes,
    seed: u64,
    gate: PassedGate,
}

/// One point of a curve.
#[derive(Clone, Copy, Debug)]
struct Point {
    stage: Stage,
    variant: Variant,
    context: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let args = Args::parse();
    let device = args.open()?;
    let cpu = device.kind() == DeviceKind::Cpu;
    let scale = args.scale.unwrap_or(if cpu { 4 } else { 1 });
    let config = Config::scaled(scale)?;
    let mut axes = Axes::new(&args, &device)?;
    axes.batch = args.batch.unwrap_or(if cpu { 8 } else { 64 });
    axes.s_q = args.s_q.unwrap_or(if cpu { 64 } else { 1024 });
    let ladder = args.contexts.clone().unwrap_or_else(|| {
        let longest = if cpu { 64 * 1024 } else { 256 * 1024 };
        let shortest = if cpu { 256 } else { 4096 };
        std::iter::successors(Some(shortest), |n| Some(2 * n))
            .take_while(|n| *n <= longest)
            .collect()
    });
    eprintln!(
        "{} ({}): V3.2 / {scale}, {} heads, {} index heads, topk {}, contexts {ladder:?}",
        device.kind(),
        device.name(),
        config.num_attention_heads,
        config.index_n_heads,
        config.index_topk
    );
    let ceilings = Ceilings::measure(&device)?;
    eprintln!("measured ceilings:{ceilings}");
    let gate = verified(&device, args.seed)?;
    let mut layer = Attention::new(&device, &config, Random::new(args.seed), DType::Bf16)?;
    // As the official service does: below topk keys, sparse prefill is dense anyway.
    layer.expand_short_prefill = true;
    let figures = args.figures_of(&device);
    let options = Options { price_per_hour: args.price, ..Default::default() };
    let (budget, seed) = (args.budget, args.seed);
    let mut session = Session::new(COST_BENCH, args, device.clone(), ceilings)?;
    let bench = Bench { device, layer, config, scale, axes, seed, gate };

    climb(&bench, &mut session, &ladder, start, budget)?;

    let rows = session.current()?;
    for file in dsa_figures::draw(&rows, &figures, &options)? {
        println!("{}", file.display());
    }
    let figure = CostFigure::new(&rows, options.price_per_hour)?;
    for stage in Stage::ALL {
        println!("measured, {}", figure.findings(stage));
    }
    for found in dsa_figures::findings::official_findings()? {
        println!("official, {found}");
    }
    println!("rows: {}; {:.0} s in all", session.path().display(), start.elapsed().as_secs_f64());
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
    // Seconds that the last context took for each curve: the next takes at most the ratio as long.
    let mut last: BTreeMap<(Stage, Variant), (usize, f64)> = BTreeMap::new();
    let planned: Vec<What> =
        ladder.iter().flat_map(|context| bench.points(*context)).map(|p| bench.what(p)).collect();
    session.plan(&planned)?;
    for context in ladder {
        for point in bench.points(*context) {
            let Point { stage, variant, .. } = point;
            let what = bench.what(point);
            bar.set_message(what.place().to_string());
            let ratio = |(before, took): &(usize, f64)| took * *context as f64 / *before as f64;
            let expected = last.get(&(stage, variant)).map_or(0.0, ratio);
            let left = budget - start.elapsed().as_secs_f64();
            if session.has(&what) {
                bar.println(format!("{}: measured before", what.place()));
            } else if expected > left {
                bar.println(format!(
                    "{}: left out, it would take about {expected:.0} s and {left:.0} s are left \
                         (--budget)",
                    what.place()
                ));
            } else {
                let began = Instant::now();
                let row = match bench.measure(point, what, session) {
                    Ok(row) => row,
                    // The layer says when a context is beyond what its kernels can index.
                    Err(error) if matches!(error.downcast_ref(), Some(Error::Argument { .. })) => {
                        bar.println(format!("{point:?}: left out, {error}"));
                        bar.inc(1);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                last.insert((stage, variant), (*context, began.elapsed().as_secs_f64()));
                bar.println(format!(
                    "{}: {:.3} ms a token",
                    row.what().place(),
                    1e3 * row.timing().median_s() / bench.tokens(point) as f64
                ));
                session.keep(row)?;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl Bench {
    /// The four points of a context.
    fn points(&self, context: usize) -> Vec<Point> {
        let of = |stage| Variant::MODELS.map(|variant| Point { stage, variant, context });
        Stage::ALL.into_iter().flat_map(of).collect()
    }

    /// Tokens of one call.
    fn tokens(&self, point: Point) -> usize {
        match point.stage {
            Stage::Prefill => self.axes.s_q.min(point.context),
            Stage::Decode => self.axes.batch,
        }
    }

    fn what(&self, point: Point) -> What {
        let sizes = [
            ("context", point.context),
            ("tokens", self.tokens(point)),
            ("heads", self.config.num_attention_heads),
            ("index_heads", self.config.index_n_heads),
            ("topk", self.config.index_topk),
            ("scale", self.scale),
        ];
        What {
            bench: COST_BENCH.to_string(),
            stage: point.stage,
            variant: point.variant,
            case: "one attention layer".to_string(),
            shape: sizes.into_iter().map(|(name, n)| (name.to_string(), n as u64)).collect(),
            dtype: DType::Bf16.to_string(),
            seed: self.seed,
            device: describe(&self.device),
            kernel_hash: dsa_kernels::source_hash(None),
        }
    }

    /// Runs the layer at the end of a context that was made up, several times.
    fn measure(&self, point: Point, what: What, session: &Session) -> anyhow::Result<Row> {
        let (tokens, hidden) = (self.tokens(point), self.config.hidden_size);
        let mode = if point.variant == Variant::V32Exp { Mode::Sparse } else { Mode::Dense };
        let requests = if point.stage == Stage::Decode { tokens } else { 1 };
        // One token more, for the other form that a decoded token is judged in.
        let size = CacheSize { layers: 1, requests, max_seq: point.context + 1, page_size: PAGE };
        let mut cache =
            Cache::new(&self.device, &self.config, size, DType::Bf16, KvFormat::Elements)?;
        let chunk = if point.stage == Stage::Decode { 1 } else { tokens };
        cache.fill_random(point.context - chunk, self.seed)?;
        let x = random(&self.device, DType::Bf16, &[tokens, hidden], self.seed)?;
        let start = point.context - chunk;

        let mut samples = Vec::new();
        let mut by_stage: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut timed = None;
        // One call more than is kept: the first compiles the kernels.
        for call in 0..=SAMPLES {
            // What the call before computed goes first, so that a call needs no more memory than it does.
            drop(timed.take());
            let batch = match point.stage {
                Stage::Prefill => Batch::chunk(&cache, 0, start, tokens, mode)?,
                Stage::Decode => Batch::decode(&cache, &vec![start; tokens], mode)?,
            };
            let batch = batch.measured();
            let trace = self.layer.trace(&x, &batch, cache.layer(0)?)?;
            cache.advance(&batch);
            let Timed { batch, .. } = timed.insert(Timed { trace, batch });
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
        let judged = judge_timed(&self.device, &self.layer, &x, &mut cache, &timed, self.seed)?;
        let gate = with_judged(&self.gate, judged)?;
        let mut stages: BTreeMap<String, f64> = BTreeMap::new();
        for (name, seconds) in by_stage {
            stages.insert(name, median(seconds));
        }
        let peak = session.ceilings().of(&DType::Bf16.to_string());
        let moe = self.moe_flop() as f64 * tokens as f64 / peak.flops;
        stages.insert(format!("moe{OP_COUNT_SUFFIX}"), moe);
        let (flop, bytes) = self.work(point, tokens);
        let work = Work { flop, bytes, peak: Some(peak) };
        let timing = Timing::from_samples(samples)?;
        Ok(Row::new(what, gate, timing, work, session.origin())?.with_stages(stages)?)
    }

    /// Operations of one token's experts: 8 chosen and 1 shared, three matrices each.
    fn moe_flop(&self) -> usize {
        let c = &self.config;
        let experts = c.num_experts_per_tok + c.n_shared_experts;
        2 * 3 * experts * c.hidden_size * c.moe_intermediate_size
    }

    /// Operations and bytes of the index scores and the attention of one call.
    fn work(&self, point: Point, tokens: usize) -> (u64, u64) {
        let c = &self.config;
        let (keys, heads) = (point.context, c.num_attention_heads);
        let latent = c.kv_lora_rank + c.qk_rope_head_dim;
        let absorbed = 2 * heads * (latent + c.kv_lora_rank);
        let expanded = 2 * heads * (c.qk_head_dim() + c.v_head_dim);
        let index = 2 * c.index_n_heads * c.index_head_dim;
        let (flop, bytes) = match (point.variant, point.stage) {
            (Variant::V32Exp, _) => {
                let kept = keys.min(c.index_topk);
                (keys * index + kept * absorbed, keys * (c.index_head_dim + 12) + kept * latent * 2)
            }
            (_, Stage::Prefill) => {
                let row = heads * (c.qk_head_dim() + c.v_head_dim) * 2;
                (keys * expanded, keys * row / tokens)
            }
            (_, Stage::Decode) => (keys * absorbed, keys * latent * 2),
        };
        ((flop * tokens) as u64, (bytes * tokens) as u64)
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
