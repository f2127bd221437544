//! What each path answers.

use super::answer::Writing;
use super::app::{App, Place};
use super::error::ApiError;
use super::request::{Asked, Kind};
use super::worker::{Message, Work};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// So many times the bytes of a body that is too long are listened to: a client that writes to a closed connection does
/// not hear why.
const PATIENCE: usize = 8;

type Shared = State<Arc<App>>;

/// All paths.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(app)
}

/// JSON as an answer.
fn json_of(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Counts an answer.
fn counted(app: &App, response: Result<Response, ApiError>) -> Response {
    let response = response.unwrap_or_else(IntoResponse::into_response);
    app.monitor.metrics.answered(response.status().as_u16());
    response
}

async fn nowhere(State(app): Shared, request: Request) -> Response {
    let path = dsa_files::printable(request.uri().path(), 200);
    counted(
        &app,
        Err(ApiError::new(404, format!("the path is {path}, expected one that --help names"))),
    )
}

async fn not_so(State(app): Shared, request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let said = format!("the method of {path} is {method}, expected the other of GET and POST");
    counted(&app, Err(ApiError::new(405, dsa_files::printable(&said, 300))))
}

async fn models(State(app): Shared, headers: HeaderMap) -> Response {
    let model = json!({ "id": app.options.name, "object": "model", "created": app.created, "owned_by": "dsa",
        "max_model_len": app.max_seq });
    let list = json!({ "object": "list", "data": [model] });
    counted(&app, app.admit(&headers).map(|()| json_of(&list)))
}

async fn health(State(app): Shared) -> Response {
    match app.monitor.is_closing() {
        true => ApiError::closing().into_response(),
        false => json_of(&json!({ "status": "ok" })),
    }
}

async fn metrics(State(app): Shared) -> Response {
    let mut response = Response::new(Body::from(app.monitor.metrics.text(app.taken())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn chat(State(app): Shared, request: Request) -> Response {
    let answered = answer(&app, request, Kind::Chat).await;
    counted(&app, answered)
}

async fn text(State(app): Shared, request: Request) -> Response {
    let answered = answer(&app, request, Kind::Text).await;
    counted(&app, answered)
}

async fn answer(app: &Arc<App>, request: Request, kind: Kind) -> Result<Response, ApiError> {
    app.admit(request.headers())?;
    let body = body(app, request).await?;
    let (place, begin) = (app.place()?, Instant::now());
    // Long texts take a while to read.
    let to_read = app.clone();
    let asked = tokio::task::spawn_blocking(move || Asked::read(kind, &body, &to_read));
    let asked = asked.await.map_err(|_| ApiError::new(500, "the request could not be read"))??;
    let Asked { request, reader, stream, include_usage } = asked;
    let (to, mut from) = unbounded_channel();
    let logprobs = request.logprobs.is_some();
    let mut writing = Writing::new(app.clone(), kind, app.number(), reader, logprobs);
    let deadline = begin + app.options.limits.answer;
    app.run(Work { request, deadline, to, place: place.share() })?;
    // What is wrong from the start is said before anything else is.
    let first = from.recv().await;
    if stream && matches!(first, Some(Message::What(_))) {
        return Ok(events(first, from, writing, include_usage, place));
    }
    let mut next = first;
    loop {
        match next {
            Some(Message::What(what)) => {
                if let Some(whole) = writing.whole(what) {
                    return Ok(json_of(&whole));
                }
            }
            other => return Err(failed(other)),
        }
        next = from.recv().await;
    }
}

/// What a message means that is no step.
fn failed(message: Option<Message>) -> ApiError {
    match message {
        Some(Message::Late) => ApiError::new(504, "the answer took too long"),
        Some(Message::Closing) => ApiError::closing(),
        Some(Message::Failed(reason)) => ApiError::new(500, reason),
        Some(Message::What(_)) | None => ApiError::new(500, "the answer broke off"),
    }
}

/// The answer as server-sent events. The request ends once the client has left.
fn events(
    first: Option<Message>,
    from: UnboundedReceiver<Message>,
    mut writing: Writing,
    include_usage: bool,
    place: Place,
) -> Response {
    let rest = UnboundedReceiverStream::new(from);
    let events = tokio_stream::iter(first).chain(rest).map(move |message| {
        let _held = &place;
        let mut text = String::new();
        let mut event = |value: &Value| text.push_str(&format!("data: {value}\n\n"));
        match message {
            Message::What(what) => {
                let (chunks, ended) = writing.chunks(what, include_usage);
                chunks.iter().for_each(&mut event);
                if ended {
                    text.push_str("data: [DONE]\n\n");
                }
            }
            other => event(&failed(Some(other)).json()),
        }
        Ok::<_, Infallible>(text)
    });
    // An empty piece would end a body in chunks.
    let events = events.filter(|piece| piece.as_ref().is_ok_and(|text| !text.is_empty()));
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

/// The body as text, within its bounds.
async fn body(app: &App, request: Request) -> Result<String, ApiError> {
    let limits = app.options.limits;
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // No page of another site can send this kind without asking first.
    if !kind.is_some_and(|kind| kind.trim_start().starts_with("application/json")) {
        let shown = dsa_files::printable(kind.unwrap_or("missing"), 100);
        return Err(ApiError::new(
            415,
            format!("content-type is {shown}, expected application/json"),
        ));
    }
    let mut read = Vec::new();
    let mut length = 0;
    let reading = async {
        let mut pieces = request.into_body().into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            length += piece.len();
            if length <= limits.body {
                read.extend_from_slice(&piece);
            } else if length > PATIENCE * limits.body {
                break;
            }
        }
        Ok::<(), axum::Error>(())
    };
    let done = timeout(limits.sending, reading).await;
    if length > limits.body {
        let most = limits.body;
        return Err(ApiError::new(
            413,
            format!("the body is longer than {most} bytes, which is all that is read"),
        ));
    }
    match done {
        Err(_) => return Err(ApiError::new(408, "the body took too long to come")),
        Ok(Err(error)) => {
            let shown = dsa_files::printable(&error.to_string(), 200);
            return Err(ApiError::new(400, format!("the body broke off: {shown}")));
        }
        Ok(Ok(())) => {}
    }
    String::from_utf8(read).map_err(|_| ApiError::new(400, "the body is no UTF-8"))
}
