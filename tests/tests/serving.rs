//! A server of the made-up model for tests, spoken to by sockets.

use crate::generate::folder;
use crate::support::device;
use dsa_kernels::DType;
use dsa_model::chat::{Chat, Format};
use dsa_model::generate::{Generator, Settings};
use dsa_model::layers::Precision;
use dsa_model::sample::Sampling;
use dsa_model::tokenizer::Tokenizer;
use dsa_model::weights::Checkpoint;
use dsa_model::{Config, Model};
use dsa_serve::{Limits, Options, Served, Stop};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Where a conversation is answered.
pub const CHAT: &str = "/v1/chat/completions";

/// A server on a free port, which ends when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub stop: Stop,
    thread: Option<JoinHandle<()>>,
}

/// The usual options, with a short patience.
pub fn options() -> Options {
    Options {
        name: "tiny".into(),
        sampling: Sampling::default(),
        max_tokens: None,
        allow_special: false,
        queue: 1,
        key: None,
        limits: Limits {
            head: Duration::from_secs(1),
            sending: Duration::from_secs(1),
            ..Limits::default()
        },
    }
}

impl Server {
    /// Serves the made-up model.
    pub fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Stop::new());
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (config, weights) =
                (Config::read(&folder()).unwrap(), Checkpoint::open(&folder()).unwrap());
            let exact = Precision::dequantised(DType::F32);
            let model = Model::new(&device(), &config, weights.root(), exact).unwrap();
            let tokenizer = Arc::new(Tokenizer::read(&folder()).unwrap());
            let chat = Chat::choose(Format::Dsv32, tokenizer.settings(), config.family).unwrap();
            let mut generator = Generator::new(
                &model,
                &tokenizer,
                &config.eos_token_id,
                Settings { max_seq: 2048, ..Settings::default() },
            )
            .unwrap();
            let served = Served { tokenizer: tokenizer.clone(), chat: Arc::new(chat), options };
            dsa_serve::serve(listener, &mut generator, served, &told).unwrap();
        });
        Self { address, stop, thread: Some(thread) }
    }

    /// Sends a request and reads its answer.
    pub fn send(&self, request: &[u8]) -> Answer {
        let mut socket = self.open();
        socket.write_all(request).unwrap();
        Answer::read(socket)
    }

    pub fn open(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        socket
    }

    /// A request with a body of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&post(path, &body.to_string()))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// The bytes of a request with a body.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    let n = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads all until the connection is closed.
    pub fn read(mut socket: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A server that refuses may close while it is still being written to.
        let _ = socket.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Self { status: 0, head: text, body: String::new() };
        };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let chunked = head.contains("transfer-encoding: chunked");
        let body = if chunked { whole(body) } else { body.to_string() };
        Self { status, head: head.to_string(), body }
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The events of a stream, the last of which says that it is the last.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "{self:?}");
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:?}");
        let event =
            |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.into_iter().map(event).collect()
    }
}

/// A body that came in chunks.
fn whole(mut chunks: &str) -> String {
    let mut body = Vec::new();
    while let Some((length, rest)) = chunks.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        body.extend_from_slice(&rest.as_bytes()[..length]);
        chunks = &rest[(length + 2).min(rest.len())..];
    }
    String::from_utf8(body).unwrap()
}

/// `value` with these fields too.
pub fn with(mut value: Value, more: Value) -> Value {
    let entries = more.as_object().unwrap().clone();
    value.as_object_mut().unwrap().extend(entries);
    value
}
