//! Requests that are broken: each is refused with its reason, and the next one is answered.

use crate::serving::{Answer, CHAT, Server, options, post, with};
use serde_json::{Value, json};
use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

fn ask() -> Value {
    json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 })
}

/// The server still answers.
#[track_caller]
fn lives(server: &Server) {
    assert_eq!(server.post(CHAT, &ask()).status, 200);
}

#[test]
fn a_body_that_is_no_request_is_refused_by_what_is_wrong_with_it() {
    let server = Server::start(options());
    let deep = format!("{{\"messages\": {}", "[".repeat(100_000));
    for (body, says) in [
        ("", "EOF"),
        ("{\"messages\": [", "EOF"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\0b\"}]}", "control character"),
        ("{\"messages\": [], \"messages\": []}", "is there twice"),
        ("[]", "the body is [], expected an object"),
        ("{}", "messages is missing"),
        ("{\"messages\": []}", "messages is [], expected at least one message"),
        (&deep, "recursion limit"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]} x", "trailing characters"),
    ] {
        let answer = server.send(&post(CHAT, body));
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["type"]),
            (400, &"invalid_request_error".into()),
            "{body}"
        );
        assert!(error["message"].as_str().unwrap().contains(says), "{body:.80}: {error}");
    }
    lives(&server);
}

#[test]
fn a_field_that_would_change_the_answer_is_understood_or_refused_by_its_name() {
    let server = Server::start(options());
    let user = |content: Value| json!([{ "role": "user", "content": content }]);
    for (field, value, param) in [
        ("n", json!(2), "n"),
        ("messages", json!([{ "role": "robot", "content": "x" }]), "messages[0].role"),
        (
            "messages",
            user(json!([{ "type": "image_url", "image_url": { "url": "x" } }])),
            "messages[0].content[0]",
        ),
        ("messages", user(json!(7)), "messages[0].content"),
        ("messages", json!("x"), "messages"),
        ("temperature", json!(-1), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(1.5), "top_p"),
        ("max_tokens", json!(-5), "max_tokens"),
        ("max_tokens", json!(0), "max_tokens"),
        ("stop", json!([""]), "stop"),
        ("stop", json!(vec!["x"; 17]), "stop"),
        ("stream", json!("yes"), "stream"),
        ("stream_options", json!({ "include_usage": true }), "stream_options"),
        ("response_format", json!({ "type": "json_object" }), "response_format"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tools", json!([{ "type": "function", "function": {} }]), "tools[0].function.name"),
        ("chat_template_kwargs", json!({ "thinking": "yes" }), "thinking"),
        ("chat_template_kwargs", json!({ "colour": "red" }), "chat_template_kwargs.colour"),
        ("frequency_penalty", json!(0.5), "frequency_penalty"),
        ("logit_bias", json!({ "5": 1 }), "logit_bias"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("guided_json", json!({}), "guided_json"),
        ("prompt", json!("x"), "prompt"),
    ] {
        let answer = server.post(CHAT, &with(ask(), json!({ field: value })));
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &param.into()),
            "{field} {value}: {error}"
        );
    }
    for (prompt, status) in
        [(json!(["a", "b"]), 400), (json!([9999]), 400), (json!(""), 400), (json!(7), 400)]
    {
        let answer = server.post("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 1 }));
        assert_eq!(answer.status, status, "{prompt}");
    }
    // What is done anyway may be said, and what decides nothing too.
    let nothing = json!({ "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "me",
        "response_format": { "type": "text" }, "tool_choice": "auto", "stop": null, "store": false });
    assert_eq!(server.post(CHAT, &with(ask(), nothing)).status, 200);
    // Another model, a prompt that is longer than the context.
    assert_eq!(server.post(CHAT, &with(ask(), json!({ "model": "gpt-9" }))).status, 404);
    let long =
        server.post(CHAT, &with(ask(), json!({ "messages": user(json!("x".repeat(5000))) })));
    assert!(long.status == 400 && long.body.contains("of 2048 tokens of context"), "{long:?}");
    lives(&server);
}

#[test]
fn a_client_that_sends_too_much_too_slowly_or_something_else_is_bounded() {
    let server = Server::start(options());
    // A million messages are more than is read.
    let message = "{\"role\": \"user\", \"content\": \"x\"},";
    let million = format!("{{\"messages\": [{}]}}", message.repeat(1_000_000));
    let begin = Instant::now();
    assert_eq!(server.send(&post(CHAT, &million)).status, 413);
    // As many as are read: each is a part of a prompt that is too long.
    let many = format!("{{\"messages\": [{}]}}", message.repeat(200_000).trim_end_matches(','));
    assert_eq!(server.send(&post(CHAT, &many)).status, 400);
    assert!(begin.elapsed() < Duration::from_secs(60));
    // In chunks, where no length is said before.
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let mut socket = server.open();
    socket.write_all(chunked.as_bytes()).unwrap();
    let piece = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    (0..9).for_each(|_| socket.write_all(piece.as_bytes()).unwrap());
    socket.write_all(b"0\r\n\r\n").unwrap();
    let answer = Answer::read(socket);
    assert_eq!(answer.status, 413, "{answer:?}");
    // A body that does not come, a head that does not end, a length that is too great or too small.
    let head = |length: usize| {
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )
    };
    let mut slow = server.open();
    slow.write_all(head(100).as_bytes()).unwrap();
    slow.write_all(b"{").unwrap();
    assert_eq!(Answer::read(slow).status, 408);
    let mut silent = server.open();
    silent.write_all(b"POST /v1/chat").unwrap();
    let begin = Instant::now();
    assert!([0, 408].contains(&Answer::read(silent).status));
    assert!(begin.elapsed() < Duration::from_secs(30));
    // Two requests over one connection, and then none: it is closed.
    let mut idle = server.open();
    for _ in 0..2 {
        idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }
    let begin = Instant::now();
    let answer = Answer::read(idle);
    assert_eq!((answer.status, answer.body.matches("200 OK").count()), (200, 1), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    let body = ask().to_string();
    let mut short = server.open();
    short.write_all(format!("{}{body}", head(body.len() + 10)).as_bytes()).unwrap();
    short.shutdown(Shutdown::Write).unwrap();
    assert!([0, 400].contains(&Answer::read(short).status));
    assert_eq!(server.send(format!("{}{body}", head(body.len() - 5)).as_bytes()).status, 400);
    // Bytes that are no text, no HTTP, another kind of body, a head that is too long, another path and another method.
    let mut bytes = head(4).into_bytes();
    bytes.extend([b'"', 0xff, 0xfe, b'"']);
    assert_eq!(server.send(&bytes).status, 400);
    assert!(
        [0, 400]
            .contains(&server.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").status)
    );
    let form = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
    );
    assert_eq!(server.send(form.as_bytes()).status, 415);
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n", "x".repeat(200_000));
    assert!([0, 431].contains(&server.send(huge.as_bytes()).status));
    assert_eq!(server.get("/v2/models").status, 404);
    assert_eq!(server.get(CHAT).status, 405);
    lives(&server);
}
