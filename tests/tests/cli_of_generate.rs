//! `dsa generate`.

use crate::cli::dsa;
use crate::generate::folder;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `dsa generate` on the made-up model.
fn generate(more: &[&str]) -> Result<String, String> {
    let model = folder();
    let args = ["generate", "--ckpt", text(&model), "--dtype", "f32"];
    dsa(&[&args, more].concat()).map(|(said, ok)| {
        assert!(ok);
        said
    })
}

/// The answer of JSON lines to one line.
fn line(of: &str, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    std::fs::write(&path, of).unwrap();
    let said = generate(&[&["--input-file", text(&path)], more].concat()).unwrap();
    serde_json::from_str(said.trim_end()).unwrap()
}

#[test]
fn a_question_is_answered_the_same_again_and_alone_as_among_others() {
    let few = ["--max-new-tokens", "5"];
    let alone = generate(&[&["Who are you?"], &few[..]].concat()).unwrap();
    assert!(alone.ends_with('\n') && alone.len() > 5, "{alone:?}");
    assert_eq!(generate(&[&["Who are you?"], &few[..]].concat()).unwrap(), alone);
    let other = generate(&[&["Who are you?", "--seed", "8"], &few[..]].concat()).unwrap();
    assert_ne!(other, alone);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "Who are you?\n\nAnd\nyou?\n").unwrap();
    let said = generate(&[&["--input-file", text(&file), "--stats"], &few[..]].concat()).unwrap();
    assert!(
        said.starts_with(&format!("Prompt: Who are you?\nCompletion: {alone}stats: ")),
        "{said}"
    );
    assert!(said.contains("\nPrompt: And\nyou?\nCompletion: "), "{said}");
    assert!(said.contains("finish length\n"), "{said}");
}

#[test]
fn lines_of_json_have_ids_limits_and_results_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.jsonl");
    let lines = "{\"id\": {\"n\": 1}, \"prompt\": \"abc\", \"max_new_tokens\": 6}\n\
                 {\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"abc\"}], \
                 \"max_new_tokens\": 2, \"temperature\": 0}\n";
    std::fs::write(&file, lines).unwrap();
    let said = generate(&["--input-file", text(&file)]).unwrap();
    let results: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // As they end: the shorter one first.
    let ids: Vec<&Value> = results.iter().map(|result| &result["id"]).collect();
    assert_eq!(ids, [&serde_json::json!(2), &serde_json::json!({ "n": 1 })]);
    assert_eq!((&results[0]["new_tokens"], &results[1]["new_tokens"]), (&2.into(), &6.into()));
    assert_eq!(
        (&results[0]["finish"], &results[0]["prompt_tokens"]),
        (&"length".into(), &8.into())
    );
}

#[test]
fn what_a_question_spells_is_a_control_token_only_if_that_is_allowed() {
    let ask = "{\"prompt\": \"<｜User｜>\", \"max_new_tokens\": 1}";
    let spelled = line(ask, &[])["prompt_tokens"].as_u64().unwrap();
    let meant = line(ask, &["--allow-special"])["prompt_tokens"].as_u64().unwrap();
    assert_eq!(spelled - meant, "<｜User｜>".len() as u64 - 1);
    // Raw, a text is its bytes and no more.
    let raw = line("{\"prompt\": \"abc\", \"max_new_tokens\": 1}", &["--chat", "raw"]);
    assert_eq!(raw["prompt_tokens"], 3);
}

#[test]
fn both_ways_of_attending_are_compared_token_by_token_and_the_answer_is_sparse_attentions() {
    let ask = "{\"prompt\": \"a question of more bytes than there are keys selected\", \"max_new_tokens\": 3}";
    let (sparse, both) = (line(ask, &[]), line(ask, &["--attention", "both"]));
    assert_eq!(sparse["text"], both["text"]);
    assert!(sparse["dense"].is_null());
    let tokens = both["dense"].as_array().unwrap();
    assert_eq!(tokens.len(), 3);
    for token in tokens {
        assert!(token["kl"].as_f64().unwrap() > 0.0 && token["same_top"].is_boolean());
        let layers = token["layers"].as_array().unwrap();
        let recall = |layer: &Value| layer["recall"].as_f64().unwrap();
        assert!(
            layers.len() == 2 && layers.iter().all(|layer| (0.0..=1.0).contains(&recall(layer)))
        );
    }
    let question = "a question of more bytes than there are keys selected";
    let said = generate(&[question, "--attention", "both", "--max-new-tokens", "3"]).unwrap();
    assert!(said.starts_with("position  token "), "{said}");
    assert!(said.contains("\nsparse against dense over 3 tokens: KL "), "{said}");
    assert!(said.contains("\n  layer  1: recall 0."), "{said}");
}

#[test]
fn a_trace_shows_every_step_with_its_stages() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let chunks = ["--prefill-chunk", "4", "--max-new-tokens", "3", "--trace", text(&trace)];
    generate(&[&["Who?", "--chat", "raw", "--seed", "3"], &chunks[..]].concat()).unwrap();
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let of = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    // A prompt of four tokens in one chunk, from which the first token is drawn, and two steps for two more.
    assert_eq!((of("prompt, sparse"), of("token, sparse")), (1, 2));
    assert_eq!((of("indexer"), of("attention")), (3, 3));
    assert!(events.iter().all(|event| event["ph"] == "M" || event["dur"].as_f64().unwrap() > 0.0));
}

