//! The messages of a conversation, as the chat interfaces of today write them in JSON.

use super::Json;
use super::error::{ChatError, Result};

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What holds for the whole conversation.
    System,
    /// A user's question with the instructions of who built the program around it.
    Developer,
    /// A question.
    User,
    /// An answer of the model.
    Assistant,
    /// What a tool gave back.
    Tool,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A function that an answer calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The caller's name for this call, to which a tool's result refers.
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// Its arguments: a JSON object as text.
    pub arguments: String,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said; may be empty.
    pub content: String,
    /// What the model thought before it answered.
    pub reasoning_content: Option<String>,
    /// The functions that an answer calls.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's result, the call it belongs to.
    pub tool_call_id: Option<String>,
    /// The functions there are, of a system's or developer's message: each with name, description and parameters.
    pub tools: Vec<Json>,
    /// The JSON schema that answers shall have, of a system's or developer's message.
    pub response_format: Option<Json>,
}

impl Message {
    /// A message that says `content` and no more.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            tools: Vec::new(),
            response_format: None,
        }
    }

    /// The messages of a JSON array `[{"role": …, "content": …}, …]`.
    ///
    /// A content is a text or a list of `{"type": "text", "text": …}`, which are joined; a field that is null counts
    /// as absent.
    ///
    /// # Errors
    /// [`ChatError::Message`] for what is missing, of another type, or unknown: a field that nobody reads might be
    /// meant to change the answer.
    pub fn read_all(messages: &Json) -> Result<Vec<Self>> {
        let list = "a list of messages";
        let messages =
            messages.as_array().ok_or_else(|| ChatError::message("messages", messages, list))?;
        if messages.is_empty() {
            return Err(ChatError::message("messages", "[]", "at least one message"));
        }
        let read = |(n, message)| Self::read(&format!("messages[{n}]"), message);
        messages.iter().enumerate().map(read).collect()
    }

    /// A message, which is at `at`.
    fn read(at: &str, message: &Json) -> Result<Self> {
        let entries = message
            .as_object()
            .ok_or_else(|| ChatError::message(at, message, "an object with role and content"))?;
        let given = || entries.iter().filter(|(_, value)| *value != Json::Null);
        let role = role(&format!("{at}.role"), message.get("role"))?;
        let mut read = Self::new(role, "");
        let mut content = false;
        for (key, value) in given() {
            let at = format!("{at}.{key}");
            let instructs = matches!(role, Role::System | Role::Developer);
            match (&key[..], role) {
                ("role", _) => {}
                ("content", _) => {
                    (read.content, content) = (text_of(&at, value)?, true);
                }
                ("reasoning_content", Role::Assistant) => {
                    read.reasoning_content = Some(text(&at, value)?);
                }
                ("tool_calls", Role::Assistant) => read.tool_calls = tool_calls(&at, value)?,
                ("tool_call_id", Role::Tool) => read.tool_call_id = Some(text(&at, value)?),
                // Nobody reads the name of a tool's result: the call says it.
                ("name", Role::Tool) => {}
                ("tools", _) if instructs => read.tools = tools(&at, value)?,
                ("response_format", _) if instructs => read.response_format = Some(value.clone()),
                _ => {
                    let expected = format!("no such field in a message of role {}", role.name());
                    return Err(ChatError::message(at, value, expected));
                }
            }
        }
        if !content && role != Role::Assistant {
            return Err(ChatError::message(format!("{at}.content"), "missing", "a text"));
        }
        Ok(read)
    }
}

/// The functions of a list `[{"type": "function", "function": {"name": …, …}}, …]`, which is at `at`.
///
/// # Errors
/// [`ChatError::Message`] for another shape, and for a function without a name.
pub fn tools(at: &str, tools: &Json) -> Result<Vec<Json>> {
    let entries = tools.as_array().ok_or_else(|| ChatError::message(at, tools, "a list"))?;
    let function = |(n, tool): (usize, &Json)| {
        let at = format!("{at}[{n}]");
        let function = function_of(&at, tool)?;
        let name = function.get("name").and_then(Json::as_str);
        match name {
            Some(name) if !name.is_empty() => Ok(function.clone()),
            _ => Err(ChatError::message(format!("{at}.function.name"), function, "a name")),
        }
    };
    entries.iter().enumerate().map(function).collect()
}

/// The value of `function` of an object `{"type": "function", "function": …}`.
fn function_of<'a>(at: &str, entry: &'a Json) -> Result<&'a Json> {
    let kind = entry.get("type").map_or(Some("function"), Json::as_str);
    let function = entry.get("function").filter(|_| kind == Some("function"));
    function.ok_or_else(|| {
        ChatError::message(at, entry, "{\"type\": \"function\", \"function\": { … }}")
    })
}

