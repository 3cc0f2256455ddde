//! The platform's answers, as its traffic was recorded: `kvfs serve --platform`.
//!
//! The server's own answers are kinder than the platform's: records have validators and ranges. With
//! this profile they have none, and all else is as the platform answers: JSON indented and from 1 kB
//! on compressed, weak entity tags on objects and pages, limits named on each answer, `modifiedAt`
//! that follows writes some time later. Unknown habits of the platform can be set either way.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::Value;

use super::StoreEntry;
use super::errors::{ApiError, Result};
use super::routes::Route;
use crate::base::units::parse_duration;

mod history;
mod json;
mod limits;

use history::Histories;
use limits::Windows;

/// Requests a second that the platform allows of records and pages of a store, and of the rest.
const LIMITS: (u32, u32) = (200, 60);
/// The tag of `{}`, which is what the answer to a put is.
const EMPTY_OBJECT: &str = "W/\"2-vyGp6PvFo4RvsFtPoIWeCReyIC8\"";
/// What a request for an address that is none is answered.
const NO_ENDPOINT: &str = " Did you specify it correctly?";

/// How the platform answers, where that can differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// How much later than a write of a record `modifiedAt` shows it.
    pub lag: Duration,
    /// How `modifiedAt` goes.
    pub clock: StoreClockKind,
    /// How long before the server began stores were made and last changed, at least.
    pub rested: Duration,
    /// Whether objects and pages are answered 304.
    pub not_modified: bool,
    /// Whether the limits are enforced.
    pub limits: bool,
}

/// What `modifiedAt` of a store follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreClockKind {
    /// Writes of records.
    #[default]
    Writes,
    /// Nothing.
    Nothing,
    /// Writes and reads.
    Reads,
    /// With each write it goes back by an hour.
    Back,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            lag: Duration::from_secs(7),
            clock: StoreClockKind::default(),
            rested: Duration::ZERO,
            not_modified: true,
            limits: false,
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `lag=TIME,clock=KIND,rested=TIME,304=yes|no,limits=yes|no`, each of which may be missing.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut platform = Self::default();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let time = || parse_duration(value).map_err(|error| format!("{name}: {error}"));
            let flag = || match value {
                "yes" => Ok(true),
                "no" => Ok(false),
                _ => Err(format!("{name}: write yes or no, not '{value}'")),
            };
            match name {
                "lag" => platform.lag = time()?,
                "rested" => platform.rested = time()?,
                "304" => platform.not_modified = flag()?,
                "limits" => platform.limits = flag()?,
                "clock" => {
                    platform.clock = match value {
                        "writes" => StoreClockKind::Writes,
                        "nothing" => StoreClockKind::Nothing,
                        "reads" => StoreClockKind::Reads,
                        "back" => StoreClockKind::Back,
                        _ => {
                            return Err(format!(
                                "clock: write writes, nothing, reads or back, not '{value}'"
                            ));
                        }
                    }
                }
                _ => {
                    return Err(format!(
                        "'{name}' is unknown: write lag=TIME, clock=writes, rested=TIME, 304=yes, limits=yes"
                    ));
                }
            }
        }
        Ok(platform)
    }
}

/// A server's answers under the profile.
#[derive(Debug)]
pub(super) struct Profile {
    platform: Platform,
    histories: Histories,
    windows: Windows,
}

/// What a request said that its answer depends on.
#[derive(Debug)]
pub(super) struct Asked {
    method: Method,
    kind: Kind,
    if_none_match: Option<HeaderValue>,
    takes_gzip: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Record,
    Page,
    /// Store objects, lists of them, accounts, runs.
    Object,
    /// No address of the API.
    Nothing,
}

impl Profile {
    pub(super) fn new(platform: Platform) -> Self {
        Self {
            histories: Histories::new(platform.lag, platform.clock, platform.rested),
            windows: Windows::default(),
            platform,
        }
    }

    /// Takes from a request what the platform does not look at.
    pub(super) fn ask(
        &self,
        method: &Method,
        route: &Result<Route>,
        headers: &mut HeaderMap,
    ) -> Asked {
        let kind = match route {
            Ok(Route::Record(..)) => Kind::Record,
            Ok(Route::Keys(_)) => Kind::Page,
            Ok(_) => Kind::Object,
            Err(_) => Kind::Nothing,
        };
        let asked = Asked {
            method: method.clone(),
            kind,
            if_none_match: headers.get(header::IF_NONE_MATCH).cloned(),
            takes_gzip: headers
                .get_all(header::ACCEPT_ENCODING)
                .iter()
                .any(|value| value.to_str().is_ok_and(|value| value.contains("gzip"))),
        };
        for ignored in [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
            header::IF_UNMODIFIED_SINCE,
            header::IF_RANGE,
            header::RANGE,
        ] {
            headers.remove(ignored);
        }
        asked
    }

