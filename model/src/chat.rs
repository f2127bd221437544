//! From a conversation to the text that a model continues, and from what it writes to an answer.
//!
//! ```text
//! let messages = Message::read_all(&Json::parse("request", text)?)?;
//! let prompt = dsv32::encode(&messages, thinking)?;              // for the tokenizer
//! let mut answer = AnswerParser::new(thinking);
//! for delta in answer.push(piece)? { … }                        // as the model writes
//! for delta in answer.finish()? { … }
//! ```
//!
//! Source: the format that DeepSeek-V3.2 was published with (its `encoding_dsv32`), whose tool calls are marked up
//! with the token `｜DSML｜`.

mod answer;
pub mod dsv32;
mod error;
mod json;
mod message;
mod prompt;
#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerParser, Delta, parse_answer};
pub use error::ChatError;
pub use json::Json;
pub use message::{Message, Role, ToolCall, tools};
pub use prompt::{Piece, Prompt};
