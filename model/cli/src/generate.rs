//! `dsa generate`: from text to text.

use super::Usage;
use super::load::{ChatArgs, ModelArgs, Prepared, SamplingArgs, progress, say};
use super::logits::Attention;
use super::run::expect_place;
use clap::Args;
use drive::{Job, News, Outcome, drive, most_tokens, trouble};
use dsa_model::Model;
use dsa_model::chat::{Conversation, Message, Role};
use dsa_model::generate::{self, DEFAULT_MAX_NEW_TOKENS, Generator, Request};
use indicatif::ProgressBar;
use input::Input;
use report::{Printer, ROW_HEAD};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

mod drive;
mod input;
mod interactive;
mod report;

/// What `dsa generate` takes.
#[derive(Args, Debug)]
pub(super) struct GenerateArgs {
    /// The question.
    #[arg(required_unless_present_any = ["interactive", "input_file"])]
    prompt: Option<String>,
    /// A conversation, line by line. /clear forgets it, /stats says how fast the last answer was, /attention dense|sparse|both
    /// changes it, /exit or the end of the input ends it; Ctrl-C ends an answer.
    #[arg(long, conflicts_with_all = ["prompt", "input_file"])]
    interactive: bool,
    /// Prompts with blank lines between them; or a line of JSON each, {"prompt": …} or {"messages": […]} with id,
    /// max_new_tokens, stop, temperature, top_k, top_p, min_p, seed, tools, thinking, answered by a line of JSON each.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    input_file: Option<PathBuf>,
    /// What the model is told before the first question.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The model thinks before it answers.
    #[arg(long)]
    thinking: bool,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_NEW_TOKENS, visible_alias = "max-tokens")]
    max_new_tokens: usize,
    /// A text before which an answer ends; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Goes on behind the tokens that end an answer.
    #[arg(long)]
    ignore_eos: bool,
    /// Which keys a token attends to: those the indexer selects, or all. With both, dense attention runs beside on the same
    /// tokens, and how much it differs is told with each token.
    #[arg(long, value_enum, default_value_t = Attention::Sparse)]
    attention: Attention,
    /// Prompts side by side at most.
    #[arg(long, value_name = "N", default_value_t = 8, visible_alias = "max-num-seqs",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_batch_size: u32,
    /// Where every step and its stages are written as a trace for chrome://tracing or Perfetto. The device is waited for
    /// after each stage.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Says how fast it was.
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Answers a question, those of a file, or those of a conversation.
pub(super) fn generate(out: &mut dyn Write, args: &GenerateArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.trace {
        expect_place(path)?;
    }
    let prepared = Prepared::new(&args.model, &args.chat)?;
    let usual = Request {
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.over(prepared.defaults.sampling)?,
        stop: args.stop.clone(),
        ignore_ends: args.ignore_eos,
        ..Request::new(vec![])
    };
    let system = args.system.iter().map(|text| Message::new(Role::System, text));
    let start = Conversation {
        messages: system.collect(),
        thinking: args.thinking,
        ..Conversation::default()
    };
    let limit = prepared.config.max_position_embeddings;
    if args.interactive {
        let max_seq = args.model.room(limit);
        // What is wrong with the flags is found before anything is loaded.
        Request { prompt: vec![0], ..usual.clone() }.check(max_seq).map_err(Usage::error)?;
        prepared.say_warnings();
        let model = prepared.load(&args.model, (1, max_seq), args.attention.also_dense())?;
        return interactive::talk(out, args, &prepared, &model, (usual, start, max_seq));
    }
    let inputs = match (&args.prompt, &args.input_file) {
        (Some(prompt), _) => vec![Input {
            place: "the prompt".into(),
            id: None,
            conversation: start.and_asked(prompt),
            text: prompt.clone(),
            request: usual,
        }],
        (None, Some(path)) => input::read(path, &usual, &start)?,
        (None, None) => {
            return Err(Usage::error("PROMPT, --interactive or --input-file: none is given"));
        }
    };
    let mut jobs = Vec::with_capacity(inputs.len());
    for input in &inputs {
        let job = prepared.job(args, &input.conversation, input.request.clone());
        let checked = job.and_then(|job| Ok(job.request.check(limit).map(|()| job)?));
        jobs.push(checked.map_err(|error| Usage::error(format!("{}: {error}", input.place)))?);
    }
    let room = jobs.iter().map(|job| most_tokens(&job.request)).max().unwrap_or(1).min(limit);
    let requests = jobs.len().min(args.max_batch_size as usize);
    prepared.say_warnings();
    let model = prepared.load(&args.model, (requests, room), args.attention.also_dense())?;
    let mut generator = prepared.generator(args, &model, args.attention, (requests, room))?;
    let done = match inputs.iter().any(|input| input.id.is_some()) {
        true => lines(out, &prepared, &mut generator, &inputs, jobs),
        false => texts(out, args, &prepared, &mut generator, &inputs, jobs),
    };
    write_trace(args, &generator)?;
    let full = done?;
    out.flush()?;
    match full.is_empty() {
        true => Ok(()),
        false => Err(Usage::error(full.join("\nerror: "))),
    }
}

