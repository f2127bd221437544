//! What a body asks for. A field that would change the answer is understood or refused.

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;
use dsa_model::chat::{Chat, Conversation, Json, Message, Reader, tools};
use dsa_model::generate::Request;
use dsa_model::sample::Sampling;

/// Most probabilities that are told with a token.
const MOST_LOGPROBS: usize = 20;

/// Which of the two interfaces is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Text,
}

/// What is asked for.
pub(crate) struct Asked {
    pub request: Request,
    pub reader: Reader,
    pub stream: bool,
    /// Whether a stream ends with what it took.
    pub include_usage: bool,
}

/// Fields that decide nothing about an answer.
const FREE: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "request_id",
];
/// Fields of both interfaces.
const BOTH: [&str; 17] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "logprobs",
    "n",
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
];
const CHAT: [&str; 9] = [
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "chat_template_kwargs",
    "max_completion_tokens",
    "top_logprobs",
    "modalities",
];
const TEXT: [&str; 3] = ["prompt", "echo", "suffix"];

impl Asked {
    /// Reads the body of a request.
    pub fn read(kind: Kind, body: &str, app: &App) -> Result<Self, ApiError> {
        let json = Json::parse("the body", body)?;
        let fields = Fields::of("the body", &json)?;
        let own = if kind == Kind::Chat { &CHAT[..] } else { &TEXT[..] };
        let known = |name: &str| [&FREE[..], &BOTH, own].iter().any(|known| known.contains(&name));
        if let Some((name, value)) = fields.given().find(|(name, _)| !known(name)) {
            return Err(ApiError::field(
                name,
                value,
                "no such field: nobody here knows what it would change",
            ));
        }
        fixed(&fields)?;
        model(&fields, app)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = stream_options(&fields, stream)?;
        let (prompt, reader) = match kind {
            Kind::Chat => conversation(&fields, app)?,
            Kind::Text => (text(&fields, app)?, Reader::new(&Chat::Raw(None), false)),
        };
        // What is asked for and what the server grants; where neither says, what the context has room for.
        let mut asked = None;
        for name in ["max_tokens", "max_completion_tokens"] {
            asked = fields.whole(name)?.or(asked);
            if fields.whole(name)? == Some(0) {
                return Err(ApiError::field(name, 0, "at least 1"));
            }
        }
        let room = app.max_seq.saturating_sub(prompt.len()).max(1);
        let most = app.options.max_tokens.unwrap_or(usize::MAX);
        let number = app.number();
        let (sampling, number) = sampling(&fields, app.options.sampling, number)?;
        let request = Request {
            number,
            prompt,
            max_new_tokens: asked.unwrap_or(room).min(most),
            sampling,
            stop: fields.texts("stop")?,
            ignore_ends: fields.flag("ignore_eos")?.unwrap_or(false),
            logprobs: logprobs(&fields, kind)?,
        };
        request.check(app.max_seq)?;
        Ok(Self { request, reader, stream, include_usage })
    }
}

/// Refuses what is done in one way only.
fn fixed(fields: &Fields) -> Result<(), ApiError> {
    let one = || Json::Number(1.into());
    let none = || {
        [Json::Number(0.into()), serde_json::Number::from_f64(0.0).map_or(Json::Null, Json::Number)]
    };
    let text_format = Json::Object(vec![("type".into(), "text".into())]);
    fields.must_be("n", &[one()])?;
    fields.must_be("best_of", &[one()])?;
    fields.must_be("frequency_penalty", &none())?;
    fields.must_be("presence_penalty", &none())?;
    fields.must_be("logit_bias", &[Json::Object(vec![])])?;
    fields.must_be("echo", &[Json::Bool(false)])?;
    fields.must_be("suffix", &["".into()])?;
    fields.must_be("parallel_tool_calls", &[Json::Bool(true)])?;
    fields.must_be("response_format", &[text_format])?;
    fields.must_be("modalities", &[Json::Array(vec!["text".into()])])
}

/// Refuses a request for another model.
fn model(fields: &Fields, app: &App) -> Result<(), ApiError> {
    let name = &app.options.name;
    match fields.text("model")? {
        Some(other) if other != name => {
            let shown = dsa_files::printable(other, 200);
            Err(ApiError::new(404, format!("model is \"{shown}\", expected \"{name}\"")))
        }
        _ => Ok(()),
    }
}

