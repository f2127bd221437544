//! A question to a checkpoint, from Rust: `cargo run --release --example ask -- FOLDER QUESTION`.

use dsa_kernels::Device;
use dsa_model::chat::{Chat, Conversation, Format};
use dsa_model::generate::{Generator, Request, Settings};
use dsa_model::layers::Precision;
use dsa_model::tokenizer::Tokenizer;
use dsa_model::weights::Checkpoint;
use dsa_model::{Config, Model};
use std::io::Write;
use std::path::Path;

/// Writes the answer to `question` of the checkpoint in `folder` as it comes.
pub fn ask(folder: &Path, question: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let (config, tokenizer) = (Config::read(folder)?, Tokenizer::read(folder)?);
    let (device, weights) = (Device::best()?, Checkpoint::open(folder)?);
    let model = Model::new(&device, &config, weights.root(), Precision::STORED)?;
    let chat = Chat::choose(Format::Auto, tokenizer.settings(), config.family)?;
    let prompt = chat.prompt(&Conversation::asking(question), &tokenizer, false)?;
    let request = Request { max_new_tokens: 20, ..Request::new(tokenizer.encode(&prompt)?) };
    let ends = &config.eos_token_id;
    let mut generator = Generator::new(&model, &tokenizer, ends, Settings::default())?;
    generator.begin(request)?;
    while generator.is_busy() {
        for event in generator.step()? {
            write!(out, "{}", event.text())?;
            out.flush()?;
        }
    }
    Ok(())
}

#[allow(dead_code)] // Where a test calls the function above.
fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(question)) = (args.next(), args.next()) else {
        anyhow::bail!("expected FOLDER QUESTION");
    };
    ask(Path::new(&folder), &question, &mut std::io::stdout())
}
