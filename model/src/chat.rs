//! From a conversation to the text that a model continues, and from what it writes to an answer.
//!
//! ```text
//! let messages = Message::read_all(&Json::parse("request", text)?)?;
//! let chat = Chat::choose(Format::Auto, tokenizer.settings(), config.family)?;
//! let conversation = Conversation { messages, tools, thinking, ..Default::default() };
//! let prompt = chat.prompt(&conversation, &tokenizer, false)?;
//! let ids = tokenizer.encode(&prompt)?;
//! let mut answer = AnswerParser::new(thinking);
//! for delta in answer.push(piece)? { … }                        // as the model writes
//! for delta in answer.finish()? { … }
//! ```
//! A [`Reader`] takes whatever a model writes: what leaves the format is text.
//!
//! Source: the format that DeepSeek-V3.2 was published with (its `encoding_dsv32`), whose tool calls are marked up
//! with the token `｜DSML｜`.

mod answer;
pub mod dsv32;
mod error;
mod format;
mod guard;
mod json;
mod message;
mod prompt;
mod reader;
mod template;
#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerParser, Delta, parse_answer};
pub use error::ChatError;
pub use format::{Chat, Conversation, Format};
pub use guard::Guard;
pub use json::Json;
pub use message::{Message, Role, ToolCall, tools};
pub use prompt::{Piece, Prompt};
pub use reader::Reader;
pub use template::Template;
