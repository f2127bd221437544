//! Reads whatever a model writes as an answer: in its format as long as it keeps to it, and as plain text from where it
//! does not.

use super::dsv32::EOS;
use super::{AnswerParser, Chat, ChatError, Delta};

/// Reads an answer as it is written. Nothing of the text is lost, but for markup that was understood.
#[derive(Clone, Debug)]
pub struct Reader {
    /// `None`: everything is the answer's text.
    parser: Option<AnswerParser>,
    /// All that came.
    text: String,
    /// Where the model left its format.
    left: Option<ChatError>,
}

impl Reader {
    /// A reader of answers to prompts of `chat`, which begin with thoughts if `thinking`. In the raw way an answer is
    /// text alone; a template's answer has thoughts and calls as DeepSeek-V3.2 writes them.
    pub fn new(chat: &Chat, thinking: bool) -> Self {
        let parser = match chat {
            Chat::Raw(_) => None,
            Chat::Jinja(_) | Chat::Dsv32 => Some(AnswerParser::new(thinking)),
        };
        Self { parser, text: String::new(), left: None }
    }

    /// Takes more of the text, and gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        if text.is_empty() {
            return vec![];
        }
        self.text.push_str(text);
        match &mut self.parser {
            None => vec![Delta::Content(text.to_string())],
            Some(parser) => match parser.push(text) {
                Ok(deltas) => deltas,
                Err(error) => self.leave(error),
            },
        }
    }

    /// Ends the text: by the token that ends an answer (`whole`), or because it was cut short. What was held back comes,
    /// and where the model left its format, if it did.
    pub fn end(mut self, whole: bool) -> (Vec<Delta>, Option<ChatError>) {
        let mut deltas = Vec::new();
        let Some(mut parser) = self.parser.take() else { return (deltas, self.left) };
        let done = if whole {
            parser.push(EOS).and_then(|more| {
                deltas.extend(more);
                parser.finish()
            })
        } else {
            parser.cut().map(|more| deltas.extend(more))
        };
        if let Err(error) = done {
            deltas.extend(self.leave(error));
        }
        (deltas, self.left)
    }

    /// From the place of `error` on, everything is text.
    fn leave(&mut self, error: ChatError) -> Vec<Delta> {
        let at = match &error {
            ChatError::Answer { at, .. } => *at,
            _ => self.text.len(),
        };
        (self.parser, self.left) = (None, Some(error));
        let rest = self.text.get(at..).unwrap_or_default();
        if rest.is_empty() { vec![] } else { vec![Delta::Content(rest.to_string())] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Answer;

    fn read(text: &str, piece: usize, thinking: bool, whole: bool) -> (Answer, Option<ChatError>) {
        let mut reader = Reader::new(&Chat::Dsv32, thinking);
        let mut answer = Answer::default();
        let letters: Vec<char> = text.chars().collect();
        for piece in letters.chunks(piece) {
            let deltas = reader.push(&piece.iter().collect::<String>());
            deltas.into_iter().for_each(|delta| answer.push(delta));
        }
        let (deltas, left) = reader.end(whole);
        deltas.into_iter().for_each(|delta| answer.push(delta));
        (answer, left)
    }

    #[test]
    fn an_answer_in_its_format_is_read_and_one_that_leaves_it_is_text_from_there_on() {
        for piece in [1, 3, 1000] {
            let (answer, left) = read("hm</think>yes", piece, true, true);
            assert_eq!((&answer.reasoning_content[..], &answer.content[..]), ("hm", "yes"));
            assert_eq!(left, None);
            // A marker where none may be, at byte 3, whose name stays text.
            let (answer, left) = read("yes<think>no", piece, false, true);
            assert_eq!(answer.content, "yes<think>no");
            assert!(matches!(left, Some(ChatError::Answer { at: 3, .. })), "{left:?}");
            // Ended while it thought: the thoughts are kept, the end is no text.
            let (answer, left) = read("hm", piece, true, true);
            assert_eq!((&answer.reasoning_content[..], &answer.content[..]), ("hm", ""));
            assert!(left.is_some());
            // Cut short: what was held back comes, and nothing is wrong.
            let (answer, left) = read("yes</thi", piece, false, false);
            assert_eq!((&answer.content[..], left), ("yes</thi", None));
        }
        let (answer, _) = {
            let mut reader = Reader::new(&Chat::Raw(None), false);
            let mut answer = Answer::default();
            reader.push("</think>").into_iter().for_each(|delta| answer.push(delta));
            (answer, reader.end(true))
        };
        assert_eq!(answer.content, "</think>");
    }
}