fn tool_calls(at: &str, calls: &Json) -> Result<Vec<ToolCall>> {
    let calls = calls.as_array().ok_or_else(|| ChatError::message(at, calls, "a list"))?;
    let read = |(n, call): (usize, &Json)| {
        let at = format!("{at}[{n}]");
        let function = function_of(&at, call)?;
        let field = |name: &str| {
            let at = format!("{at}.function.{name}");
            let value =
                function.get(name).ok_or_else(|| ChatError::message(&at, "missing", "a text"))?;
            text(&at, value)
        };
        let id = match call.get("id") {
            None | Some(Json::Null) => None,
            Some(id) => Some(text(&format!("{at}.id"), id)?),
        };
        Ok(ToolCall { id, name: field("name")?, arguments: field("arguments")? })
    };
    calls.iter().enumerate().map(read).collect()
}

fn role(at: &str, value: Option<&Json>) -> Result<Role> {
    let expected = "system, developer, user, assistant or tool";
    let value = value.ok_or_else(|| ChatError::message(at, "missing", expected))?;
    let named = |role: &Role| value.as_str() == Some(role.name());
    Role::ALL.into_iter().find(named).ok_or_else(|| ChatError::message(at, value, expected))
}

fn text(at: &str, value: &Json) -> Result<String> {
    let text = value.as_str().ok_or_else(|| ChatError::message(at, value, "a text"))?;
    Ok(text.to_string())
}

/// A text, or one in parts.
fn text_of(at: &str, value: &Json) -> Result<String> {
    let Some(parts) = value.as_array() else {
        return text(at, value);
    };
    let part = |(n, part): (usize, &Json)| {
        let kind = part.get("type").and_then(Json::as_str);
        let text = part.get("text").and_then(Json::as_str).filter(|_| kind == Some("text"));
        text.map(str::to_string).ok_or_else(|| {
            let expected = "{\"type\": \"text\", \"text\": … }: the model reads text alone";
            ChatError::message(format!("{at}[{n}]"), part, expected)
        })
    };
    parts.iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Message>> {
        Message::read_all(&Json::parse("messages", text).unwrap())
    }

    #[test]
    fn a_message_is_read_in_every_spelling() {
        let text = r#"[{"role": "system", "content": "s", "tools": [{"type": "function", "function": {"name": "f"}}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "reasoning_content": "r",
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "name": "f", "content": "x"}]"#;
        let messages = read(text).unwrap();
        assert_eq!(messages[0].tools[0].to_string(), r#"{"name": "f"}"#);
        assert_eq!(messages[1], Message::new(Role::User, "ab"));
        let call = ToolCall { id: Some("1".into()), name: "f".into(), arguments: "{}".into() };
        assert_eq!(messages[2].tool_calls, [call]);
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("r"));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn what_is_wrong_with_a_message_is_said_with_its_place() {
        for (text, said) in [
            (r#"{}"#, "messages is {}, expected a list of messages"),
            ("[]", "messages is [], expected at least one message"),
            ("[1]", "messages[0] is 1, expected an object"),
            (r#"[{"content": "x"}]"#, "messages[0].role is missing, expected system, developer"),
            (
                r#"[{"role": "bot", "content": "x"}]"#,
                "messages[0].role is \"bot\", expected system",
            ),
            (r#"[{"role": "user"}]"#, "messages[0].content is missing, expected a text"),
            (r#"[{"role": "user", "content": 1}]"#, "messages[0].content is 1, expected a text"),
            (
                r#"[{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]"#,
                "messages[0].content[0] is {\"type\": \"image_url\"",
            ),
            (
                r#"[{"role": "user", "content": "x", "weight": 2}]"#,
                "messages[0].weight is 2, expected no such field in a message of role user",
            ),
            (
                r#"[{"role": "user", "content": "x", "tool_calls": []}]"#,
                "messages[0].tool_calls is []",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]"#,
                "messages[0].tool_calls[0].function.arguments is missing",
            ),
            (
                r#"[{"role": "system", "content": "", "tools": [{"type": "code"}]}]"#,
                "messages[0].tools[0] is {\"type\": \"code\"}, expected {\"type\": \"function\"",
            ),
            (
                r#"[{"role": "system", "content": "", "tools": [{"function": {"name": ""}}]}]"#,
                "messages[0].tools[0].function.name is",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
