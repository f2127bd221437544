//! What a kernel's failing says.

use crate::generate::Model;

/// What a kernel's failing says.
#[derive(Debug, thiserror::Error)]
pub struct GateFailure {
    /// The kernel.
    pub kernel: &'static str,
    /// The function that it was held against, and its file.
    pub reference: (&'static str, &'static str),
    /// The device it ran on.
    pub device: String,
    /// Seed of the cases.
    pub seed: u64,
    /// Cases that passed before.
    pub passed: u32,
    /// Whose dimensions the case had that fell, before it was made smaller.
    pub model: Option<Model>,
    /// The case that fell first and how it failed, if a smaller one was found.
    pub drawn: Option<(String, String)>,
    /// The smallest failing case found.
    pub case: String,
    /// How it failed; in the lines below the first, where.
    pub reason: String,
    /// The case, as a file for `dsa run`; or why there is none.
    pub file: String,
    /// Whether it is there.
    pub saved: bool,
}

impl std::fmt::Display for GateFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, device, seed, case, reason, file, saved, .. } = self;
        write!(f, "{kernel} fell on {device} (seed {seed}; replay all with DSA_SEED={seed})")?;
        write!(f, "\n  after {} cases that passed", self.passed)?;
        if let Some(model) = self.model {
            write!(f, ", at {model}'s dimensions")?;
        }
        if let Some((drawn, reason)) = &self.drawn {
            write!(f, "\n  fell first: {drawn}\n  {reason}\n  smallest found:")?;
        }
        write!(f, "\n  case: {case}\n  {reason}")?;
        let (function, of) = self.reference;
        write!(f, "\n  if the formula was meant to change: so must `{function}` in {of}")?;
        if !saved {
            return write!(f, "\n  no file: {file}");
        }
        let (dsa, inputs) = (program(), quoted(file));
        write!(f, "\n  saved to {file}")?;
        write!(
            f,
            "\n  kernel:    {dsa} run {kernel} --inputs {inputs} --device {device} --out kernel.safetensors"
        )?;
        write!(
            f,
            "\n  reference: {dsa} run {kernel} --inputs {inputs} --reference --out reference.safetensors"
        )?;
        write!(f, "\n  to keep it for good: {dsa} check --keep {inputs}")
    }
}

/// How a shell starts `dsa`: this program, if it is that one, or by cargo.
fn program() -> String {
    let this = std::env::current_exe().ok();
    this.filter(|path| path.file_stem().is_some_and(|name| name == "dsa"))
        .map_or("cargo run --release --bin dsa --".to_string(), |path| {
            quoted(&path.display().to_string())
        })
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted("/a/b-c.d"), "/a/b-c.d");
        assert_eq!(quoted("/a b/$c"), "'/a b/$c'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
