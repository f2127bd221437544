//! The interface of OpenAI over HTTP, on a [`Generator`].
//!
//! ```text
//! let listener = TcpListener::bind("127.0.0.1:8000")?;
//! serve(listener, &mut generator, Served { tokenizer, chat, options }, &Stop::on_signals())?;
//! ```
//!
//! | path | what |
//! |---|---|
//! | `POST /v1/chat/completions` | an answer to a conversation, whole or as a stream of events |
//! | `POST /v1/completions` | the continuation of a text |
//! | `GET /v1/models` | the one model |
//! | `GET /health` | 200 while requests are taken, 503 once it is told to end |
//! | `GET /metrics` | counters in Prometheus' text form |
//!
//! One request runs at a time, on the thread that called [`serve`]; the others wait in a queue of bounded length, and who finds
//! that full is told to come again. HTTP has a thread of its own, so that a client who leaves is noticed within a token.
//! A field of a request that would change the answer and is not understood is refused by its name.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod connections;
mod error;
mod fields;
mod metrics;
mod request;
mod routes;
mod worker;

use app::{App, Monitor};
use dsa_model::chat::Chat;
use dsa_model::generate::Generator;
use dsa_model::sample::Sampling;
use dsa_model::tokenizer::Tokenizer;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[error("the server: {0}")]
pub struct ServeError(#[from] std::io::Error);

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model's name in requests and answers.
    pub name: String,
    /// How tokens are drawn where a request does not say. A request without a seed has the noise of its own number.
    pub sampling: Sampling,
    /// Most tokens of an answer, whatever a request asks for; `None`: what the context has room for.
    pub max_tokens: Option<usize>,
    /// What messages spell as control tokens are such.
    pub allow_special: bool,
    /// Requests that wait beside the one that runs.
    pub queue: usize,
    /// What a client has to show as `Authorization: Bearer …`; `None`: nothing.
    pub key: Option<String>,
    /// What bounds a client.
    pub limits: Limits,
}

/// What bounds a client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Connections side by side; more wait to be accepted.
    pub connections: usize,
    /// For the head of a request, and between two requests.
    pub head: Duration,
    /// For the body of a request.
    pub sending: Duration,
    /// For an answer, its waiting included.
    pub answer: Duration,
}

impl Default for Limits {
    /// 8 MB, 128 connections, 10 and 30 seconds, 10 minutes.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            body: 8 << 20,
            connections: 128,
            head: seconds(10),
            sending: seconds(30),
            answer: seconds(600),
        }
    }
}

/// What is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// The generator's.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations become prompts.
    pub chat: Arc<Chat>,
    /// How it is served.
    pub options: Options,
}

/// Tells a server to end: it takes no more connections, finishes the request that runs, and refuses those that wait.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Sender<bool>,
    signals: bool,
}

impl Stop {
    /// One that is told by [`Stop::stop`] alone.
    pub fn new() -> Self {
        Self { told: watch::Sender::new(false), signals: false }
    }

    /// One that SIGTERM and SIGINT tell too; a second one ends the program at once.
    pub fn on_signals() -> Self {
        Self { signals: true, ..Self::new() }
    }

    /// Tells the server.
    pub fn stop(&self) {
        self.told.send_replace(true);
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves until it is told to stop, running requests on this thread.
///
/// # Errors
/// If the listener, the signals or the thread of HTTP cannot be had. What goes wrong with a request is told its client.
pub fn serve(
    listener: TcpListener,
    generator: &mut Generator,
    served: Served,
    stop: &Stop,
) -> Result<(), ServeError> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let monitor = Arc::new(Monitor::default());
    let limits = served.options.limits;
    let app = Arc::new(App::new(served, generator.settings().max_seq, sender, monitor.clone()));
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = stop.clone();
    let for_http = monitor.clone();
    let http = std::thread::Builder::new().name("http".into()).spawn(move || {
        let done = runtime.block_on(connections::run(
            listener,
            routes::router(app),
            limits,
            stop,
            for_http,
        ));
        // Nobody waits for a client that does not go.
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    })?;
    worker::work(generator, receiver, &monitor);
    match http.join() {
        Ok(done) => Ok(done?),
        Err(_) => Err(std::io::Error::other("its HTTP thread panicked").into()),
    }
}
