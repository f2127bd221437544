//! `dsa serve`: the interface of OpenAI over HTTP.

use super::Usage;
use super::load::{ChatArgs, ModelArgs, Prepared, SamplingArgs, say};
use anyhow::Context;
use clap::{Args, ValueEnum};
use dsa_files::{printable, read_text};
use dsa_model::generate::{Attention, Generator};
use dsa_serve::{Limits, Options, Served, Stop, serve};
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A file with a longer key is refused.
const MAX_KEY: u64 = 4096;

/// What `dsa serve` takes.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// The address that is listened on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model's name in requests and answers; the checkpoint's folder if it is not given.
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// A file with the key that clients have to show (Authorization: Bearer KEY).
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Requests that may wait while one runs; more are told to come again (429).
    #[arg(long, value_name = "N", default_value_t = 16)]
    queue: u16,
    /// Most tokens of an answer, whatever a request asks for.
    #[arg(long, value_name = "N", visible_alias = "max-tokens", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: Option<u32>,
    /// Seconds that an answer may take, its waiting included.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Which keys a token attends to.
    #[arg(long, value_enum, default_value_t = Way::Sparse)]
    attention: Way,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// Those that the indexer selects.
    Sparse,
    /// All.
    Dense,
}

/// Serves until it is told to end.
pub(super) fn run(out: &mut dyn Write, args: &ServeArgs) -> anyhow::Result<()> {
    let key = args.api_key_file.as_deref().map(key).transpose()?;
    let prepared = Prepared::new(&args.model, &args.chat)?;
    let sampling = args.sampling.over(prepared.defaults.sampling)?;
    let folder = args.model.ckpt.canonicalize().unwrap_or_else(|_| args.model.ckpt.clone());
    let folder = folder.file_name().map(|name| printable(&name.to_string_lossy(), 200));
    let name = args.served_model_name.clone().or(folder).unwrap_or_else(|| "model".into());
    let max_seq = args.model.room(prepared.config.max_position_embeddings);
    if !args.host.is_loopback() && key.is_none() {
        say(
            "warning: everybody who reaches this address can use it: --api-key-file names a key to be shown",
        );
    }
    prepared.say_warnings();
    // Before the model is loaded: a port that is taken is found at once.
    let at = (args.host, args.port);
    let listener = TcpListener::bind(at)
        .with_context(|| format!("{}:{} cannot be listened on", at.0, at.1))?;
    let attention = match args.attention {
        Way::Sparse => Attention::Sparse,
        Way::Dense => Attention::Dense,
    };
    let model = prepared.load(&args.model, (1, max_seq), attention == Attention::Dense)?;
    let settings = args.model.settings(attention, (1, max_seq));
    let Prepared { tokenizer, chat, ends, .. } = prepared;
    let (tokenizer, chat) = (Arc::new(tokenizer), Arc::new(chat));
    let mut generator = Generator::new(&model, &tokenizer, &ends, settings)?;
    let options = Options {
        name,
        sampling,
        max_tokens: args.max_new_tokens.map(|n| n as usize),
        allow_special: args.chat.allow_special,
        queue: args.queue.into(),
        key,
        limits: Limits { answer: Duration::from_secs(args.timeout.into()), ..Limits::default() },
    };
    writeln!(
        out,
        "{} of up to {max_seq} tokens at http://{}/v1",
        options.name,
        listener.local_addr()?
    )?;
    out.flush()?;
    let served = Served { tokenizer: tokenizer.clone(), chat, options };
    Ok(serve(listener, &mut generator, served, &Stop::on_signals())?)
}

/// The key in a file.
fn key(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path, MAX_KEY)?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let shown = printable(&path.to_string_lossy(), 500);
        return Err(Usage::error(format!(
            "--api-key-file {shown}: expected letters, digits and signs without spaces"
        )));
    }
    Ok(key.to_string())
}
