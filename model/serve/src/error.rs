//! What a client is told of a request that is not answered.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use dsa_model::Error;
use dsa_model::chat::ChatError;
use serde_json::{Value, json};

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    /// The field to blame.
    param: Option<String>,
}

/// Seconds after which to come again.
const RETRY_SECONDS: &str = "1";

impl ApiError {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, message: message.into(), param: None }
    }

    /// A field that is not as it should be; `value` is cut when long.
    pub fn field(name: &str, value: impl ToString, expected: &str) -> Self {
        let error = Error::config(name, value, expected);
        Self::of_request(&error)
    }

    /// An error that the request is to blame for.
    pub fn of_request(error: &Error) -> Self {
        let (message, param) = match error {
            // Without the name of a file, of which there is none.
            Error::Config { field, value, expected, .. } => {
                (format!("{field} is {value}, expected {expected}"), Some(field.clone()))
            }
            Error::Argument { name, .. } => (error.to_string(), Some(name.to_string())),
            Error::Chat(ChatError::Message { at, .. }) => (error.to_string(), Some(at.clone())),
            other => (other.to_string(), None),
        };
        Self { param, ..Self::new(400, message) }
    }

    /// It is about to end.
    pub fn closing() -> Self {
        Self::new(503, "the server is about to end")
    }

    /// As JSON, which OpenAI's clients read.
    pub fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.status.as_u16() } })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::of_request(&error)
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        Self::of_request(&error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status.as_u16(), 429 | 503) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        }
        response
    }
}
