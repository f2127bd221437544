//! `dsa eval needles`.

use super::haystack::{Haystack, Secret};
use super::{Evaluated, MAX_TEXT, Out, finish, ready};
use crate::Usage;
use crate::load::{ChatArgs, ModelArgs, Prepared, progress};
use clap::Args;
use dsa_figures::eval::Measured;
use dsa_files::read_text;
use dsa_kernels::random::Rng;
use dsa_model::eval::find;
use std::io::Write;
use std::path::PathBuf;

/// Tokens of an answer at most.
const ANSWER: usize = 24;

/// What `dsa eval needles` takes.
#[derive(Args, Debug)]
pub(super) struct NeedleArgs {
    /// Tokens of the prompts, separated by commas; K is 1024, M 1024 K.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1K,4K", value_parser = tokens)]
    contexts: Vec<usize>,
    /// Where the sentence is planted, separated by commas: 0 the beginning, 1 the end.
    #[arg(long, value_name = "D,D", value_delimiter = ',', default_value = "0,0.25,0.5,0.75,1", value_parser = depth)]
    depths: Vec<f64>,
    /// The text in which it is planted, over and over; made-up sentences if none is given.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Seed of the made-up sentences and of what is planted.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    out: Out,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
}

/// A number of tokens: 512, 4K, 1M.
fn tokens(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let n: Option<usize> = digits.parse().ok();
    let n = n.and_then(|n: usize| n.checked_mul(unit)).filter(|n| (1..=1 << 24).contains(n));
    n.ok_or_else(|| "expected 1 to 16M tokens: 512, 4K, 1M".to_string())
}

fn depth(text: &str) -> Result<f64, String> {
    let depth = text.parse().ok().filter(|depth| (0.0..=1.0).contains(depth));
    depth.ok_or_else(|| "expected 0 to 1".to_string())
}

pub(super) fn needles(out: &mut dyn Write, args: &NeedleArgs) -> anyhow::Result<()> {
    let prepared = Prepared::new(&args.model, &args.chat)?;
    let text = args.text.as_deref().map(|path| read_text(path, MAX_TEXT)).transpose()?;
    let longest = args.contexts.iter().copied().max().unwrap_or(0);
    let mut rng = Rng::new(args.seed);
    let haystack = Haystack::new(&prepared, text.as_deref(), longest, &mut rng)?;
    // What is wrong with a context is found before the model is loaded.
    let mut planted = Vec::new();
    for context in &args.contexts {
        for depth in &args.depths {
            let secret = Secret::draw(&mut rng);
            let special = args.chat.allow_special;
            let needle = haystack.plant(&prepared, &secret, *context, *depth, special);
            planted.push((*context, *depth, secret, needle.map_err(Usage::error)?));
        }
    }
    ready(&args.out, "needles")?;
    let of = match &args.text {
        Some(path) => super::text_ids(&prepared, path, 0)?.1,
        None => format!("made up, seed {}", args.seed),
    };
    let evaluated = Evaluated::load(prepared, &args.model, (1, longest + ANSWER), false, of)?;
    let (mut rows, topk) = (Vec::new(), evaluated.prepared.config.index_topk);
    let bar = progress(planted.len() as u64, "needles");
    for (context, depth, secret, needle) in planted {
        let sizes = (args.model.prefill_chunk as usize, ANSWER);
        let format = args.model.kv_cache.format();
        let found = find(&evaluated.model, &needle, sizes, format, &evaluated.prepared.ends)?;
        let answer = evaluated.prepared.tokenizer.decode(&found.answer);
        let known: Vec<f64> = found.selected.iter().flatten().copied().collect();
        let share = match known.len() {
            0 => "every key is selected".to_string(),
            n => {
                let mean = known.iter().sum::<f64>() / n as f64;
                let chance = topk as f64 / needle.prompt.len() as f64;
                format!("{mean:.3} of its tokens selected, {chance:.3} by chance")
            }
        };
        let is = if answer.contains(&secret.number) { "found" } else { "not found" };
        writeln!(out, "{:>8} tokens, depth {depth:.2}: {is}, {share}", needle.prompt.len())?;
        out.flush()?;
        bar.inc(1);
        let (found, selected) = (is == "found", found.selected);
        let measured = Measured::Needle { context, depth, found, selected };
        rows.extend(evaluated.keep(&args.out, "needles", vec![measured])?);
    }
    bar.finish_and_clear();
    finish(out, "needles", &args.out, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_tokens_may_have_a_unit() {
        assert_eq!(["512", "4K", "1M"].map(|text| tokens(text).unwrap()), [512, 4096, 1 << 20]);
        for text in ["", "K", "0", "-1", "17M", "1G", "99999999999999999999K"] {
            assert!(tokens(text).is_err(), "{text}");
        }
        assert!(depth("0.5").is_ok() && depth("1.1").is_err() && depth("x").is_err());
    }
}
