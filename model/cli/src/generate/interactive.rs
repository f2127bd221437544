//! `dsa generate --interactive`: a conversation, line by line.

use super::drive::{Job, News, Outcome, drive, trouble};
use super::report::{Printer, ROW_HEAD, row, stats, summary};
use super::{Attention, GenerateArgs, reading, write_trace};
use crate::load::{Prepared, progress, say};
use anyhow::Context;
use clap::ValueEnum;
use dsa_files::printable;
use dsa_model::Model;
use dsa_model::chat::{Conversation, Message, Role};
use dsa_model::generate::{Generator, Request};
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const COMMANDS: &str = "/clear, /stats, /attention dense|sparse|both or /exit";
/// A longer line is refused.
const MAX_LINE: u64 = 1 << 24;

/// Talks until the input ends. Ctrl-C ends an answer; while a line is awaited, the program.
pub(super) fn talk(
    out: &mut dyn Write,
    args: &GenerateArgs,
    prepared: &Prepared,
    model: &Model,
    (usual, start, max_seq): (Request, Conversation, usize),
) -> anyhow::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let waiting = Arc::new(AtomicBool::new(false));
    // In this order: a signal first asks whether a line is awaited.
    let signal = signal_hook::consts::SIGINT;
    signal_hook::flag::register_conditional_shutdown(signal, 130, waiting.clone())
        .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
        .context("Ctrl-C cannot be caught")?;
    let (mut attention, mut conversation) = (args.attention, start.clone());
    let mut generator = prepared.generator(args, model, attention, (1, max_seq))?;
    let mut last: Option<String> = None;
    let input = std::io::stdin();
    loop {
        write!(out, ">>> ")?;
        out.flush()?;
        waiting.store(true, Ordering::SeqCst);
        let line = line(&mut input.lock());
        waiting.store(false, Ordering::SeqCst);
        let Some(line) = line? else {
            writeln!(out)?;
            break;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            [] => {}
            ["/exit"] => break,
            ["/clear"] => conversation = start.clone(),
            ["/stats"] => writeln!(out, "{}", last.as_deref().unwrap_or("stats: no answer yet"))?,
            ["/attention", mode] => match Attention::from_str(mode, false) {
                Ok(mode) => {
                    drop(generator);
                    let other = prepared.generator(args, model, mode, (1, max_seq));
                    generator = match other {
                        Ok(other) => {
                            attention = mode;
                            other
                        }
                        Err(error) => {
                            say(&format!("error: {error}"));
                            prepared.generator(args, model, attention, (1, max_seq))?
                        }
                    };
                }
                Err(_) => {
                    say(&format!("error: /attention {}: expected {COMMANDS}", printable(mode, 80)))
                }
            },
            [command, ..] if command.starts_with('/') => {
                say(&format!(
                    "error: {}: expected {COMMANDS}, or a question",
                    printable(command, 80)
                ));
            }
            _ => {
                interrupted.store(false, Ordering::SeqCst);
                conversation.messages.push(Message::new(Role::User, line));
                let job = prepared.job(args, &conversation, usual.clone());
                let job = job.and_then(|job| Ok(job.request.check(max_seq).map(|()| job)?));
                let answered = match job {
                    Ok(job) => answer(out, prepared, &mut generator, job, &interrupted)?,
                    Err(error) => {
                        say(&format!("error: {error}; /clear begins anew"));
                        None
                    }
                };
                match answered {
                    Some(outcome) => {
                        if args.stats {
                            writeln!(out, "{}", stats(&outcome))?;
                        }
                        last = Some(stats(&outcome));
                        conversation.messages.push(of_answer(&outcome));
                    }
                    // A question without an answer is none.
                    None => {
                        conversation.messages.pop();
                    }
                }
            }
        }
    }
    write_trace(args, &generator)
}

/// A line of the input without its end; `None` at the end of all.
fn line(input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    std::io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut bytes)?;
    anyhow::ensure!(
        (bytes.len() as u64) < MAX_LINE,
        "a line of the input has {MAX_LINE} bytes or more"
    );
    let text = String::from_utf8_lossy(&bytes);
    Ok((!bytes.is_empty()).then(|| text.trim_end_matches(['\n', '\r']).to_string()))
}

/// Prints the answer as it comes; how it ended.
fn answer(
    out: &mut dyn Write,
    prepared: &Prepared,
    generator: &mut Generator,
    job: Job,
    interrupted: &AtomicBool,
) -> anyhow::Result<Option<Outcome>> {
    let (mut printer, mut rows, from) = (Printer::default(), 0, job.request.prompt.len());
    let (mut done, bar) = (None, progress(0, "prompt"));
    drive(generator, &prepared.chat, vec![job], interrupted, |_, news| {
        match news {
            News::Read(read, all) => reading(&bar, read, all),
            News::Token(token, deltas) => match row(&prepared.tokenizer, from + rows, token) {
                Some(row) => {
                    if rows == 0 {
                        writeln!(out, "{ROW_HEAD}")?;
                    }
                    rows += 1;
                    writeln!(out, "{row}")?;
                    out.flush()?;
                }
                None => printer.print(out, deltas)?,
            },
            News::Ended(deltas, outcome) => {
                if rows > 0 {
                    super::whole(out, outcome)?;
                    write!(out, "{}", summary(&outcome.comparisons))?;
                } else {
                    printer.print(out, deltas)?;
                    printer.end(out)?;
                }
                done = Some(outcome.clone());
            }
        }
        Ok(())
    })?;
    if let Some(outcome) = &done {
        if let Some(trouble) = trouble(outcome) {
            say(&format!("note: {trouble}; /clear begins anew"));
        }
        if let Some(left) = &outcome.left {
            say(&format!("note: {left}; from there on it was printed as it is"));
        }
    }
    Ok(done)
}

/// What was answered, as a turn of the conversation.
fn of_answer(outcome: &Outcome) -> Message {
    let answer = &outcome.answer;
    let thoughts = Some(answer.reasoning_content.clone()).filter(|text| !text.is_empty());
    Message {
        reasoning_content: thoughts,
        tool_calls: answer.tool_calls.clone(),
        ..Message::new(Role::Assistant, &answer.content)
    }
}
