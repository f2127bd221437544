//! A prompt, in which control tokens and text are never mistaken for one another.

/// The text a model is asked to continue, of which some stretches are control tokens and all others are text.
///
/// What a user wrote stays text even if it spells a control token: a tokenizer is told which is which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    pieces: Vec<Piece>,
}

/// A stretch of a [`Prompt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The name of one control token.
    Control(&'static str),
    /// Text, whatever it spells. No two follow one another.
    Text(String),
    /// Text of a template's author or of a user who may write control tokens: those that the tokenizer has are
    /// meant.
    Marked(String),
}

impl Piece {
    /// What it spells.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Control(name) => name,
            Self::Text(text) | Self::Marked(text) => text,
        }
    }
}

impl Prompt {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stretches, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// All of it as one text, in which a user's `<｜User｜>` looks like the control token.
    pub fn text(&self) -> String {
        self.pieces.iter().map(Piece::as_str).collect()
    }

    /// Adds a control token.
    pub fn control(&mut self, name: &'static str) {
        self.pieces.push(Piece::Control(name));
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_string())),
        }
    }

    /// Adds text in which the tokenizer's control tokens are meant as such, each of them within this one stretch.
    pub fn push_marked(&mut self, text: &str) {
        if !text.is_empty() {
            self.pieces.push(Piece::Marked(text.to_string()));
        }
    }

    /// The same, but with control tokens meant wherever they are spelled, in what a user wrote too.
    #[must_use]
    pub fn allow_special(self) -> Self {
        let allow = |piece| match piece {
            Piece::Text(text) => Piece::Marked(text),
            other => other,
        };
        Self { pieces: self.pieces.into_iter().map(allow).collect() }
    }

    /// Adds text of ours, in which each of `names` is a control token.
    pub(super) fn template(&mut self, text: &str, names: &[&'static str]) {
        let mut rest = text;
        let first = |rest: &str| {
            let found = names.iter().filter_map(|name| rest.find(name).map(|at| (at, *name)));
            found.min_by_key(|(at, _)| *at)
        };
        while let Some((at, name)) = first(rest) {
            self.push(&rest[..at]);
            self.control(name);
            rest = &rest[at + name.len()..];
        }
        self.push(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, Prompt};

    #[test]
    fn a_template_is_cut_at_its_control_tokens_and_a_users_text_is_not() {
        let mut prompt = Prompt::new();
        prompt.template("<a>x<b>", &["<b>", "<a>"]);
        prompt.push("<a>");
        prompt.push("");
        prompt.push("y");
        let text = |text: &str| Piece::Text(text.to_string());
        let expected = [Piece::Control("<a>"), text("x"), Piece::Control("<b>"), text("<a>y")];
        assert_eq!(prompt.pieces(), expected);
        assert_eq!(prompt.text(), "<a>x<b><a>y");
    }
}
