//! The interface of OpenAI over HTTP, spoken to by sockets.

use crate::cli_of_generate::{child, signal};
use crate::generate::{folder, made};
use crate::serving::{CHAT, Server, options, post, with};
use dsa_serve::{Limits, Options};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

fn ask(content: &str) -> Value {
    json!({ "model": "tiny", "messages": [{ "role": "user", "content": content }], "max_tokens": 8, "seed": 7 })
}

#[test]
fn an_answer_is_the_same_whole_and_as_a_stream_and_again_by_its_seed() {
    let server = Server::start(options());
    let whole = server.post(CHAT, &ask("Who are you?"));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!((&whole["object"], &whole["model"]), (&"chat.completion".into(), &"tiny".into()));
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]),
        (&16.into(), &8.into())
    );
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let streamed = server.post(CHAT, &with(ask("Who are you?"), options));
    assert!(streamed.head.contains("content-type: text/event-stream"), "{streamed:?}");
    let events = streamed.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(parts.collect::<String>(), text);
    let [.., finish, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &24.into()));
    // The prompt is in the cache by now, but for its last token, and changes nothing.
    assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], 15);
    // Another seed, and none, which is another each time.
    let content =
        |body: Value| server.post(CHAT, &body).json()["choices"][0]["message"]["content"].clone();
    assert_ne!(content(with(ask("Who are you?"), json!({ "seed": 8 }))), *text);
    let drawn: Vec<Value> =
        (0..2).map(|_| content(with(ask("Who are you?"), json!({ "seed": null })))).collect();
    assert_ne!(drawn[0], drawn[1]);
    // Greedy needs none.
    let greedy = json!({ "seed": null, "temperature": 0 });
    assert_eq!(content(with(ask("x"), greedy.clone())), content(with(ask("x"), greedy)));
}

#[test]
fn texts_are_continued_with_their_probabilities_and_stop_where_they_are_told_to() {
    let server = Server::start(options());
    let body = json!({ "prompt": "one two", "max_tokens": 6, "temperature": 0, "logprobs": 2 });
    let answer = server.post("/v1/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&answer["object"], &answer["usage"]["prompt_tokens"]),
        (&"text_completion".into(), &7.into())
    );
    let column = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    assert_eq!(column("tokens").len(), 6);
    for (logprob, top) in column("token_logprobs").iter().zip(column("top_logprobs")) {
        let best =
            top.as_object().unwrap().values().map(|p| p.as_f64().unwrap()).fold(f64::MIN, f64::max);
        // Greedy: the token drawn is the most probable one.
        assert_eq!(logprob.as_f64(), Some(best));
    }
    // The same prompt as ids, and as a list of one text.
    let ids: Vec<u32> = "one two".bytes().map(|byte| u32::from(byte_id(byte))).collect();
    for prompt in [json!(ids), json!(["one two"])] {
        let again =
            server.post("/v1/completions", &with(body.clone(), json!({ "prompt": prompt })));
        assert_eq!(again.json()["choices"], answer["choices"]);
    }
    let text = choice["text"].as_str().unwrap();
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[2..4].iter().collect();
    let stopped =
        server.post("/v1/completions", &with(body.clone(), json!({ "stop": [stop] }))).json();
    let before = &text[..text.find(&stop).unwrap()];
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&before.into(), &"stop".into())
    );
    // Of a chat, each token with the bytes that it stands for.
    let more = json!({ "logprobs": true, "top_logprobs": 1, "temperature": 0 });
    let tokens = server.post(CHAT, &with(ask("x"), more.clone())).json();
    let tokens = tokens["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 8);
    assert!(tokens.iter().all(|token| token["bytes"] == token["top_logprobs"][0]["bytes"]));
    let events = server.post(CHAT, &with(with(ask("x"), more), json!({ "stream": true }))).events();
    let streamed =
        events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(streamed.flatten().cloned().collect::<Vec<_>>(), tokens);
}

/// The id of a byte in the made-up tokenizer.
fn byte_id(byte: u8) -> u16 {
    let tokenizer = &made().1;
    (0..320).find(|id| tokenizer.bytes(u32::from(*id)) == Some(&[byte])).unwrap()
}

