//! Records: get, head, put, delete.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use std::io::{self, Cursor, Read};

use super::aliases::resolve;
use super::auth::{self, Wanted};
use super::body::{self, Incoming};
use super::errors::{ApiError, Result};
use super::negotiate::{decoded, must_decode};
use super::preconditions::{Precondition, if_range, precondition, put_preconditions};
use super::routes::Target;
use super::{App, Call, REQUEST_DEADLINE, keys, range, reply};
use crate::base::clock::Deadline;
use crate::store::{
    Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, PutRequest, RecordMeta, Store,
    StoreError, Upload,
};

/// What HTML records shown in a browser begin with: they share their origin with all others.
const NO_COOKIES: &str = "<script>Object.defineProperty(document,\"cookie\",\
                          {get:()=>\"\",set:()=>{}});</script>";

/// What keeps records that a browser shows from running scripts: they share their origin with all
/// others, and their address may hold a token.
const NO_SCRIPTS: &str = "sandbox; script-src 'none'";

/// What a record without a content type is sent and stored as.
const DEFAULT_TYPE: &str = "application/octet-stream";

/// The encodings that the platform takes.
const ENCODINGS: [&str; 4] = ["gzip", "br", "deflate", "identity"];

/// In what form a record goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Stored,
    Decoded,
    /// Decoded, with [`NO_COOKIES`] in front.
    Html,
    /// As stored, but without a word of the encoding: the client does not take it, and the bytes are
    /// not encoded so anyway.
    Broken,
}

/// How often a range is looked for in a record that is being replaced.
const RANGE_ATTEMPTS: usize = 4;

/// Answers `GET` and `HEAD` of a record.
pub(super) fn get(app: &App, call: &Call, target: &Target, key: &Key) -> Result<Response> {
    for _ in 1..RANGE_ATTEMPTS {
        match get_once(app, call, target, key) {
            // The client asked for no version: ours was replaced between two looks at it.
            Err(error) if error.is_precondition_failed() && call.header("if-match").is_none() => {}
            answer => return answer,
        }
    }
    get_once(app, call, target, key)
}

fn get_once(app: &App, call: &Call, target: &Target, key: &Key) -> Result<Response> {
    let resolved = resolve(app, call, target)?;
    let entry = &resolved.entry;
    auth::sight(call, &resolved, Wanted::Record(key))?;
    if call.header("service-worker") == Some("script") {
        return Err(ApiError::service_worker());
    }
    app.stats.store(&entry.id).read();
    if let Some(profile) = &app.profile {
        profile.read(entry);
    }
    let store = &*entry.store;
    let attachment = call.query.flag("attachment")?;
    let (meta, mut fetched) = first_look(app, call, store, key)?;
    // What is only a part serves nothing else.
    let part_fetched = fetched.take_if(|fetched| fetched.range.is_some());
    let same = GetRequest {
        if_match: meta.etag.clone(),
        ..GetRequest::default()
    };
    let mut form = form(call, &meta, attachment);
    let mut plain = None;
    if form != Form::Stored {
        let stored = match fetched.take() {
            Some(fetched) => fetched,
            None => fetch(store, key, &same)?,
        };
        // The client takes every byte of it.
        plain = decoded(&meta.encoding, stored.body, Some(u64::MAX), &app.decoders)?;
        if plain.is_none() {
            form = Form::Broken;
        }
    }
    let mut headers = describe(app, &meta, form, attachment);
    if app.config.knobs.etags {
        match precondition(call, &headers) {
            Precondition::Holds => {}
            Precondition::NotModified => {
                headers.remove(header::CONTENT_TYPE);
                return Ok(answer(StatusCode::NOT_MODIFIED, headers, Body::empty()));
            }
            Precondition::Fails => return Err(ApiError::precondition_failed()),
        }
    }
    if call.method == Method::HEAD {
        return Ok(answer_head(app, &meta, form, headers));
    }
    if form == Form::Stored
        && app.config.knobs.ranges
        && let Some(size) = meta.stored_size
    {
        let wanted = call.header("range").filter(|_| if_range(call, &headers));
        match range::wanted(wanted, size) {
            range::Wanted::Whole => {}
            range::Wanted::Nothing => return Err(ApiError::range(size)),
            range::Wanted::Part(part) => {
                let request = GetRequest {
                    range: Some(part.clone()),
                    if_match: meta.etag.clone(),
                    ..GetRequest::default()
                };
                let fetched = match part_fetched {
                    Some(fetched) if fetched.range.as_ref() == Some(&part) => fetched,
                    _ => fetch(store, key, &request)?,
                };
                let last = part.end - 1;
                set(
                    &mut headers,
                    header::CONTENT_RANGE,
                    &format!("bytes {}-{last}/{size}", part.start),
                );
                let length = Some(part.end - part.start);
                let body = send(app, fetched.body, length, &mut headers)?;
                return Ok(answer(StatusCode::PARTIAL_CONTENT, headers, body));
            }
        }
    }
    let body: Box<dyn Read + Send> = match (form, plain, fetched) {
        (Form::Html, Some(plain), _) => Box::new(Cursor::new(NO_COOKIES).chain(plain)),
        (_, Some(plain), _) => plain,
        (_, None, Some(fetched)) => fetched.body,
        (_, None, None) => fetch(store, key, &same)?.body,
    };
    let body = send(app, body, length(&meta, form), &mut headers)?;
    Ok(answer(StatusCode::OK, headers, body))
}

