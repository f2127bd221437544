//! Which way a conversation becomes a prompt.

use std::fmt;

use super::error::{ChatError, Result};
use super::{Guard, Json, Message, Prompt, Role, Template, dsv32};
use crate::config::Family;
use crate::tokenizer::{Settings, Tokenizer};

/// The ways there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The checkpoint's template if it has one, else DeepSeek-V3.2's format for a model of that family.
    #[default]
    Auto,
    /// The checkpoint's template.
    Jinja,
    /// DeepSeek-V3.2's format.
    Dsv32,
    /// The text of the one message alone.
    Raw,
}

/// A conversation that the model shall continue with an answer.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// What was said.
    pub messages: Vec<Message>,
    /// The functions there are, beside those that messages state (see [`tools`](super::tools)).
    pub tools: Vec<Json>,
    /// Whether the model thinks before it answers.
    pub thinking: bool,
    /// What else a template is shown (`chat_template_kwargs`).
    pub kwargs: Vec<(String, Json)>,
}

impl Conversation {
    /// A conversation that begins with `question`.
    pub fn asking(question: &str) -> Self {
        Self::default().and_asked(question)
    }

    /// The same with one question more.
    #[must_use]
    pub fn and_asked(mut self, question: &str) -> Self {
        self.messages.push(Message::new(Role::User, question));
        self
    }
}

/// Everything a template might copy into a prompt.
impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for message in &self.messages {
            f.write_str(&message.content)?;
            f.write_str(message.reasoning_content.as_deref().unwrap_or_default())?;
            f.write_str(message.tool_call_id.as_deref().unwrap_or_default())?;
            for call in &message.tool_calls {
                let id = call.id.as_deref().unwrap_or_default();
                write!(f, "{id}{}{}", call.name, call.arguments)?;
                // What is written with escapes there is itself in a template.
                if let Ok(arguments) = Json::parse("", &call.arguments) {
                    write!(f, "{arguments}")?;
                }
            }
            message
                .tools
                .iter()
                .chain(&message.response_format)
                .try_for_each(|json| write!(f, "{json}"))?;
        }
        self.tools.iter().try_for_each(|tool| write!(f, "{tool}"))?;
        self.kwargs.iter().try_for_each(|(name, value)| write!(f, "{name}{value}"))
    }
}

/// The way that was chosen.
#[derive(Clone, Debug)]
pub enum Chat {
    /// The checkpoint's template.
    Jinja(Template),
    /// DeepSeek-V3.2's format.
    Dsv32,
    /// The text alone, behind the token that begins a text if there shall be one.
    Raw(Option<String>),
}

impl Chat {
    /// The way that `format` names, for a checkpoint with `settings` of `family`.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`] if a template is asked for and there is none, and for `Auto` also no built-in way for the
    /// family; [`ChatError::Template`] for a template that is no Jinja.
    pub fn choose(format: Format, settings: &Settings, family: Family) -> Result<Self> {
        let template = || {
            let source = settings.chat_template.as_ref().ok_or(ChatError::NoTemplate)?;
            let (bos, eos) = (settings.bos_token.as_deref(), settings.eos_token.as_deref());
            Template::new(source, bos, eos).map(Self::Jinja)
        };
        match format {
            Format::Auto if settings.chat_template.is_some() => template(),
            Format::Auto if family == Family::DeepseekV32 => Ok(Self::Dsv32),
            Format::Auto | Format::Jinja => template(),
            Format::Dsv32 => Ok(Self::Dsv32),
            Format::Raw => {
                Ok(Self::Raw(settings.bos_token.clone().filter(|_| settings.add_bos_token)))
            }
        }
    }

    /// The prompt of `conversation`. With `allow_special` what a message spells as a control token of `tokenizer` is one;
    /// without, it is text.
    ///
    /// # Errors
    /// As [`dsv32::encode`] and [`Template::render`]; [`ChatError::Message`] for what this way cannot show: a `kwargs` of
    /// another name than `thinking` in DeepSeek-V3.2's format, and all but one question in the raw one.
    pub fn prompt(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        allow_special: bool,
    ) -> Result<Prompt> {
        let prompt = match self {
            Self::Jinja(template) if allow_special => {
                return template.render(conversation, &Guard::open());
            }
            Self::Jinja(template) => {
                return template.render(conversation, &Guard::new(tokenizer, conversation)?);
            }
            Self::Dsv32 => {
                no_kwargs(conversation)?;
                dsv32::encode(&with_tools(conversation), conversation.thinking)?
            }
            Self::Raw(bos) => raw(conversation, bos.as_deref())?,
        };
        Ok(if allow_special { prompt.allow_special() } else { prompt })
    }
}

fn no_kwargs(conversation: &Conversation) -> Result<()> {
    match conversation.kwargs.first() {
        Some((name, value)) => {
            let at = format!("chat_template_kwargs.{name}");
            Err(ChatError::message(at, value, "nothing but thinking without a chat template"))
        }
        None => Ok(()),
    }
}

/// The messages, with the conversation's tools in the system's: one is made if there is none.
fn with_tools(conversation: &Conversation) -> Vec<Message> {
    let mut messages = conversation.messages.clone();
    if !conversation.tools.is_empty() {
        if messages.first().is_none_or(|message| message.role != Role::System) {
            messages.insert(0, Message::new(Role::System, ""));
        }
        messages[0].tools.extend_from_slice(&conversation.tools);
    }
    messages
}

fn raw(conversation: &Conversation, bos: Option<&str>) -> Result<Prompt> {
    no_kwargs(conversation)?;
    let wrong = |value: String| {
        let expected = "one message of role user and nothing else without a chat format";
        Err(ChatError::message("messages", value, expected))
    };
    let [message] = &conversation.messages[..] else {
        return wrong(format!("{} messages", conversation.messages.len()));
    };
    if message.role != Role::User {
        return wrong(format!("of role {}", message.role.name()));
    }
    if !conversation.tools.is_empty() || conversation.thinking {
        return wrong("with tools or thinking".into());
    }
    let mut prompt = Prompt::new();
    prompt.push_marked(bos.unwrap_or_default());
    prompt.push(&message.content);
    Ok(prompt)
}