#[test]
fn thoughts_are_told_apart_from_the_answer_and_a_control_token_in_a_question_is_text() {
    let server = Server::start(options());
    let thinking = json!({ "chat_template_kwargs": { "thinking": true } });
    let message =
        server.post(CHAT, &with(ask("x"), thinking.clone())).json()["choices"][0]["message"]
            .clone();
    // Made-up weights do not end their thoughts within eight tokens.
    assert!(
        message["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()),
        "{message}"
    );
    let events =
        server.post(CHAT, &with(with(ask("x"), thinking), json!({ "stream": true }))).events();
    let thoughts = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["reasoning_content"].as_str());
    assert_eq!(message["reasoning_content"], thoughts.collect::<String>());
    let tokens = |content: &str| {
        server.post(CHAT, &ask(content)).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens("<｜User｜>") - tokens(""), "<｜User｜>".len() as u64);
}

#[test]
fn what_is_served_and_what_was_done_can_be_asked() {
    let server = Server::start(options());
    let models = server.get("/v1/models").json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&"tiny".into(), &2048.into())
    );
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    server.post(CHAT, &ask("x"));
    server.post(CHAT, &json!({}));
    let metrics = server.get("/metrics").body;
    for line in [
        "dsa_answers_total{status=\"200\"} 2",
        "dsa_answers_total{status=\"400\"} 1",
        "dsa_prompt_tokens_total 5",
        "dsa_new_tokens_total 8",
        "dsa_requests_ended_total 1",
        "dsa_requests_running 0",
        "# TYPE dsa_requests_waiting gauge",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line} is missing in\n{metrics}");
    }
}

#[test]
fn without_the_key_nothing_of_the_model_is_told() {
    let server = Server::start(Options { key: Some("secret".into()), ..options() });
    for header in [
        "",
        "authorization: Bearer secreT\r\n",
        "authorization: Bearer secret2\r\n",
        "authorization: secret\r\n",
    ] {
        let request =
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        let answer = server.send(request.as_bytes());
        assert_eq!(
            (answer.status, &answer.json()["error"]["type"]),
            (401, &"authentication_error".into())
        );
    }
    assert_eq!(server.post(CHAT, &ask("x")).status, 401);
    let right = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret\r\n\r\n";
    assert_eq!(server.send(right.as_bytes()).status, 200);
    assert_eq!(server.get("/health").status, 200);
}

/// A request that takes far longer than a test may.
fn long() -> Value {
    with(ask("x"), json!({ "max_tokens": 2000, "ignore_eos": true, "stream": true }))
}

/// Begins a request, and returns once the first token of its answer is there.
fn begin(server: &Server, body: &Value) -> BufReader<TcpStream> {
    let mut socket = server.open();
    socket.write_all(&post(CHAT, &body.to_string())).unwrap();
    let mut answer = BufReader::new(socket);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(answer.read_line(&mut line).unwrap() > 0);
    }
    answer
}

/// Waits until `gauge` of the metrics is `n`.
fn wait(server: &Server, gauge: &str, n: usize) {
    let line = format!("dsa_requests_{gauge} {n}");
    for _ in 0..600 {
        if server.get("/metrics").body.lines().any(|other| other == line) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{line} never came");
}

#[test]
fn one_runs_one_waits_the_third_is_sent_away_and_who_leaves_makes_room() {
    let server = Server::start(options());
    let running = begin(&server, &long());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post(CHAT, &ask("x")));
        wait(&server, "waiting", 1);
        let third = server.post(CHAT, &ask("x"));
        assert_eq!(
            (third.status, &third.json()["error"]["type"]),
            (429, &"rate_limit_error".into())
        );
        assert!(third.head.contains("retry-after: 1"), "{third:?}");
        // The first client leaves in the middle of its answer.
        drop(running);
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    wait(&server, "left_total", 1);
    wait(&server, "running", 0);
}

#[test]
fn a_client_that_does_not_read_its_answer_holds_up_nobody() {
    let server = Server::start(options());
    let slow = begin(&server, &with(long(), json!({ "max_tokens": 30 })));
    wait(&server, "ended_total", 1);
    wait(&server, "running", 0);
    assert_eq!(server.post(CHAT, &ask("x")).status, 200);
    assert!(slow.lines().map_while(Result::ok).any(|line| line == "data: [DONE]"));
}

