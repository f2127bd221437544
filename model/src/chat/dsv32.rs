//! DeepSeek-V3.2's prompt format.
//!
//! ```text
//! <bos> system  <User> question <Assistant> </think> answer <eos>      thinking off, and turns gone by
//!               <User> question <Assistant> <think>                    thinking on: the model goes on from here
//! ```
//!
//! Thoughts are shown to the model only behind the last question, so between the calls of tools that it makes for one
//! answer; those of earlier turns are always dropped.

use super::error::{ChatError, Result};
use super::json::quoted;
use super::{Json, Message, Prompt, Role, ToolCall};

mod template;

pub use template::*;

/// The prompt of `messages` in DeepSeek-V3.2's format, to be continued by an answer: with thoughts first, if
/// `thinking`.
///
/// # Errors
/// [`ChatError::Message`]: no message; a developer's message without text; a tool's result that belongs to no call of
/// the answer before it, or in another order; calls that have only some of their results; arguments that are no JSON
/// object; with `thinking`, an answer behind the last question that neither thought nor called.
pub fn encode(messages: &[Message], thinking: bool) -> Result<Prompt> {
    if messages.is_empty() {
        return Err(ChatError::message("messages", "[]", "at least one message"));
    }
    let asks = |message: &Message| matches!(message.role, Role::User | Role::Developer);
    // Before the first message, if there is no question at all.
    let last_question = messages.iter().rposition(asks);
    let mut prompt = Prompt::new();
    prompt.control(BOS);
    for (n, message) in messages.iter().enumerate() {
        let place = Place {
            at: n,
            thinking: thinking && last_question.is_none_or(|last| n >= last),
            after: thinking && last_question.is_none_or(|last| n > last),
        };
        match message.role {
            Role::System => {
                prompt.push(&message.content);
                instructions(&mut prompt, message);
            }
            Role::Developer => {
                if message.content.is_empty() {
                    return Err(place.wrong("content", "\"\"", "a text"));
                }
                prompt.control(USER);
                instructions(&mut prompt, message);
                prompt.push(DEVELOPER);
                prompt.push(&message.content);
                prompt.control(ASSISTANT);
                prompt.control(place.opening());
            }
            Role::User => {
                prompt.control(USER);
                prompt.push(&message.content);
                prompt.control(ASSISTANT);
                prompt.control(place.opening());
            }
            Role::Assistant => place.answer(&mut prompt, message)?,
            Role::Tool => place.result(&mut prompt, messages)?,
        }
    }
    Ok(prompt)
}

/// The tools and the form of answers that a message states.
fn instructions(prompt: &mut Prompt, message: &Message) {
    if !message.tools.is_empty() {
        let (before, after) = TOOLS;
        prompt.template(before, &CONTROLS);
        for tool in &message.tools {
            prompt.push(&format!("{tool}\n"));
        }
        prompt.template(after, &CONTROLS);
    }
    if let Some(schema) = &message.response_format {
        prompt.push(RESPONSE_FORMAT);
        prompt.push(&schema.to_string());
    }
}

/// Where a message stands.
struct Place {
    /// Its number.
    at: usize,
    /// Whether the model thinks when it goes on from here.
    thinking: bool,
    /// Whether it is behind the last question of a conversation with thoughts.
    after: bool,
}

impl Place {
    /// What an answer begins with.
    fn opening(&self) -> &'static str {
        if self.thinking { THINK } else { THOUGHT }
    }

    fn wrong(&self, field: &str, value: impl ToString, expected: impl Into<String>) -> ChatError {
        ChatError::message(format!("messages[{}].{field}", self.at), value, expected)
    }

    /// An answer, and the calls of tools it ends with.
    fn answer(&self, prompt: &mut Prompt, message: &Message) -> Result<()> {
        if self.after {
            let thoughts = message.reasoning_content.as_deref().unwrap_or_default();
            if thoughts.is_empty() && message.tool_calls.is_empty() {
                let expected = "what was thought before an answer behind the last question";
                return Err(self.wrong("reasoning_content", "missing", expected));
            }
            prompt.push(thoughts);
            prompt.control(THOUGHT);
        }
        prompt.push(&message.content);
        for (n, call) in message.tool_calls.iter().enumerate() {
            prompt.template(if n == 0 { CALLS } else { "\n" }, &CONTROLS);
            self.call(prompt, call, n)?;
        }
        if !message.tool_calls.is_empty() {
            prompt.template(CALLS_END, &CONTROLS);
        }
        prompt.control(EOS);
        Ok(())
    }

    fn call(&self, prompt: &mut Prompt, call: &ToolCall, n: usize) -> Result<()> {
        let field = || format!("tool_calls[{n}].function.arguments");
        let wrong = || self.wrong(&field(), quoted(&call.arguments), "a JSON object as text");
        let arguments = Json::parse("arguments", &call.arguments).map_err(|_| wrong())?;
        let arguments = arguments.as_object().ok_or_else(wrong)?;
        prompt.template(INVOKE, &CONTROLS);
        prompt.push(&format!("{}\">\n", call.name));
        for (n, (key, value)) in arguments.iter().enumerate() {
            prompt.template(if n == 0 { "" } else { "\n" }, &CONTROLS);
            prompt.template(PARAMETER, &CONTROLS);
            let (is_text, shown) = match value {
                Json::String(text) => (true, text.clone()),
                value => (false, value.to_string()),
            };
            prompt.push(&format!("{key}\" string=\"{is_text}\">{shown}"));
            prompt.template(PARAMETER_END, &CONTROLS);
        }
        prompt.push("\n");
        prompt.template(INVOKE_END, &CONTROLS);
        Ok(())
    }

    /// What a tool gave back: all results of one answer's calls stand in one block, in the order of the calls.
    fn result(&self, prompt: &mut Prompt, messages: &[Message]) -> Result<()> {
        let message = &messages[self.at];
        let before = messages[..self.at].iter().rposition(|message| message.role != Role::Tool);
        let calls = before.map_or(&[][..], |before| &messages[before].tool_calls[..]);
        let number = before.map_or(0, |before| self.at - before - 1);
        let Some(call) = calls.get(number) else {
            let expected = format!("results of the {} calls before it alone", calls.len());
            return Err(self.wrong("role", "\"tool\"", expected));
        };
        if let (Some(of), Some(id)) = (&message.tool_call_id, &call.id)
            && of != id
        {
            let expected = format!("{}, since results stand in the order of the calls", quoted(id));
            return Err(self.wrong("tool_call_id", quoted(of), expected));
        }
        prompt.push(if number == 0 { RESULTS } else { "" });
        prompt.push(&format!("\n<result>{}</result>", message.content));
        if number + 1 == calls.len() {
            prompt.push(RESULTS_END);
            prompt.control(self.opening());
            return Ok(());
        }
        match messages.get(self.at + 1).map(|next| next.role) {
            Some(Role::Tool) => Ok(()),
            _ => {
                let expected = format!("a result of each of the {} calls", calls.len());
                Err(self.wrong("role", format!("the last of {} results", number + 1), expected))
            }
        }
    }
}
