//! Answers in OpenAI's forms, whole and as chunks of a stream.

use super::app::App;
use super::metrics::add;
use super::request::Kind;
use dsa_model::chat::{Answer, Chat, Delta, Reader, ToolCall};
use dsa_model::generate::{Ended, Finish, Token, What};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// An answer that is being written.
pub(crate) struct Writing {
    app: Arc<App>,
    kind: Kind,
    id: String,
    created: u64,
    reader: Reader,
    /// All that came.
    answer: Answer,
    /// Of each token, if probabilities were asked for.
    logprobs: Option<Vec<Value>>,
    /// Characters of the answer before the next token.
    offset: usize,
    /// Whether a chunk was made.
    begun: bool,
}

/// What a step adds.
struct Added {
    deltas: Vec<Delta>,
    logprobs: Option<Value>,
    ended: Option<Ended>,
}

impl Writing {
    /// Nothing yet; `logprobs` if probabilities were asked for.
    pub fn new(app: Arc<App>, kind: Kind, number: u64, reader: Reader, logprobs: bool) -> Self {
        let (prefix, created) =
            (if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, super::app::now());
        Self {
            id: format!("{prefix}-{:x}-{number}", app.created),
            app,
            kind,
            created,
            reader,
            answer: Answer::default(),
            logprobs: logprobs.then(Vec::new),
            offset: 0,
            begun: false,
        }
    }

    /// The chunks of a stream that a step makes, and whether the answer has ended.
    pub fn chunks(&mut self, what: What, include_usage: bool) -> (Vec<Value>, bool) {
        let Added { deltas, logprobs, ended } = self.add(what);
        let mut chunks = Vec::new();
        let logprobs = logprobs.unwrap_or(Value::Null);
        if self.kind == Kind::Chat && !self.begun && (!deltas.is_empty() || ended.is_some()) {
            chunks.push(self.chunk(
                json!({ "role": "assistant", "content": "" }),
                Value::Null,
                Value::Null,
            ));
        }
        self.begun |= !deltas.is_empty() || ended.is_some();
        let mut with = Some(logprobs);
        let before = self.answer.tool_calls.len()
            - deltas.iter().filter(|delta| matches!(delta, Delta::ToolCall(_))).count();
        let mut nth = before;
        for delta in &deltas {
            let part = match delta {
                Delta::Content(text) => json!({ "content": text }),
                Delta::Reasoning(text) => json!({ "reasoning_content": text }),
                Delta::ToolCall(call) => {
                    let mut call = self.call(nth, call);
                    call["index"] = json!(nth);
                    nth += 1;
                    json!({ "tool_calls": [call] })
                }
            };
            chunks.push(self.chunk(part, with.take().unwrap_or(Value::Null), Value::Null));
        }
        // A token without text has a probability too.
        if let Some(logprobs) = with.filter(|logprobs| !logprobs.is_null()) {
            chunks.push(self.chunk(json!({}), logprobs, Value::Null));
        }
        if let Some(ended) = &ended {
            let finish = json!(self.finish(&ended.finish));
            chunks.push(self.chunk(json!({}), Value::Null, finish));
            if include_usage {
                let mut last = self.head("chunk");
                last.insert("choices".into(), json!([]));
                last.insert("usage".into(), usage(ended));
                chunks.push(Value::Object(last));
            }
        }
        (chunks, ended.is_some())
    }

    /// Takes a step; the whole answer once it has ended.
    pub fn whole(&mut self, what: What) -> Option<Value> {
        let ended = self.add(what).ended?;
        let finish = self.finish(&ended.finish);
        let logprobs = match (&mut self.logprobs, self.kind) {
            (None, _) => Value::Null,
            (Some(tokens), Kind::Chat) => json!({ "content": std::mem::take(tokens) }),
            (Some(tokens), Kind::Text) => columns(tokens),
        };
        let answer = &self.answer;
        let mut choice = json!({ "index": 0, "finish_reason": finish, "logprobs": logprobs });
        match self.kind {
            Kind::Text => choice["text"] = json!(answer.content),
            Kind::Chat => {
                let calls: Vec<Value> = answer
                    .tool_calls
                    .iter()
                    .enumerate()
                    .map(|(n, call)| self.call(n, call))
                    .collect();
                let content = if answer.content.is_empty() && !calls.is_empty() {
                    Value::Null
                } else {
                    json!(answer.content)
                };
                let mut message = json!({ "role": "assistant", "content": content });
                if !answer.reasoning_content.is_empty() {
                    message["reasoning_content"] = json!(answer.reasoning_content);
                }
                if !calls.is_empty() {
                    message["tool_calls"] = json!(calls);
                }
                choice["message"] = message;
            }
        }
        let mut whole = self.head("");
        whole.insert("choices".into(), json!([choice]));
        whole.insert("usage".into(), usage(&ended));
        Some(Value::Object(whole))
    }

