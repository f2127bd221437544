//! What is printed of answers: deltas as they come, statistics, comparisons.

use super::drive::{Outcome, finish_name};
use dsa_files::printable;
use dsa_model::chat::{Delta, Json, ToolCall};
use dsa_model::generate::{Comparison, Kept, Token};
use dsa_model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::Write;

/// Prints an answer as it comes.
#[derive(Default)]
pub(super) struct Printer {
    thinking: bool,
}

impl Printer {
    /// Prints more of the answer, whole characters that a terminal does not act on, and sends them off.
    pub fn print(&mut self, out: &mut dyn Write, deltas: &[Delta]) -> std::io::Result<()> {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => {
                    if !self.thinking {
                        self.thinking = true;
                        writeln!(out, "<think>")?;
                    }
                    write!(out, "{}", shown(text))?;
                }
                Delta::Content(text) => {
                    self.end_thoughts(out)?;
                    write!(out, "{}", shown(text))?;
                }
                Delta::ToolCall(ToolCall { name, arguments, .. }) => {
                    self.end_thoughts(out)?;
                    write!(out, "\n{}({})", shown(name), shown(arguments))?;
                }
            }
        }
        out.flush()
    }

    /// Ends the answer's last line.
    pub fn end(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        self.end_thoughts(out)?;
        writeln!(out)?;
        out.flush()
    }

    fn end_thoughts(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        if std::mem::take(&mut self.thinking) {
            write!(out, "\n</think>\n")?;
        }
        Ok(())
    }
}

/// A model's text without what a terminal acts on; lines and tabs stay.
pub(super) fn shown(text: &str) -> String {
    let keep = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars().map(|c| if keep(c) { c } else { '\u{fffd}' }).collect()
}

/// How fast it was.
pub(super) fn stats(outcome: &Outcome) -> String {
    let ended = &outcome.ended;
    let (first, rest) = (outcome.times.0.as_secs_f64(), outcome.times.1.as_secs_f64());
    let rate = |n: usize, seconds: f64| n as f64 / seconds.max(1e-9);
    let read = ended.prompt_tokens - ended.cached_tokens;
    let cached = match ended.cached_tokens {
        0 => String::new(),
        n => format!(", {n} more were in the cache"),
    };
    format!(
        "stats: {read} tokens of prompt in {first:.3} s ({:.1} a second{cached}), then {} of the answer in {rest:.3} s \
         ({:.1} a second), finish {}",
        rate(read, first),
        ended.new_tokens.saturating_sub(1),
        rate(ended.new_tokens.saturating_sub(1), rest),
        finish_name(&ended.finish),
    )
}

/// A result as a line of JSON.
pub(super) fn line(id: &Json, outcome: &Outcome) -> Value {
    let (answer, ended) = (&outcome.answer, &outcome.ended);
    let call = |call: &ToolCall| json!({ "name": call.name, "arguments": call.arguments });
    // What was read as JSON is written as JSON.
    let id = serde_json::from_str(&id.to_string()).unwrap_or(Value::Null);
    let mut line = json!({
        "id": id,
        "text": answer.content,
        "finish": finish_name(&ended.finish),
        "prompt_tokens": ended.prompt_tokens,
        "new_tokens": ended.new_tokens,
        "seconds": { "first_token": outcome.times.0.as_secs_f64(), "rest": outcome.times.1.as_secs_f64() },
    });
    if !answer.reasoning_content.is_empty() {
        line["reasoning_content"] = json!(answer.reasoning_content);
    }
    if !answer.tool_calls.is_empty() {
        line["tool_calls"] = answer.tool_calls.iter().map(call).collect();
    }
    if let Some(left) = &outcome.left {
        line["format_left"] = json!(left.to_string());
    }
    if !outcome.comparisons.is_empty() {
        let layer = |kept: &Option<Kept>| {
            kept.map_or(Value::Null, |kept| json!({ "recall": kept.recall, "mass": kept.mass }))
        };
        let token = |c: &Comparison| {
            let layers: Vec<Value> = c.layers.iter().map(layer).collect();
            json!({ "kl": c.kl, "same_top": c.same_top, "layers": layers })
        };
        line["dense"] = outcome.comparisons.iter().map(token).collect();
    }
    line
}

/// The head of the rows of [`row`].
pub(super) const ROW_HEAD: &str =
    "position  token             KL to dense  top-1  recall of the selected keys";

/// A token of a comparison as a row.
pub(super) fn row(tokenizer: &Tokenizer, position: usize, token: &Token) -> Option<String> {
    let comparison = token.comparison.as_ref()?;
    let text = format!("{:?}", tokenizer.decode(&[token.id]));
    let top = if comparison.same_top { "same" } else { "other" };
    let kept = comparison.layers.iter().enumerate();
    let kept: Vec<(usize, f64)> =
        kept.filter_map(|(layer, kept)| Some((layer, (*kept)?.recall))).collect();
    let mean = kept.iter().map(|(_, recall)| recall).sum::<f64>() / kept.len().max(1) as f64;
    let least = kept.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let recall = match least {
        None => "every key is selected".to_string(),
        Some((layer, least)) => format!("{mean:.3}, at least {least:.3} (layer {layer})"),
    };
    let (text, kl) = (printable(&text, 16), comparison.kl);
    Some(format!("{position:>8}  {text:<16}  {kl:>11.3e}  {top:<5}  {recall}"))
}

/// What a whole answer's comparison comes to.
pub(super) fn summary(comparisons: &[Comparison]) -> String {
    let n = comparisons.len().max(1) as f64;
    let kl = comparisons.iter().map(|c| c.kl).sum::<f64>() / n;
    let same = comparisons.iter().filter(|c| c.same_top).count();
    let mut text = format!(
        "sparse against dense over {} tokens: KL {kl:.3e} nats on average, the same token most probable for {same}\n",
        comparisons.len()
    );
    let layers = comparisons.first().map_or(0, |c| c.layers.len());
    for layer in 0..layers {
        let kept: Vec<Kept> = comparisons.iter().filter_map(|c| *c.layers.get(layer)?).collect();
        let mean = |of: fn(&Kept) -> f64| kept.iter().map(of).sum::<f64>() / kept.len() as f64;
        if kept.is_empty() {
            text += &format!("  layer {layer:>2}: every key is selected\n");
        } else {
            let (recall, mass) = (mean(|kept| kept.recall), mean(|kept| kept.mass));
            text += &format!(
                "  layer {layer:>2}: recall {recall:.3}, share of the attention kept {mass:.3}\n"
            );
        }
    }
    text
}