#[test]
fn what_cannot_be_answered_is_refused_before_anything_is_loaded_and_a_full_context_keeps_the_answer()
 {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (empty, long) = (file("empty", "\n \n"), file("long", "abc\n\n0123456789abcdef\n"));
    for (more, says) in [
        (&["--input-file", &empty][..], "is empty, expected prompts"),
        (
            &["--input-file", &long, "--max-seq", "16", "--chat", "raw"],
            "prompt 2: prompt is 16 tokens, expected at most 15",
        ),
        (&["x", "--temperature", "nan"], "--temperature is NaN, expected a finite number"),
        (&["x", "--top-p", "1.5"], "--top-p is 1.5, expected 0 to 1"),
        (&["x", "--max-new-tokens", "0"], "max_new_tokens is 0, expected at least 1"),
        (&["x", "--stop", ""], "stop is \"\", expected a text"),
        (&["", "--chat", "raw"], "the prompt: prompt is 0 tokens, expected at least 1"),
        (&["x", "--trace", "/no/such/folder/t"], "/no/such/folder/t"),
        (&["x", "--thinking", "--chat", "raw"], "with tools or thinking"),
        (&[], "the following required arguments were not provided"),
        (&["x", "--interactive"], "cannot be used with"),
    ] {
        let error = generate(more).unwrap_err();
        assert!(error.contains(says), "{more:?}: {error}");
    }
    let full = ["012345", "--chat", "raw", "--max-seq", "8", "--temperature", "0"];
    let mut out = Vec::new();
    let model = crate::generate::folder();
    let args = ["dsa", "generate", "--ckpt", text(&model), "--dtype", "f32"];
    let args = args.iter().chain(&full).map(Into::into);
    let error = dsa_cli::run(args, &mut out).unwrap_err();
    let says = "error: the context is full: 6 tokens of prompt and 3 of the answer (--max-seq says how many there may be)\n";
    assert_eq!(dsa_cli::report(&error), (says.to_string(), 2));
    assert!(out.len() > 1 && out.ends_with(b"\n"));
}

#[test]
fn a_converted_checkpoint_answers_as_the_one_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (made, converted) = (folder.path().join("made"), folder.path().join("converted"));
    let (made, converted) = (text(&made), text(&converted));
    dsa(&["make-tiny", made, "--layers", "2"]).unwrap();
    dsa(&["convert", "--hf-ckpt-path", made, "--save-path", converted]).unwrap();
    let few = ["Who are you?", "--max-new-tokens", "6"];
    let answer = |flag, of| dsa(&[&["generate", flag, of], &few[..]].concat()).unwrap().0;
    assert_eq!(answer("--ckpt-path", converted), answer("--ckpt", made));
}

/// Set in a child of the test: it is `dsa` with these arguments, a line each.
const CHILD: &str = "DSA_TEST_CHILD";

/// A program of its own, since signals and the input are a program's.
#[test]
fn as_a_child_it_is_the_command_line() {
    let Ok(args) = std::env::var(CHILD) else { return };
    let done = dsa_cli::run(args.lines().map(Into::into), &mut std::io::stdout());
    let status = match done {
        Ok(_) => 0,
        Err(error) => {
            let (text, status) = dsa_cli::report(&error);
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            status
        }
    };
    std::process::exit(status.into());
}

/// `dsa` as a program, with pipes.
pub fn child(args: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cli_of_generate::as_a_child_it_is_the_command_line", "--nocapture"])
        .env(CHILD, [&["dsa"], args].concat().join("\n"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends a signal, `INT` or `TERM`, to a child.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_conversation_obeys_its_commands_and_ctrl_c_ends_an_answer_and_then_the_program() {
    let model = folder();
    let args = ["generate", "--ckpt", text(&model), "--dtype", "f32", "--interactive", "--stats"];
    let mut talk = child(&[&args[..], &["--max-new-tokens", "6000", "--ignore-eos"]].concat());
    let mut input = talk.stdin.take().unwrap();
    let mut output = BufReader::new(talk.stdout.take().unwrap());
    let mut said = Vec::new();
    // Reads until the child said this; what it said.
    let mut until = |what: &str, say: &mut dyn FnMut()| {
        said.clear();
        let begin = Instant::now();
        while !String::from_utf8_lossy(&said).contains(what) {
            assert!(
                begin.elapsed() < Duration::from_secs(300),
                "{}",
                String::from_utf8_lossy(&said)
            );
            say();
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        String::from_utf8_lossy(&said).into_owned()
    };
    let nothing = &mut || {};
    until(">>> ", nothing);
    input.write_all(b"/stats\n/attention none\n/nothing\n\n").unwrap();
    assert!(until(">>> ", nothing).starts_with("stats: no answer yet\n"));
    (0..3).for_each(|_| drop(until(">>> ", nothing)));
    input.write_all(b"Who are you?\n").unwrap();
    // Once there is some of the answer, it is told to end. Its 6000 tokens would take longer than the test may.
    let mut read = 0;
    let told = until("finish cancelled\n", &mut || {
        read += 1;
        if read == 20 {
            signal(&talk, "INT");
        }
    });
    assert!(told.contains("stats: 16 tokens of prompt"), "{told}");
    until(">>> ", nothing);
    // What was said is remembered, and then forgotten.
    input.write_all(b"/clear\n").unwrap();
    until(">>> ", nothing);
    signal(&talk, "INT");
    assert_eq!(talk.wait().unwrap().code(), Some(130));
    let mut errors = String::new();
    talk.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    for says in ["error: /attention none: expected /clear", "error: /nothing: expected /clear"] {
        assert!(errors.lines().any(|line| line.starts_with(says)), "{errors}");
    }
    drop(BufRead::lines(output));
}