    fn add(&mut self, what: What) -> Added {
        let mut added = Added { deltas: vec![], logprobs: None, ended: None };
        match what {
            What::Read(..) => {}
            What::Token(token) => {
                added.deltas = self.reader.push(&token.text);
                added.logprobs = self.probability(&token);
            }
            What::Ended(ended) => {
                added.deltas = self.reader.push(&ended.text);
                let whole = matches!(ended.finish, Finish::End(_));
                let reader =
                    std::mem::replace(&mut self.reader, Reader::new(&Chat::Raw(None), false));
                let (last, left) = reader.end(whole);
                added.deltas.extend(last);
                add(&self.app.monitor.metrics.unread, usize::from(left.is_some()));
                added.ended = Some(ended);
            }
        }
        added.deltas.iter().cloned().for_each(|delta| self.answer.push(delta));
        added
    }

    /// The probability of a token in the form of the interface, kept for the whole answer.
    fn probability(&mut self, token: &Token) -> Option<Value> {
        let (all, logprob) = (self.logprobs.as_mut()?, token.logprob?);
        let tokenizer = &self.app.tokenizer;
        let value = match self.kind {
            Kind::Chat => {
                let of = |id: u32, logprob: f32| json!({ "token": tokenizer.decode(&[id]), "logprob": logprob, "bytes": tokenizer.bytes(id) });
                let mut value = of(token.id, logprob);
                let top: Vec<Value> =
                    token.top.iter().map(|(id, logprob)| of(*id, *logprob)).collect();
                value["top_logprobs"] = json!(top);
                value
            }
            Kind::Text => {
                let mut top = Map::new();
                for (id, logprob) in &token.top {
                    // Parts of characters have one name: it is the most probable one's.
                    top.entry(tokenizer.decode(&[*id])).or_insert(json!(logprob));
                }
                json!({ "token": tokenizer.decode(&[token.id]), "logprob": logprob, "top": top, "offset": self.offset })
            }
        };
        self.offset += tokenizer.decode(&[token.id]).chars().count();
        all.push(value.clone());
        Some(match self.kind {
            Kind::Chat => json!({ "content": [value] }),
            Kind::Text => columns(&[value]),
        })
    }

    fn chunk(&self, delta: Value, logprobs: Value, finish: Value) -> Value {
        let mut chunk = self.head("chunk");
        let mut choice = json!({ "index": 0, "logprobs": logprobs, "finish_reason": finish });
        match self.kind {
            Kind::Chat => choice["delta"] = delta,
            Kind::Text => {
                choice["text"] = delta.get("content").cloned().unwrap_or_else(|| json!(""))
            }
        }
        chunk.insert("choices".into(), json!([choice]));
        Value::Object(chunk)
    }

    fn head(&self, part: &str) -> Map<String, Value> {
        let object = match (self.kind, part) {
            (Kind::Text, _) => "text_completion",
            (Kind::Chat, "chunk") => "chat.completion.chunk",
            (Kind::Chat, _) => "chat.completion",
        };
        let entries = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.app.options.name)),
        ];
        entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn call(&self, nth: usize, call: &ToolCall) -> Value {
        let function = json!({ "name": call.name, "arguments": call.arguments });
        json!({ "id": format!("call-{}-{nth}", self.id), "type": "function", "function": function })
    }

    fn finish(&self, finish: &Finish) -> &'static str {
        match finish {
            Finish::End(_) if !self.answer.tool_calls.is_empty() => "tool_calls",
            Finish::End(_) | Finish::Stop(_) => "stop",
            // For OpenAI a full context is a length too.
            Finish::Length | Finish::Full | Finish::Cancelled => "length",
        }
    }
}

/// Probabilities as the older of the two interfaces has them.
fn columns(tokens: &[Value]) -> Value {
    let column = |name: &str| tokens.iter().map(|token| token[name].clone()).collect::<Vec<_>>();
    json!({ "tokens": column("token"), "token_logprobs": column("logprob"), "top_logprobs": column("top"),
        "text_offset": column("offset") })
}

fn usage(ended: &Ended) -> Value {
    json!({
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.new_tokens,
        "total_tokens": ended.prompt_tokens + ended.new_tokens,
        "prompt_tokens_details": { "cached_tokens": ended.cached_tokens },
    })
}
