//! The examples do what they say.

#[path = "../../model/examples/ask.rs"]
mod ask;

use crate::generate::folder;

#[test]
fn a_question_from_rust_is_answered_as_the_command_line_answers_it() {
    let mut said = Vec::new();
    ask::ask(&folder(), "Who?", &mut said).unwrap();
    let model = folder();
    let args = ["generate", "--ckpt", model.to_str().unwrap(), "Who?", "--max-new-tokens", "20"];
    let (expected, _) = crate::cli::dsa(&args).unwrap();
    // On a terminal nothing of the text acts.
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    let said: String = String::from_utf8(said).unwrap().chars().map(shown).collect();
    assert_eq!(said + "\n", expected);
}