/// Returns what is known of a record and, if it was asked for with it, the record or a part of it.
///
/// A request for a part, or under a condition, mostly does not get the whole record: where asking
/// first costs nothing, this does so. Elsewhere one question must do, and its answer decides
/// conditions: between two questions another writer may come.
fn first_look(
    app: &App,
    call: &Call,
    store: &dyn Store,
    key: &Key,
) -> Result<(RecordMeta, Option<Fetched>)> {
    let conditions = [
        "range",
        "if-none-match",
        "if-modified-since",
        "if-match",
        "if-unmodified-since",
    ];
    let near = app.catalog.is_near();
    let probe = near
        && conditions
            .iter()
            .any(|name| call.headers.contains_key(*name));
    if !probe && call.method != Method::HEAD {
        let range = call.header("range").and_then(range::asked);
        let request = GetRequest {
            range: range.filter(|_| !near && app.config.knobs.ranges),
            ..GetRequest::default()
        };
        match store.get(key, &request, deadline()) {
            Ok(GetOutcome::Found(fetched)) => return Ok((fetched.meta.clone(), Some(fetched))),
            Ok(GetOutcome::NotModified) => return Err(ApiError::internal()),
            // It ends before the part begins: how long is it?
            Err(error) if request.range.is_some() && error.kind() == ErrorKind::Protocol => {}
            Err(error) => return Err(missing(key, error)),
        }
    }
    let meta = store.head(key, deadline());
    Ok((meta.map_err(|error| missing(key, error))?, None))
}

/// Answers `PUT` and `POST` of a record.
pub(super) fn put(
    app: &App,
    call: &Call,
    target: &Target,
    key: &Key,
    body: Incoming,
) -> Result<Response> {
    call.caller.user()?;
    let resolved = resolve(app, call, target)?;
    call.may_write(app, &resolved)?;
    if !key.is_valid() {
        return Err(ApiError::invalid_key());
    }
    let content_type = match call.headers.get(header::CONTENT_TYPE) {
        None => DEFAULT_TYPE,
        Some(value) => value.to_str().map_err(|_| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid-content-type-header",
                "The Content-Type header is not valid",
            )
        })?,
    };
    let given = call.headers.get(header::CONTENT_ENCODING);
    let given = given.map(|given| given.to_str().unwrap_or_default());
    // As they are written here, and nothing else: what is stored is what was sent.
    if let Some(unknown) = given.filter(|given| !ENCODINGS.contains(given)) {
        return Err(ApiError::unsupported_encoding(
            unknown,
            is_html(content_type),
        ));
    }
    let encoding = Encoding::from_header(given);
    app.stats.store(&resolved.entry.id).written();
    let (if_match, if_absent) = put_preconditions(call, &*resolved.entry.store, key)?;
    let request = PutRequest {
        content_type: Some(content_type.into()),
        encoding,
        if_match,
        if_absent,
    };
    let length = call
        .header("content-length")
        .and_then(|length| length.parse().ok());
    let most = app.config.limits.record.unwrap_or(u64::MAX);
    if length.is_some_and(|length: u64| length > most) {
        return Err(ApiError::record_too_large());
    }
    let mut body = Bounded { body, left: most };
    let upload = Upload::Stream(&mut body, length);
    // How long the body may take is bounded where it comes in.
    let long = Deadline::after(super::UPLOAD_TIMEOUT + REQUEST_DEADLINE);
    let meta = resolved
        .entry
        .store
        .put(key, &request, upload, long)
        .map_err(|error| match error.kind() {
            ErrorKind::Network | ErrorKind::Protocol => ApiError::aborted(),
            _ => error.into(),
        })?;
    app.written(&resolved.entry);
    let mut response = reply::json(StatusCode::CREATED, &serde_json::json!({}));
    let headers = response.headers_mut();
    set(
        headers,
        header::LOCATION,
        &keys::record_url(&call.base, &resolved.entry, key, keys::Signed::No),
    );
    if let Some(etag) = meta.etag.filter(|_| app.config.knobs.etags) {
        set(headers, header::ETAG, etag.as_str());
    }
    Ok(response)
}

/// A body of at most this many bytes.
struct Bounded {
    body: Incoming,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.body.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                let message = "the record is larger than this server takes";
                return Err(StoreError::new(ErrorKind::TooLarge, message).into());
            }
        }
        Ok(n)
    }
}

