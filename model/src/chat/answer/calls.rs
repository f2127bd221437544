//! The calls at the end of an answer, read as they are written.
//!
//! ```text
//! <｜DSML｜function_calls>
//! <｜DSML｜invoke name="NAME">
//! <｜DSML｜parameter name="KEY" string="true|false">VALUE</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜function_calls>
//! ```

use crate::chat::dsv32::EOS;
use crate::chat::json::quoted;
use crate::chat::message::ToolCall;

const INVOKE: &str = "<｜DSML｜invoke name=\"";
/// Behind a function's name.
const NAMED: &str = "\">";
const PARAMETER: &str = "\n<｜DSML｜parameter name=\"";
/// Behind a key, before whether the value is a text.
const STRING: &str = "\" string=\"";
const PARAMETER_END: &str = "</｜DSML｜parameter>";
const INVOKE_END: &str = "\n</｜DSML｜invoke>\n";
/// The end of a call without arguments, as the encoder writes it.
const EMPTY_END: &str = "\n\n</｜DSML｜invoke>\n";
const CALLS_END: &str = "</｜DSML｜function_calls>";

/// A place in the text from the state's beginning, in bytes, and what was expected there.
pub(super) type Wrong = (usize, String);

/// What comes next.
#[derive(Clone, Debug)]
enum Next {
    /// The rest of the line that begins the calls.
    Line,
    /// A call, or the end of all.
    Call,
    /// A function's name.
    Name,
    /// An argument, or the end of the call.
    Argument,
    /// An argument's key.
    Key,
    /// Whether the value of the key is a text.
    Kind(String),
    /// The value.
    Value(String, bool),
    /// The end of the answer.
    End,
    /// Nothing.
    Over,
}

/// The state of reading.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    next: Next,
    name: String,
    /// Keys, and values as JSON.
    arguments: Vec<(String, String)>,
    call: Option<ToolCall>,
}

impl Calls {
    /// Behind the beginning of the calls without its `>`.
    pub(super) fn new() -> Self {
        Self { next: Next::Line, name: String::new(), arguments: Vec::new(), call: None }
    }

    /// The call that the last step completed.
    pub(super) fn call(&mut self) -> Option<ToolCall> {
        self.call.take()
    }

    /// Whether the answer has ended.
    pub(super) fn ended(&self) -> bool {
        matches!(self.next, Next::Over)
    }

    /// What would come next.
    pub(super) fn expected(&self) -> &'static str {
        match self.next {
            Next::Line => ">",
            Next::Call => "a call or the end of the calls",
            Next::Name => "a function's name and \">",
            Next::Argument => "an argument or the end of the call",
            Next::Key => "an argument's name",
            Next::Kind(_) => "true or false",
            Next::Value(..) => "the end of the argument",
            Next::End => EOS,
            Next::Over => "nothing",
        }
    }

    /// Reads one step of `text`: how many bytes it took; `None` if that needs more text.
    pub(super) fn step(&mut self, text: &str) -> Result<Option<usize>, Wrong> {
        let next = match &self.next {
            Next::Line => choose(text, &[(">\n", Next::Call)])?,
            Next::Call => choose(text, &[(INVOKE, Next::Name), (CALLS_END, Next::End)])?,
            Next::Name => find(text, NAMED).map(|(name, taken)| {
                self.name = name.to_string();
                (taken, Next::Argument)
            }),
            Next::Argument => {
                let ways = [(PARAMETER, true), (INVOKE_END, false), (EMPTY_END, false)];
                let ways = if self.arguments.is_empty() { &ways[..] } else { &ways[..2] };
                choose(text, ways)?
                    .map(|(taken, more)| (taken, if more { Next::Key } else { self.complete() }))
            }
            Next::Key => match find(text, STRING) {
                Some((key, _)) if self.arguments.iter().any(|(other, _)| other == key) => {
                    return Err((0, format!("each argument once, not {} again", quoted(key))));
                }
                found => found.map(|(key, taken)| (taken, Next::Kind(key.to_string()))),
            },
            Next::Kind(key) => choose(text, &[("true\">", true), ("false\">", false)])?
                .map(|(taken, is_text)| (taken, Next::Value(key.clone(), is_text))),
            Next::Value(key, is_text) => find(text, PARAMETER_END).map(|(value, taken)| {
                let value = if *is_text { quoted(value) } else { value.to_string() };
                self.arguments.push((key.clone(), value));
                (taken, Next::Argument)
            }),
            Next::End => choose(text, &[(EOS, Next::Over)])?,
            Next::Over => None,
        };
        Ok(next.map(|(taken, next)| {
            self.next = next;
            taken
        }))
    }

    /// Completes a call.
    fn complete(&mut self) -> Next {
        let entry = |(key, value): (String, String)| format!("{}: {value}", quoted(&key));
        let entries: Vec<String> = self.arguments.drain(..).map(entry).collect();
        let (name, arguments) = (std::mem::take(&mut self.name), entries.join(", "));
        self.call = Some(ToolCall { id: None, name, arguments: format!("{{{arguments}}}") });
        Next::Call
    }
}

/// Which of the `ways` the text goes on in, and how long its word is; `None` if that needs more text.
fn choose<T: Clone>(text: &str, ways: &[(&str, T)]) -> Result<Option<(usize, T)>, Wrong> {
    let shared = |word: &str| text.bytes().zip(word.bytes()).take_while(|(a, b)| a == b).count();
    let furthest = ways.iter().map(|(word, _)| shared(word)).max().unwrap_or(0);
    let open = ways.iter().any(|(word, _)| word.starts_with(text));
    let expected = ways.iter().map(|(word, _)| quoted(word)).collect::<Vec<_>>().join(" or ");
    let found = ways.iter().find(|(word, _)| text.starts_with(word));
    match found {
        Some((word, way)) => Ok(Some((word.len(), way.clone()))),
        None if open => Ok(None),
        // The first byte that no way has, or the character it is in.
        None => Err((text.floor_char_boundary(furthest), expected)),
    }
}

/// The text before the first `end`, and how long both are; `None` if there is none yet.
fn find<'a>(text: &'a str, end: &str) -> Option<(&'a str, usize)> {
    text.find(end).map(|at| (&text[..at], at + end.len()))
}