#[test]
fn told_to_end_it_finishes_what_runs_and_refuses_what_waits_and_what_comes() {
    let server = Server::start(options());
    let running = begin(&server, &with(long(), json!({ "max_tokens": 40 })));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post(CHAT, &ask("x")));
        wait(&server, "waiting", 1);
        server.stop.stop();
        let rest: Vec<String> = running.lines().map_while(Result::ok).collect();
        assert!(rest.iter().any(|line| line == "data: [DONE]"), "{rest:?}");
        assert_eq!(waiting.join().unwrap().status, 503);
    });
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn an_answer_that_takes_too_long_is_given_up() {
    let limits = Limits { answer: Duration::from_millis(1), ..options().limits };
    let server = Server::start(Options { limits, ..options() });
    assert_eq!(server.post(CHAT, &ask("x")).status, 504);
    wait(&server, "running", 0);
}

/// A server as a program of its own, and its address.
fn program(
    more: &[&str],
) -> (std::process::Child, BufReader<std::process::ChildStdout>, SocketAddr) {
    let model = folder();
    let args = ["serve", "--model", model.to_str().unwrap(), "--port", "0", "--dtype", "f32"];
    let mut program = child(&[&args, more].concat());
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(" at http://") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0);
    }
    let address = line.split_once("http://").unwrap().1.trim().strip_suffix("/v1").unwrap();
    let address = address.parse().unwrap();
    (program, output, address)
}

#[test]
fn a_program_that_is_terminated_finishes_its_answer_and_exits_in_peace() {
    let (mut program, _output, address) = program(&["--served-model-name", "tiny"]);
    let server = |body: &Value| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(&post(CHAT, &body.to_string())).unwrap();
        socket
    };
    let mut running = BufReader::new(server(&with(long(), json!({ "max_tokens": 30 }))));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(running.read_line(&mut line).unwrap() > 0);
    }
    signal(&program, "TERM");
    let rest: Vec<String> = running.lines().map_while(Result::ok).collect();
    assert!(rest.iter().any(|line| line == "data: [DONE]"), "{rest:?}");
    assert_eq!(program.wait().unwrap().code(), Some(0));
}

/// What the client of OpenAI, a package of Python, makes of it.
const CLIENT: &str = r#"
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Who are you?"}]
ask = dict(model=model, messages=messages, max_tokens=8, seed=3)
whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 8
assert len(whole.choices[0].logprobs.content) == 8
parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
assert text == whole.choices[0].message.content, (text, whole)
assert parts[-1].usage.total_tokens == whole.usage.total_tokens
thought = client.chat.completions.create(**ask, extra_body={"chat_template_kwargs": {"thinking": True}})
assert thought.choices[0].message.reasoning_content
text = client.completions.create(model=model, prompt="one", max_tokens=3, temperature=0)
assert text.usage.completion_tokens == 3
for wrong, field in [(dict(n=2), "n"), (dict(tool_choice="required"), "tool_choice"), (dict(frequency_penalty=1.0), "frequency_penalty")]:
    try:
        client.chat.completions.create(**ask, **wrong)
        raise SystemExit(f"{wrong} was taken")
    except openai.BadRequestError as error:
        assert error.param == field, error
try:
    client.chat.completions.create(**{**ask, "model": "other"})
    raise SystemExit("another model was taken")
except openai.NotFoundError:
    pass
print("the client is content")
"#;

#[test]
fn the_client_of_openai_is_content() {
    // DSA_PYTHON names a Python that has the package.
    let python = std::env::var("DSA_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import openai"]).output();
    if !has.is_ok_and(|done| done.status.success()) {
        eprintln!("not tried: {python} has no package openai (DSA_PYTHON names one that has)");
        return;
    }
    let server = Server::start(options());
    let at = format!("http://{}/v1", server.address);
    let done = Command::new(&python).args(["-c", CLIENT, &at]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.contains("the client is content"), "{}", String::from_utf8_lossy(&done.stderr));
}
