//! What all requests share.

use super::error::ApiError;
use super::metrics::Metrics;
use super::worker::Work;
use super::{Options, Served};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use dsa_model::chat::{Chat, Format};
use dsa_model::config::Family;
use dsa_model::tokenizer::Tokenizer;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What the threads of HTTP and of the generator both see.
#[derive(Default)]
pub(crate) struct Monitor {
    pub metrics: Metrics,
    /// Whether it was told to end.
    pub closing: AtomicBool,
}

impl Monitor {
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

/// A place among the requests that run and wait. It is free again as soon as one of those who share it drops it: the
/// generator when it is done, or the client's side when the client has left.
pub(crate) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// See the module.
pub(crate) struct App {
    pub tokenizer: Arc<Tokenizer>,
    pub chat: Arc<Chat>,
    /// How a text to be continued becomes a prompt.
    pub raw: Chat,
    pub options: Options,
    /// Most tokens of a prompt and its answer.
    pub max_seq: usize,
    pub monitor: Arc<Monitor>,
    /// When it began, in seconds since 1970.
    pub created: u64,
    /// One for each request that runs or waits.
    places: Arc<Semaphore>,
    work: mpsc::UnboundedSender<Work>,
    numbers: AtomicU64,
}

impl App {
    pub fn new(
        Served { tokenizer, chat, options }: Served,
        max_seq: usize,
        work: mpsc::UnboundedSender<Work>,
        monitor: Arc<Monitor>,
    ) -> Self {
        // The raw way needs neither template nor family.
        let raw = Chat::choose(Format::Raw, tokenizer.settings(), Family::DeepseekV32);
        Self {
            raw: raw.unwrap_or(Chat::Raw(None)),
            tokenizer,
            chat,
            max_seq,
            monitor,
            created: now(),
            places: Arc::new(Semaphore::new(1 + options.queue)),
            work,
            numbers: AtomicU64::new(0),
            options,
        }
    }

    /// Refuses who does not show the key.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.options.key else { return Ok(()) };
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        // As long for a wrong key as for one that is nearly right.
        let off = shown.bytes().zip(key.bytes()).fold(0, |off, (a, b)| off | (a ^ b));
        if shown.len() == key.len() && off == 0 {
            return Ok(());
        }
        Err(ApiError::new(
            401,
            "no key or a wrong one, expected Authorization: Bearer and the server's key",
        ))
    }

    /// A place among those that run and wait.
    pub fn place(&self) -> Result<Place, ApiError> {
        if self.monitor.is_closing() {
            return Err(ApiError::closing());
        }
        let permit = self.places.clone().try_acquire_owned().map_err(|_| {
            let queue = self.options.queue;
            ApiError::new(429, format!("one request runs and {queue} wait, which is all that may"))
        })?;
        Ok(Place(Arc::new(Mutex::new(Some(permit)))))
    }

    /// Requests that run or wait.
    pub fn taken(&self) -> usize {
        (1 + self.options.queue).saturating_sub(self.places.available_permits())
    }

    /// The number of the next request, from 1.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Hands a request to the generator.
    pub fn run(&self, work: Work) -> Result<(), ApiError> {
        self.work.send(work).map_err(|_| ApiError::closing())
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
