//! A checkpoint's own chat template: a program in Jinja, which is run in a sandbox.
//!
//! It sees what Hugging Face's `apply_chat_template` shows: `messages`, `tools`, `add_generation_prompt`, `bos_token`,
//! `eos_token`, whatever else was asked for, and `raise_exception`. It reads no file, knows no clock, and has fuel for as much
//! work and memory as the conversation is long.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::error::{ChatError, Result};
use super::format::Conversation;
use super::guard::Guard;
use super::{Json, Message, Prompt, ToolCall};

#[cfg(test)]
mod tests;

/// Fuel of a conversation without text: instructions, and as many times 64 bytes of memory.
const FUEL: u64 = 1_000_000;
/// Fuel for each byte of the conversation, which a template may copy and search a few times.
const FUEL_OF_BYTE: u64 = 4;

/// A chat template.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    /// The tokens that begin a text and end an answer; empty if there are none.
    bos_token: String,
    eos_token: String,
}

impl Template {
    /// The template of the Jinja text `source`.
    ///
    /// # Errors
    /// [`ChatError::Template`] with the line, if that is no Jinja.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        let text = |token: Option<&str>| token.unwrap_or_default().to_string();
        let template = Self {
            source: source.to_string(),
            bos_token: text(bos_token),
            eos_token: text(eos_token),
        };
        environment(0)?.template_from_str(&template.source).map_err(refused)?;
        Ok(template)
    }

    /// The prompt of a conversation: the template's control tokens are meant, and a message's are text unless `guard`
    /// lets them through.
    ///
    /// # Errors
    /// [`ChatError::Template`] with the line: what the template refuses, does wrong, or has no fuel for;
    /// [`ChatError::Message`] as [`Guard::text`].
    pub fn render(&self, conversation: &Conversation, guard: &Guard) -> Result<Prompt> {
        // Most templates want a call's arguments as an object, as Hugging Face says; DeepSeek-V3's as text.
        let objects = self.render_with(conversation, guard, true);
        let calls = conversation.messages.iter().any(|message| !message.tool_calls.is_empty());
        match objects {
            Err(error) if calls => self.render_with(conversation, guard, false).map_err(|_| error),
            rendered => rendered,
        }
    }

    fn render_with(
        &self,
        conversation: &Conversation,
        guard: &Guard,
        objects: bool,
    ) -> Result<Prompt> {
        let tools = conversation.tools.iter().map(tool).map(|tool| guard.json(&tool));
        let messages = conversation.messages.iter().map(|message| shown(message, guard, objects));
        let mut seen = vec![
            ("messages".to_string(), Json::Array(messages.collect::<Result<_>>()?)),
            ("add_generation_prompt".into(), Json::Bool(true)),
            ("bos_token".into(), self.bos_token[..].into()),
            ("eos_token".into(), self.eos_token[..].into()),
            ("thinking".into(), Json::Bool(conversation.thinking)),
            ("enable_thinking".into(), Json::Bool(conversation.thinking)),
        ];
        if !conversation.tools.is_empty() {
            seen.push(("tools".into(), Json::Array(tools.collect::<Result<_>>()?)));
        }
        for (name, value) in &conversation.kwargs {
            seen.retain(|(other, _)| other != name);
            seen.push((name.clone(), guard.json(value)?));
        }
        let seen = Json::Object(seen);
        let bytes = seen.to_string().len() as u64;
        let environment = environment(FUEL + FUEL_OF_BYTE * bytes)?;
        let template = environment.template_from_str(&self.source).map_err(refused)?;
        let text = template.render(Value::from(Serde(&seen))).map_err(refused)?;
        Ok(guard.prompt(&text))
    }
}

/// A function as Hugging Face shows it.
fn tool(function: &Json) -> Json {
    Json::Object(vec![("type".into(), "function".into()), ("function".into(), function.clone())])
}

/// A message as Hugging Face shows it.
fn shown(message: &Message, guard: &Guard, objects: bool) -> Result<Json> {
    let mut fields = vec![
        ("role".to_string(), Json::from(message.role.name())),
        ("content".into(), Json::String(guard.text(&message.content)?)),
    ];
    if let Some(thoughts) = &message.reasoning_content {
        fields.push(("reasoning_content".into(), Json::String(guard.text(thoughts)?)));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| shown_call(call, guard, objects));
        fields.push(("tool_calls".into(), Json::Array(calls.collect::<Result<_>>()?)));
    }
    if let Some(id) = &message.tool_call_id {
        fields.push(("tool_call_id".into(), Json::String(guard.text(id)?)));
    }
    if !message.tools.is_empty() {
        let tools = message.tools.iter().map(tool).map(|tool| guard.json(&tool));
        fields.push(("tools".into(), Json::Array(tools.collect::<Result<_>>()?)));
    }
    if let Some(schema) = &message.response_format {
        fields.push(("response_format".into(), guard.json(schema)?));
    }
    Ok(Json::Object(fields))
}

fn shown_call(call: &ToolCall, guard: &Guard, objects: bool) -> Result<Json> {
    let text = Json::String(guard.text(&call.arguments)?);
    let arguments = match Json::parse("arguments", &call.arguments) {
        Ok(arguments) if objects => guard.json(&arguments)?,
        _ => text,
    };
    let function = vec![
        ("name".to_string(), Json::String(guard.text(&call.name)?)),
        ("arguments".into(), arguments),
    ];
    let mut fields = vec![("type".to_string(), Json::from("function"))];
    if let Some(id) = &call.id {
        fields.push(("id".into(), Json::String(guard.text(id)?)));
    }
    fields.push(("function".into(), Json::Object(function)));
    Ok(Json::Object(fields))
}

/// What a template can do.
fn environment(fuel: u64) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(refused)?);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |reason: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("it says: {reason}")))
        },
    );
    environment.set_fuel(Some(fuel));
    Ok(environment)
}

/// A value as Hugging Face's `tojson` writes it: in its own order, with nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let wrong = |detail: String| minijinja::Error::new(ErrorKind::BadSerialization, detail);
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(wrong("ensure_ascii is true, expected false".into()));
    }
    options.assert_all_used()?;
    let text = serde_json::to_string(value).map_err(|error| wrong(error.to_string()))?;
    let json = Json::parse("tojson", &text).map_err(|error| wrong(error.to_string()))?;
    Ok(match indent {
        Some(indent) => json.indented(indent.min(16)),
        None => json.to_string(),
    })
}

/// An error of the template, with its line.
fn refused(error: minijinja::Error) -> ChatError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), ToString::to_string);
    let kind = match error.kind() {
        ErrorKind::OutOfFuel => "more work than the conversation is worth: ".to_string(),
        _ => String::new(),
    };
    ChatError::Template { line: error.line().unwrap_or(0), detail: format!("{kind}{detail}") }
}
