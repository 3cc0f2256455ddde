//! The API's errors: status, type and message as on the platform.

use std::error::Error;
use std::io;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::reply;
use crate::store::codec::is_no_place;
use crate::store::{ErrorKind, StoreError};

/// Seconds after which a storage that could not do something is asked again.
const RETRY_AFTER: u32 = 2;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The methods that would have been right, for 405.
    allow: Option<String>,
    /// The whole size of the record, for 416.
    size: Option<u64>,
    /// Seconds after which it may be tried again.
    retry_after: Option<u32>,
}

pub(super) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            allow: None,
            size: None,
            retry_after: None,
        }
    }

    pub(super) fn record_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "record-not-found",
            "Record was not found",
        )
    }

    pub(super) fn store_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "record-not-found",
            "Key-value Store was not found",
        )
    }

    pub(super) fn run_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "record-not-found",
            "Actor run was not found",
        )
    }

    pub(super) fn actor_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "record-or-token-not-found",
            "Actor was not found or access denied",
        )
    }

    pub(super) fn user_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "record-not-found",
            "User was not found",
        )
    }

    pub(super) fn page_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "page-not-found",
            "We have bad news: there is no API endpoint at this URL.",
        )
    }

    pub(super) fn no_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "token-not-provided",
            "Authentication token was not provided",
        )
    }

    pub(super) fn bad_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "user-or-token-not-found",
            "User was not found or authentication token is not valid",
        )
    }

    pub(super) fn no_permission() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "insufficient-permissions",
            "Insufficient permissions for the key-value store. Make sure you're passing a \
             correct API token and that it has the required permissions.",
        )
    }

    /// A page of another site may have had its browser ask, under a name of its own.
    pub(super) fn foreign_host() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "insufficient-permissions",
            "This server answers requests without a token only under this machine's own names, \
             such as localhost, and under that of --public-url",
        )
    }

    pub(super) fn service_worker() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "service-worker-registration-not-allowed",
            "Service workers cannot be registered from records",
        )
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", message)
    }

    pub(super) fn no_object() -> Self {
        Self::invalid_request("The body is not a JSON object")
    }

    pub(super) fn invalid_key() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-record-key",
            "Record key contains invalid character",
        )
    }

    pub(super) fn invalid_collection(name: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-collection",
            format!("The store has no schema with a collection \"{name}\""),
        )
    }

    pub(super) fn name_taken(name: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "name-not-unique",
            format!("Key-value store with name \"{name}\" already exists"),
        )
    }

    pub(super) fn unsupported_encoding(value: &str, html: bool) -> Self {
        let (status, kind) = if html {
            (StatusCode::FORBIDDEN, "content-encoding-forbidden-for-html")
        } else {
            (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-content-encoding",
            )
        };
        let message = format!("Content-Encoding \"{value}\" is not supported.");
        Self::new(status, kind, message)
    }

    pub(super) fn aborted() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "request-aborted-prematurely",
            "The request was aborted before its whole body had arrived",
        )
    }

    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request-too-large",
            "The body of the request is too large",
        )
    }

    pub(super) fn record_too_large() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "record-too-large",
            "The record is larger than this server takes",
        )
    }

    pub(super) fn busy() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limit-exceeded",
            "The server makes as many archives as it can at once; try again later",
        )
    }

    /// Says that no more records can be decoded at once.
    pub(super) fn decoding() -> Self {
        Self {
            retry_after: Some(RETRY_AFTER),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service-unavailable",
                "The server decodes as many records as it can at once; try again later, or accept \
                 the encoding in which the record is stored",
            )
        }
    }

    pub(super) fn head_too_large() -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "request-too-large",
            "The head of the request is too large",
        )
    }

    pub(super) fn precondition_failed() -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition-failed",
            "The record is no longer the version that the request is about",
        )
    }

    /// Returns whether this is [`ApiError::precondition_failed`].
    pub(super) fn is_precondition_failed(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED
    }

    pub(super) fn range(size: u64) -> Self {
        Self {
            size: Some(size),
            ..Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                "The record ends before the range begins",
            )
        }
    }

    pub(super) fn rate_limit(limit: u32) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limit-exceeded",
            format!("You have exceeded the rate limit of {limit} requests per second"),
        )
    }

    pub(super) fn invalid_schema(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "store-schema-invalid", why)
    }

    /// Returns the error that a fault rule asks for, of the type that clients expect with it.
    pub(super) fn injected(status: StatusCode) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "user-or-token-not-found",
            StatusCode::FORBIDDEN => "insufficient-permissions",
            StatusCode::NOT_FOUND => "record-not-found",
            StatusCode::REQUEST_TIMEOUT => "operation-timed-out",
            StatusCode::PAYLOAD_TOO_LARGE => "request-too-large",
            StatusCode::TOO_MANY_REQUESTS => "rate-limit-exceeded",
            status if status.is_client_error() => "invalid-request",
            StatusCode::SERVICE_UNAVAILABLE => "query-timeout",
            _ => "internal-server-error",
        };
        Self::new(
            status,
            kind,
            "This request was made to fail by a --fault rule",
        )
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal-server-error",
            "The server had an internal error",
        )
    }

    /// Returns the error for what the storage behind the server refuses or cannot do, which is no
    /// fault of the client.
    fn of_storage(error: &StoreError) -> Self {
        let mut why = String::new();
        let mut cause = error.source();
        while let Some(inner) = cause {
            why = format!("{why}: {inner}");
            cause = inner.source();
        }
        tracing::warn!(%error, why, hint = error.hint(), "the storage of this server failed");
        Self {
            retry_after: Some(RETRY_AFTER),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service-unavailable",
                format!("The storage of this server failed: {error}"),
            )
        }
    }

    pub(super) fn method(allowed: &[Method]) -> Self {
        let mut names = vec!["OPTIONS"];
        names.extend(allowed.iter().map(Method::as_str));
        let names = names.join(",");
        Self {
            allow: Some(names.replace(',', ", ")),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                format!(
                    "This API end-point can only be accessed using the following HTTP methods: {names}"
                ),
            )
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            // What was asked of another machine, and refused or not done there.
            ErrorKind::Denied | ErrorKind::Server if error.status().is_some() => {
                Self::of_storage(&error)
            }
            ErrorKind::NotFound => Self::record_not_found(),
            ErrorKind::StoreNotFound => Self::store_not_found(),
            ErrorKind::Denied | ErrorKind::SignatureExpired | ErrorKind::Unsupported => {
                tracing::warn!(%error, "the store refused");
                Self::no_permission()
            }
            ErrorKind::InvalidKey => Self::invalid_key(),
            ErrorKind::TooLarge => Self::record_too_large(),
            ErrorKind::Quota => Self::new(
                StatusCode::PAYMENT_REQUIRED,
                "not-enough-usage-to-run-paid-actor",
                "The account is out of quota",
            ),
            ErrorKind::Changed => Self::precondition_failed(),
            ErrorKind::RateLimited => Self::rate_limit(0),
            ErrorKind::Timeout if is_no_place(&error) => Self::decoding(),
            ErrorKind::Timeout => {
                tracing::warn!(%error, "the store took too long");
                Self {
                    retry_after: Some(RETRY_AFTER),
                    ..Self::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "query-timeout",
                        format!("The store took too long: {error}"),
                    )
                }
            }
            ErrorKind::Network
            | ErrorKind::Server
            | ErrorKind::Protocol
            | ErrorKind::Corrupt
            | ErrorKind::Disk => {
                tracing::error!(%error, "the store failed");
                Self::internal()
            }
        }
    }
}

impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> Self {
        StoreError::from_io(error, ErrorKind::Disk).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "error": { "type": self.kind, "message": self.message }
        });
        let mut response = reply::json(self.status, &body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow.as_deref().and_then(|allow| allow.parse().ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if let Some(size) = self.size
            && let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}"))
        {
            headers.insert(header::CONTENT_RANGE, value);
        }
        response
    }
}
