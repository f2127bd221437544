//! The prompts of a file, in either of its forms.
//!
//! ```text
//! a prompt of                     {"id": 7, "prompt": "…", "max_new_tokens": 20, "temperature": 0}
//! two lines                       {"id": "b", "messages": [{"role": "user", "content": "…"}], "stop": ["\n"]}
//!
//! another, behind a blank line
//! ```

use super::super::Usage;
use dsa_files::{printable, read_text};
use dsa_model::chat::{Conversation, Json, Message, tools};
use dsa_model::generate::Request;
use dsa_model::sample::Sampling;
use std::path::Path;

/// A larger file is refused unread.
const MAX_BYTES: u64 = 1 << 26;

/// A prompt of a file.
pub(super) struct Input {
    /// Where it is: `line 3`, or `prompt 2`.
    pub place: String,
    /// What the file calls it, if it is a file of JSON lines: its line's number where it does not say.
    pub id: Option<Json>,
    /// What it shows of itself, if it is none.
    pub text: String,
    pub conversation: Conversation,
    /// Everything but the prompt.
    pub request: Request,
}

/// The prompts of `path`; what a line of JSON does not say is as in `usual`.
///
/// # Errors
/// [`Usage`] for a file without prompts and for a line that is not understood, with its number; if it cannot be read.
pub(super) fn read(
    path: &Path,
    usual: &Request,
    start: &Conversation,
) -> anyhow::Result<Vec<Input>> {
    let text = read_text(path, MAX_BYTES)?;
    let shown = printable(&path.to_string_lossy(), 500);
    if text.trim().is_empty() {
        return Err(Usage::error(format!("--input-file {shown}: is empty, expected prompts")));
    }
    if !text.trim_start().starts_with('{') {
        return Ok(blocks(&text, usual, start));
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(n, line): (usize, &str)| {
        of_line(n + 1, line, usual, start)
            .map_err(|error| Usage::error(format!("--input-file {shown}: line {}: {error}", n + 1)))
    };
    lines.map(read).collect()
}

/// Prompts with blank lines between them.
fn blocks(text: &str, usual: &Request, start: &Conversation) -> Vec<Input> {
    let mut all: Vec<String> = vec![String::new()];
    for line in text.lines() {
        match all.last_mut() {
            _ if line.trim().is_empty() => all.push(String::new()),
            Some(last) if last.is_empty() => last.push_str(line),
            Some(last) => {
                last.push('\n');
                last.push_str(line);
            }
            None => {}
        }
    }
    let input = |(n, text): (usize, String)| Input {
        place: format!("prompt {}", n + 1),
        id: None,
        conversation: start.clone().and_asked(&text),
        text,
        request: Request { number: n as u64, ..usual.clone() },
    };
    all.into_iter().filter(|text| !text.is_empty()).enumerate().map(input).collect()
}

fn of_line(
    number: usize,
    line: &str,
    usual: &Request,
    start: &Conversation,
) -> Result<Input, dsa_model::Error> {
    let json = Json::parse("a request", line)?;
    let wrong =
        |name: &str, value: &Json, expected: &str| dsa_model::Error::config(name, value, expected);
    let Some(entries) = json.as_object() else {
        return Err(wrong("a request", &json, "an object { … } with prompt or messages"));
    };
    let mut request = Request { number: number as u64, ..usual.clone() };
    let (mut id, mut said, mut conversation) = (None, 0, start.clone());
    for (name, value) in entries.iter().filter(|(_, value)| *value != Json::Null) {
        let whole = || {
            let n = match value {
                Json::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
                _ => None,
            };
            n.ok_or_else(|| wrong(name, value, "a whole number, 0 or more"))
        };
        let number = || match value {
            Json::Number(number) => Ok(number.as_f64().unwrap_or(f64::NAN)),
            _ => Err(wrong(name, value, "a number")),
        };
        let text = |value: &Json| {
            value.as_str().map(str::to_string).ok_or_else(|| wrong(name, value, "a text"))
        };
        match &name[..] {
            "id" => id = Some(value.clone()),
            "prompt" => {
                conversation = start.clone().and_asked(&text(value)?);
                said += 1;
            }
            "messages" => {
                conversation.messages = Message::read_all(value)?;
                said += 1;
            }
            "tools" => conversation.tools = tools("tools", value)?,
            "thinking" => match value {
                Json::Bool(thinking) => conversation.thinking = *thinking,
                _ => return Err(wrong(name, value, "true or false")),
            },
            "max_new_tokens" => request.max_new_tokens = whole()?,
            "stop" => {
                let one = std::slice::from_ref(value);
                let texts = value.as_array().unwrap_or(one);
                request.stop = texts.iter().map(text).collect::<Result<_, _>>()?;
            }
            setting if Sampling::SETTINGS.contains(&setting) => {
                request.sampling.set(setting, number()?)?;
            }
            "seed" => request.sampling.seed = whole()? as u64,
            _ => {
                let expected = "prompt, messages, tools, thinking, id, max_new_tokens, stop, temperature, top_k, top_p, \
                                min_p or seed";
                return Err(wrong("a field", &Json::String(name.clone()), expected));
            }
        }
    }
    if said != 1 {
        return Err(wrong("a request", &json, "one of prompt and messages"));
    }
    let id = id.unwrap_or_else(|| Json::Number(number.into()));
    let place = format!("line {number}");
    Ok(Input { place, id: Some(id), text: String::new(), conversation, request })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsa_model::chat::Role;

    fn of(text: &str) -> anyhow::Result<Vec<Input>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("prompts");
        std::fs::write(&path, text)?;
        read(&path, &Request::new(vec![]), &Conversation::default())
    }

    fn says(text: &str) -> String {
        match of(text) {
            Ok(_) => panic!("{text:?} was read"),
            Err(error) => super::super::super::report(&error).0,
        }
    }

    #[test]
    fn prompts_stand_between_blank_lines() {
        let read = of("\n\n one\r\n two\n \n\nthree\n\n").unwrap();
        let texts: Vec<_> = read.iter().map(|input| &input.text[..]).collect();
        assert_eq!(texts, [" one\n two", "three"]);
        assert_eq!(read[1].conversation.messages, [Message::new(Role::User, "three")]);
        assert_eq!((read[0].request.number, read[1].request.number), (0, 1));
    }

    #[test]
    fn a_line_of_json_has_its_own_id_and_limits() {
        let read = of("{\"prompt\": \"a\"}\n\n{\"id\": \"x\", \"messages\": [{\"role\": \"user\", \"content\": \"b\"}], \
                       \"max_new_tokens\": 3, \"stop\": \"e\", \"temperature\": 0, \"seed\": 7, \"thinking\": true}\n")
        .unwrap();
        assert_eq!(read[0].id, Some(Json::Number(1.into())));
        assert_eq!(read[1].id, Some("x".into()));
        let request = &read[1].request;
        assert_eq!((request.max_new_tokens, &request.stop[..]), (3, &["e".to_string()][..]));
        assert_eq!((request.sampling.temperature, request.sampling.seed), (0.0, 7));
        assert!(read[1].conversation.thinking && !read[0].conversation.thinking);
    }

    #[test]
    fn a_file_that_is_not_understood_is_refused_with_the_line() {
        assert!(says(" \n\n").ends_with("prompts: is empty, expected prompts\n"));
        for (line, why) in [
            ("{\"prompt\": 1}", "prompt is 1, expected a text"),
            ("{}", "expected one of prompt and messages"),
            (
                "{\"prompt\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}",
                "expected one of",
            ),
            ("{\"prompt\": \"a\", \"n\": 2}", "a field is \"n\", expected prompt, messages"),
            (
                "{\"prompt\": \"a\", \"max_new_tokens\": -1}",
                "max_new_tokens is -1, expected a whole number",
            ),
            ("{\"prompt\": \"a\", \"top_k\": 1.5}", "top_k is 1.5, expected a whole number"),
            ("{\"messages\": []}", "messages is [], expected at least one message"),
            ("{\"prompt\": \"a\"", "EOF"),
            ("[]", "an object"),
        ] {
            let said = says(&format!("{{\"prompt\": \"a\"}}\n{line}\n"));
            assert!(said.contains("prompts: line 2: ") && said.contains(why), "{said}");
        }
    }
}