impl Prepared {
    /// Says what is odd, on standard error.
    pub(super) fn say_warnings(&self) {
        self.warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
    }

    /// The request whose prompt is `conversation`.
    fn job(
        &self,
        args: &GenerateArgs,
        conversation: &Conversation,
        request: Request,
    ) -> anyhow::Result<Job> {
        let prompt = self.chat.prompt(conversation, &self.tokenizer, args.chat.allow_special)?;
        let prompt = self.tokenizer.encode(&prompt)?;
        Ok(Job { request: Request { prompt, ..request }, thinking: conversation.thinking })
    }

    fn generator<'a>(
        &'a self,
        args: &GenerateArgs,
        model: &'a Model,
        attention: Attention,
        sizes: (usize, usize),
    ) -> anyhow::Result<Generator<'a>> {
        let settings = args.model.settings(attention.generate(), sizes);
        let mut generator = Generator::new(model, &self.tokenizer, &self.ends, settings)?;
        if args.trace.is_some() {
            generator.trace();
        }
        Ok(generator)
    }
}

impl Attention {
    pub(super) fn also_dense(self) -> bool {
        !matches!(self, Self::Sparse)
    }

    pub(super) fn generate(self) -> generate::Attention {
        match self {
            Self::Sparse => generate::Attention::Sparse,
            Self::Dense => generate::Attention::Dense,
            Self::Both => generate::Attention::Both,
        }
    }
}