/// Whether a stream ends with what it took.
fn stream_options(fields: &Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(json) = fields.get("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::field("stream_options", json, "none without stream"));
    }
    let options = Fields::of("stream_options", json)?;
    if let Some((name, value)) = options.given().find(|(name, _)| *name != "include_usage") {
        return Err(ApiError::field(
            &format!("stream_options.{name}"),
            value,
            "include_usage alone",
        ));
    }
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

/// The prompt of a conversation, and what reads the answer to it.
fn conversation(fields: &Fields, app: &App) -> Result<(Vec<u32>, Reader), ApiError> {
    let missing = || ApiError::field("messages", "missing", "a list of messages");
    let mut conversation = Conversation {
        messages: Message::read_all(fields.get("messages").ok_or_else(missing)?)?,
        ..Conversation::default()
    };
    if let Some(json) = fields.get("tools") {
        conversation.tools = tools("tools", json)?;
    }
    match fields.get("tool_choice").map(|choice| (choice, choice.as_str())) {
        None | Some((_, Some("auto"))) => {}
        Some((_, Some("none"))) => conversation.tools.clear(),
        Some((choice, _)) => {
            let expected = "auto or none: nothing makes the model call a tool";
            return Err(ApiError::field("tool_choice", choice, expected));
        }
    }
    if let Some(json) = fields.get("chat_template_kwargs") {
        let kwargs = Fields::of("chat_template_kwargs", json)?;
        for name in ["enable_thinking", "thinking"] {
            conversation.thinking = kwargs.flag(name)?.unwrap_or(conversation.thinking);
        }
        let others = kwargs.given().filter(|(name, _)| !name.ends_with("thinking"));
        conversation.kwargs =
            others.map(|(name, value)| (name.to_string(), value.clone())).collect();
    }
    let prompt = app.chat.prompt(&conversation, &app.tokenizer, app.options.allow_special)?;
    let reader = Reader::new(&app.chat, conversation.thinking);
    Ok((app.tokenizer.encode(&prompt)?, reader))
}

/// The prompt that is a text, or token ids.
fn text(fields: &Fields, app: &App) -> Result<Vec<u32>, ApiError> {
    let expected = "one text, or the ids of one";
    let missing = || ApiError::field("prompt", "missing", expected);
    let mut prompt = fields.get("prompt").ok_or_else(missing)?;
    if let Some([one]) = prompt.as_array()
        && !matches!(one, Json::Number(_))
    {
        prompt = one;
    }
    if let Some(text) = prompt.as_str() {
        let text = app.raw.prompt(
            &Conversation::asking(text),
            &app.tokenizer,
            app.options.allow_special,
        )?;
        return Ok(app.tokenizer.encode(&text)?);
    }
    let id = |id: &Json| match id {
        Json::Number(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        _ => None,
    };
    let ids = prompt.as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>());
    let ids = ids.ok_or_else(|| ApiError::field("prompt", prompt, expected))?;
    // An id without a token has an embedding all the same, but no text means it.
    match ids.iter().find(|id| app.tokenizer.bytes(**id).is_none()) {
        Some(id) => Err(ApiError::field("prompt", id, "ids of tokens")),
        None => Ok(ids),
    }
}

/// How tokens are drawn, and the request's number in the noise: a seed draws the same answer again, and where there is
/// none no two answers are drawn alike.
fn sampling(fields: &Fields, usual: Sampling, number: u64) -> Result<(Sampling, u64), ApiError> {
    let seed = fields.whole("seed")?;
    let sampling = Sampling {
        temperature: fields.number("temperature")?.unwrap_or(usual.temperature),
        top_k: fields.whole("top_k")?.unwrap_or(usual.top_k),
        top_p: fields.number("top_p")?.unwrap_or(usual.top_p),
        min_p: fields.number("min_p")?.unwrap_or(usual.min_p),
        seed: seed.map_or(usual.seed, |seed| seed as u64),
    };
    let right = (0.0..=2.0).contains(&sampling.temperature);
    match fields.get("temperature") {
        Some(value) if !right => Err(ApiError::field("temperature", value, "0 to 2")),
        _ => Ok((sampling, if seed.is_some() { 0 } else { number })),
    }
}

/// How many of the most probable tokens are told with each.
fn logprobs(fields: &Fields, kind: Kind) -> Result<Option<usize>, ApiError> {
    let (name, n) = match kind {
        Kind::Text => ("logprobs", fields.whole("logprobs")?),
        Kind::Chat => {
            let wanted = fields.flag("logprobs")?.unwrap_or(false);
            let top = fields.whole("top_logprobs")?;
            if let (false, Some(top)) = (wanted, top.filter(|top| *top > 0)) {
                return Err(ApiError::field("top_logprobs", top, "none without logprobs"));
            }
            ("top_logprobs", wanted.then(|| top.unwrap_or(0)))
        }
    };
    match n {
        Some(n) if n > MOST_LOGPROBS => {
            Err(ApiError::field(name, n, &format!("at most {MOST_LOGPROBS}")))
        }
        n => Ok(n),
    }
}