    /// Refuses a request beyond the limit, where limits are enforced.
    ///
    /// # Errors
    /// 429.
    pub(super) fn admit(&self, asked: &Asked, route: &Result<Route>) -> Result<()> {
        let (Ok(route), Some(limit)) = (route, asked.kind.limit()) else {
            return Ok(());
        };
        let Some(target) = route.target().filter(|_| self.platform.limits) else {
            return Ok(());
        };
        let class = format!("{:?} {target:?}", asked.kind);
        match self.windows.admit(&class, limit) {
            true => Ok(()),
            false => Err(ApiError::rate_limit(limit)),
        }
    }

    /// Makes an answer the platform's.
    pub(super) async fn answer(&self, asked: &Asked, response: Response) -> Response {
        let (mut parts, mut body) = response.into_parts();
        let is_record = asked.kind == Kind::Record
            && parts.status == StatusCode::OK
            && (asked.method == Method::GET || asked.method == Method::HEAD);
        let headers = &mut parts.headers;
        for unknown in [
            header::ETAG,
            header::LAST_MODIFIED,
            header::ACCEPT_RANGES,
            header::LOCATION,
            header::VARY,
            header::ALLOW,
        ] {
            headers.remove(unknown);
        }
        if is_record {
            set(headers, "content-security-policy", "script-src 'none'");
        } else if parts.status == StatusCode::NO_CONTENT && asked.kind == Kind::Record {
            set(headers, "etag", EMPTY_OBJECT);
        } else if is_json(headers) {
            // What the server makes itself is in memory, and short.
            let Ok(text) = body.collect().await else {
                parts.status = StatusCode::INTERNAL_SERVER_ERROR;
                return Response::from_parts(parts, Body::empty());
            };
            let text = json::presented(&text.to_bytes(), asked.kind == Kind::Nothing);
            let tag = json::tag(&text);
            set(headers, "etag", &tag);
            let is_known = asked
                .if_none_match
                .as_ref()
                .is_some_and(|known| *known == tag);
            if parts.status == StatusCode::OK
                && asked.method == Method::GET
                && is_known
                && self.platform.not_modified
            {
                parts.status = StatusCode::NOT_MODIFIED;
                headers.remove(header::CONTENT_TYPE);
                headers.remove(header::CONTENT_LENGTH);
                body = Body::empty();
            } else {
                body = json::body(text, asked.takes_gzip, headers);
            }
        }
        for (name, value) in [
            ("cache-control", "no-cache, no-store, must-revalidate"),
            ("pragma", "no-cache"),
            ("expires", "0"),
            ("referrer-policy", "no-referrer"),
            ("x-robots-tag", "none"),
        ] {
            set(headers, name, value);
        }
        Response::from_parts(parts, body)
    }

    /// Returns the limit that an answer names.
    pub(super) fn limit(&self, asked: &Asked) -> Option<u32> {
        asked.kind.limit()
    }

    /// Notes that a record was stored or deleted; `modified` is what the disk says of the store.
    pub(super) fn written(&self, id: &str, modified: SystemTime) {
        self.histories.written(id, modified);
    }

    /// Notes that a record was read.
    pub(super) fn read(&self, entry: &StoreEntry) {
        self.histories.read(&entry.id, entry.modified);
    }

    /// Makes a store object tell of changes only once their time has come.
    pub(super) fn describe(&self, entry: &StoreEntry, object: &mut Value) {
        let told = self
            .histories
            .told(&entry.id, entry.created, entry.modified, SystemTime::now());
        object["createdAt"] = super::stores::date(told.created).into();
        object["modifiedAt"] = super::stores::date(told.modified).into();
        object["accessedAt"] = super::stores::date(told.modified).into();
        object["stats"]["writeCount"] = told.writes.into();
        object["stats"]["deleteCount"] = 0.into();
        for own in ["username", "recordsPublicUrl", "title"] {
            if let Some(fields) = object.as_object_mut() {
                fields.remove(own);
            }
        }
    }
}

impl Kind {
    fn limit(self) -> Option<u32> {
        match self {
            Self::Record | Self::Page => Some(LIMITS.0),
            Self::Object => Some(LIMITS.1),
            Self::Nothing => None,
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json; charset=utf-8")
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_the_command_line() {
        assert_eq!("".parse(), Ok(Platform::default()));
        let all = "lag=1s, clock=reads,rested=2h,304=no,limits=yes";
        assert_eq!(
            all.parse(),
            Ok(Platform {
                lag: Duration::from_secs(1),
                clock: StoreClockKind::Reads,
                rested: Duration::from_secs(7200),
                not_modified: false,
                limits: true,
            })
        );
        for wrong in ["lag", "lag=x", "clock=x", "304", "304=1", "x=y"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }
}