/// Prints answers as texts, in the order of the prompts; what has to be said of them at the end.
fn texts(
    out: &mut dyn Write,
    args: &GenerateArgs,
    prepared: &Prepared,
    generator: &mut Generator,
    inputs: &[Input],
    jobs: Vec<Job>,
) -> anyhow::Result<Vec<String>> {
    let alone = inputs.len() == 1;
    let both = matches!(args.attention, Attention::Both);
    let (mut printer, mut troubles) = (Printer::default(), Vec::new());
    let bar = progress(0, "prompt");
    let mut outcomes: Vec<Option<(Outcome, Vec<String>)>> = inputs.iter().map(|_| None).collect();
    let mut rows: Vec<Vec<String>> = vec![vec![]; inputs.len()];
    let lengths: Vec<usize> = jobs.iter().map(|job| job.request.prompt.len()).collect();
    let mut next = 0;
    let never = AtomicBool::new(false);
    drive(generator, &prepared.chat, jobs, &never, |job, news| {
        match news {
            News::Read(read, all) => reading(&bar, read, all),
            News::Token(token, deltas) => {
                let position = lengths[job] + rows[job].len();
                let row = report::row(&prepared.tokenizer, position, token);
                if alone && row.is_none() {
                    printer.print(out, deltas)?;
                }
                if alone && let Some(row) = &row {
                    if rows[job].is_empty() {
                        writeln!(out, "{ROW_HEAD}")?;
                    }
                    writeln!(out, "{row}")?;
                    out.flush()?;
                }
                rows[job].extend(row);
            }
            News::Ended(deltas, outcome) => {
                let place = if alone { String::new() } else { format!("{}: ", inputs[job].place) };
                troubles.extend(trouble(outcome).map(|trouble| format!("{place}{trouble}")));
                if let Some(left) = &outcome.left {
                    say(&format!("note: {place}{left}; from there on it is printed as it is"));
                }
                if alone && !both {
                    printer.print(out, deltas)?;
                    printer.end(out)?;
                    return finish(out, args, outcome);
                }
                outcomes[job] = Some((outcome.clone(), std::mem::take(&mut rows[job])));
                while let Some(Some((outcome, rows))) = outcomes.get(next) {
                    if !alone {
                        writeln!(out, "Prompt: {}", report::shown(&inputs[next].text))?;
                        if both {
                            writeln!(out, "{ROW_HEAD}")?;
                        }
                        rows.iter().try_for_each(|row| writeln!(out, "{row}"))?;
                    }
                    write!(out, "Completion: ")?;
                    whole(out, outcome)?;
                    finish(out, args, outcome)?;
                    if !alone {
                        writeln!(out)?;
                    }
                    next += 1;
                }
            }
        }
        Ok(())
    })?;
    Ok(troubles)
}

/// Shows how much of a prompt has been read, until all of it is.
fn reading(bar: &ProgressBar, read: usize, all: usize) {
    bar.set_length(all as u64);
    bar.set_position(read as u64);
    if read == all {
        bar.finish_and_clear();
    }
}

/// An answer that has ended.
fn whole(out: &mut dyn Write, outcome: &Outcome) -> anyhow::Result<()> {
    use dsa_model::chat::Delta;
    let answer = &outcome.answer;
    let mut deltas = Vec::new();
    if !answer.reasoning_content.is_empty() {
        deltas.push(Delta::Reasoning(answer.reasoning_content.clone()));
    }
    deltas.push(Delta::Content(answer.content.clone()));
    deltas.extend(answer.tool_calls.iter().cloned().map(Delta::ToolCall));
    let mut printer = Printer::default();
    printer.print(out, &deltas)?;
    Ok(printer.end(out)?)
}

/// What is said behind an answer.
fn finish(out: &mut dyn Write, args: &GenerateArgs, outcome: &Outcome) -> anyhow::Result<()> {
    if !outcome.comparisons.is_empty() {
        write!(out, "{}", report::summary(&outcome.comparisons))?;
    }
    if args.stats {
        writeln!(out, "{}", report::stats(outcome))?;
    }
    Ok(())
}

/// Prints answers as lines of JSON, each as soon as it is there; what has to be said of them at the end.
fn lines(
    out: &mut dyn Write,
    prepared: &Prepared,
    generator: &mut Generator,
    inputs: &[Input],
    jobs: Vec<Job>,
) -> anyhow::Result<Vec<String>> {
    let bar = progress(inputs.len() as u64, "answers");
    let mut troubles = Vec::new();
    let never = AtomicBool::new(false);
    drive(generator, &prepared.chat, jobs, &never, |job, news| {
        if let News::Ended(_, outcome) = news
            && let Some(id) = &inputs[job].id
        {
            troubles.extend(
                trouble(outcome).map(|trouble| format!("{}: {trouble}", inputs[job].place)),
            );
            writeln!(out, "{}", report::line(id, outcome))?;
            out.flush()?;
            bar.inc(1);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(troubles)
}

/// Writes the trace, if there is to be one.
fn write_trace(args: &GenerateArgs, generator: &Generator) -> anyhow::Result<()> {
    if let (Some(path), Some(timeline)) = (&args.trace, generator.timeline()) {
        let json = timeline.to_json();
        dsa_files::replace(path, |file| file.write_all(json.as_bytes()))?;
    }
    Ok(())
}