/// Answers `DELETE` of a record.
pub(super) fn delete(app: &App, call: &Call, target: &Target, key: &Key) -> Result<Response> {
    call.caller.user()?;
    let resolved = resolve(app, call, target)?;
    call.may_write(app, &resolved)?;
    app.stats.store(&resolved.entry.id).deleted();
    // A local program may have made a record that the API could not make; that can be deleted.
    if !key.is_valid() {
        let found = resolved.entry.store.head(key, deadline());
        found.map_err(|error| missing(key, error))?;
    }
    resolved.entry.store.delete(key, deadline())?;
    app.written(&resolved.entry);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

fn fetch(store: &dyn Store, key: &Key, request: &GetRequest) -> Result<Fetched> {
    match store.get(key, request, deadline()) {
        Ok(GetOutcome::Found(fetched)) => Ok(fetched),
        Ok(GetOutcome::NotModified) => Err(ApiError::internal()),
        Err(error) => Err(missing(key, error)),
    }
}

/// Keys that no record can have are an error of their own.
fn missing(key: &Key, error: StoreError) -> ApiError {
    match error.kind() {
        ErrorKind::NotFound if !key.is_valid() => ApiError::invalid_key(),
        _ => error.into(),
    }
}

fn deadline() -> Deadline {
    Deadline::after(REQUEST_DEADLINE)
}

fn form(call: &Call, meta: &RecordMeta, attachment: bool) -> Form {
    let html = is_html(meta.content_type.as_deref().unwrap_or_default());
    let readable = !matches!(meta.encoding, Encoding::Unknown(_));
    if html && !attachment && readable {
        Form::Html
    } else if must_decode(call.header("accept-encoding"), &meta.encoding) {
        Form::Decoded
    } else {
        Form::Stored
    }
}

fn is_html(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("text/html")
}

/// Returns the headers that describe a record in the form in which it goes out.
fn describe(app: &App, meta: &RecordMeta, form: Form, attachment: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let content_type = meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE);
    set(&mut headers, header::CONTENT_TYPE, content_type);
    if attachment {
        set(&mut headers, header::CONTENT_DISPOSITION, "attachment");
    } else {
        set(&mut headers, header::CONTENT_SECURITY_POLICY, NO_SCRIPTS);
    }
    if let Some(encoding) = meta.encoding.header_value() {
        set(&mut headers, header::VARY, "Accept-Encoding");
        if form == Form::Stored {
            set(&mut headers, header::CONTENT_ENCODING, encoding);
        }
    }
    if app.config.knobs.ranges && form == Form::Stored && meta.accepts_ranges {
        set(&mut headers, header::ACCEPT_RANGES, "bytes");
    }
    if app.config.knobs.etags {
        if let Some(etag) = &meta.etag {
            let form_of = match form {
                Form::Stored => "",
                Form::Decoded => "-decoded",
                Form::Html => "-html",
                Form::Broken => "-bare",
            };
            let opened = etag.as_str().trim_end_matches('"');
            set(&mut headers, header::ETAG, &format!("{opened}{form_of}\""));
        }
        if let Some(date) = &meta.last_modified {
            set(&mut headers, header::LAST_MODIFIED, date);
        }
    }
    headers
}

/// Returns how long the body is in this form, where that is known without decoding it.
fn length(meta: &RecordMeta, form: Form) -> Option<u64> {
    match form {
        Form::Stored | Form::Broken => meta.stored_size,
        Form::Html if meta.encoding.is_identity() => {
            meta.stored_size.map(|size| size + NO_COOKIES.len() as u64)
        }
        Form::Decoded | Form::Html => None,
    }
}

fn send(
    app: &App,
    reader: Box<dyn Read + Send>,
    length: Option<u64>,
    headers: &mut HeaderMap,
) -> Result<Body> {
    let with_length = app.config.knobs.content_length;
    if let Some(length) = length.filter(|_| with_length) {
        set(headers, header::CONTENT_LENGTH, &length.to_string());
    }
    Ok(body::outgoing(reader, length, !with_length)?)
}

fn answer_head(app: &App, meta: &RecordMeta, form: Form, mut headers: HeaderMap) -> Response {
    // As on the platform, the length as stored where the other would have to be counted.
    let length = length(meta, form).or(meta.stored_size);
    if let Some(length) = length.filter(|_| app.config.knobs.content_length) {
        set(&mut headers, header::CONTENT_LENGTH, &length.to_string());
    }
    answer(StatusCode::OK, headers, Body::empty())
}

fn answer(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => {
            headers.insert(name, value);
        }
        // Sidecars can hold anything.
        Err(_) if name == header::CONTENT_TYPE => {
            headers.insert(name, HeaderValue::from_static(DEFAULT_TYPE));
        }
        Err(_) => tracing::debug!(%name, "a header's value cannot be sent"),
    }
}
