//! Addresses. The raw path is split at its slashes and each part decoded exactly once, so that
//! `%2E%2E` and `%2F` can be parts of keys and a trailing slash is never ignored.

use axum::http::{Method, Uri};
use percent_encoding::percent_decode_str;

use super::errors::{ApiError, Result};
use super::stats::Kind;
use crate::store::Key;

/// What an address means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Stats,
    Me,
    User(String),
    Run(Target),
    Stores,
    Store(Target),
    Keys(Target),
    Records(Target),
    Record(Target, Key),
}

/// How a store is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// By id or name.
    Store(String),
    /// As the default store of a run.
    Run(String),
    /// Of an Actor's last run.
    LastOfActor(String),
    /// Of a task's last run.
    LastOfTask(String),
}

impl Route {
    /// Reads the path of an address.
    pub(super) fn parse(uri: &Uri) -> Result<Self> {
        let path = uri.path();
        if path == "/_kvfs/stats" {
            return Ok(Self::Stats);
        }
        let rest = path
            .strip_prefix("/v2/")
            .ok_or_else(ApiError::page_not_found)?;
        let mut parts = Vec::new();
        for part in rest.split('/') {
            let decoded = percent_decode_str(part).decode_utf8().map_err(|_| {
                ApiError::invalid_request("The path is not valid percent-encoded UTF-8")
            })?;
            parts.push(decoded.into_owned());
        }
        if parts.iter().any(String::is_empty) {
            return Err(ApiError::page_not_found());
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match &parts[..] {
            ["users", "me"] => Ok(Self::Me),
            ["users", user] => Ok(Self::User((*user).to_owned())),
            ["key-value-stores"] => Ok(Self::Stores),
            ["key-value-stores", store, rest @ ..] => {
                Self::below(Target::Store((*store).to_owned()), rest)
            }
            ["actor-runs", run, rest @ ..] => Self::below_run(Target::Run((*run).to_owned()), rest),
            ["actors" | "acts", actor, "runs", "last", rest @ ..] => {
                Self::below_run(Target::LastOfActor((*actor).to_owned()), rest)
            }
            ["actor-tasks", task, "runs", "last", rest @ ..] => {
                Self::below_run(Target::LastOfTask((*task).to_owned()), rest)
            }
            _ => Err(ApiError::page_not_found()),
        }
    }

    fn below_run(run: Target, rest: &[&str]) -> Result<Self> {
        match rest {
            [] => Ok(Self::Run(run)),
            ["key-value-store", rest @ ..] => Self::below(run, rest),
            _ => Err(ApiError::page_not_found()),
        }
    }

    fn below(store: Target, rest: &[&str]) -> Result<Self> {
        match rest {
            [] => Ok(Self::Store(store)),
            ["keys"] => Ok(Self::Keys(store)),
            ["records"] => Ok(Self::Records(store)),
            ["records", key] => match Key::new(*key) {
                Some(key) => Ok(Self::Record(store, key)),
                None => Err(ApiError::page_not_found()),
            },
            _ => Err(ApiError::page_not_found()),
        }
    }

    /// Returns the methods that the address answers.
    pub(super) fn methods(&self) -> &'static [Method] {
        const READ: &[Method] = &[Method::GET];
        const STORES: &[Method] = &[Method::GET, Method::POST];
        const STORE: &[Method] = &[Method::GET, Method::PUT, Method::DELETE];
        const RECORD: &[Method] = &[
            Method::GET,
            Method::HEAD,
            Method::PUT,
            Method::POST,
            Method::DELETE,
        ];
        // The platform knows no HEAD there.
        const RECORD_OF_RUN: &[Method] = &[Method::GET, Method::PUT, Method::POST, Method::DELETE];
        match self {
            Self::Stats => &[Method::GET, Method::DELETE],
            Self::Me | Self::User(_) | Self::Run(_) | Self::Keys(_) | Self::Records(_) => READ,
            Self::Stores => STORES,
            Self::Store(_) => STORE,
            Self::Record(Target::Store(_), _) => RECORD,
            Self::Record(..) => RECORD_OF_RUN,
        }
    }

    /// Returns how a request is counted.
    pub(super) fn kind(&self, method: &Method) -> Kind {
        match (self, method.as_str()) {
            (Self::Keys(_), _) => Kind::List,
            (Self::Record(..), "GET") => Kind::Get,
            (Self::Record(..), "HEAD") => Kind::Head,
            (Self::Record(..), "PUT" | "POST") => Kind::Put,
            (Self::Record(..), "DELETE") => Kind::Delete,
            _ => Kind::Other,
        }
    }

    /// Returns how the store is named, if the address is about one.
    pub(super) fn target(&self) -> Option<&Target> {
        match self {
            Self::Run(target)
            | Self::Store(target)
            | Self::Keys(target)
            | Self::Records(target)
            | Self::Record(target, _) => Some(target),
            Self::Stats | Self::Me | Self::User(_) | Self::Stores => None,
        }
    }
}

/// The parameters of a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the query of an address.
    pub(super) fn parse(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// Returns a parameter as it was given.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns a parameter; an empty one counts as absent.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.given(name).filter(|value| !value.is_empty())
    }

    /// Returns a flag, written as the clients do: `1`, `0`, `true`, `false`; not empty.
    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        match self.given(name).map(str::to_ascii_lowercase).as_deref() {
            Some("1" | "true") => Ok(true),
            None | Some("0" | "false") => Ok(false),
            Some(_) => Err(ApiError::invalid_request(format!(
                "Query parameter \"{name}\" must be a boolean"
            ))),
        }
    }

    /// Returns a number of things. The contract takes fractions, too; they are cut.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.given(name) else {
            return Ok(None);
        };
        if let Ok(number) = text.parse() {
            return Ok(Some(number));
        }
        match text.parse::<f64>() {
            Ok(number) if number < 0.0 => Err(ApiError::invalid_request(format!(
                "Query parameter \"{name}\" must be at least 0"
            ))),
            // Conversion cuts what is too large.
            Ok(number) if !number.is_nan() => Ok(Some(number as u64)),
            _ => Err(ApiError::invalid_request(format!(
                "Query parameter \"{name}\" must be a number"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &'static str) -> Option<Route> {
        Route::parse(&Uri::from_static(path)).ok()
    }

    fn record(store: &str, key: &str) -> Option<Route> {
        let key = Key::new(key).expect("a key");
        Some(Route::Record(Target::Store(store.to_owned()), key))
    }

    #[test]
    fn paths_are_decoded_once_and_slashes_count() {
        assert_eq!(
            route("/v2/key-value-stores/s/records/%2E%2E"),
            record("s", "..")
        );
        assert_eq!(
            route("/v2/key-value-stores/s/records/a%2Fb"),
            record("s", "a/b")
        );
        assert_eq!(
            route("/v2/key-value-stores/s/records/%252E"),
            record("s", "%2E")
        );
        assert_eq!(
            route("/v2/key-value-stores/s/records/a!'()"),
            record("s", "a!'()")
        );
        assert_eq!(
            route("/v2/key-value-stores/u%2Fs/records/a"),
            record("u/s", "a")
        );
        for path in [
            "/v2/key-value-stores/s/",
            "/v2/key-value-stores/s/records/",
            "/v2/key-value-stores/s/records/a/b",
            "/v2/key-value-stores/",
            "/v2/key-value-stores//keys",
            "/v2/key-value-stores/s/records/%FF",
            "/v1/key-value-stores",
            "/",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    #[test]
    fn runs_are_asked_for_by_id_and_as_the_last_of_actors_and_tasks() {
        let keys = |target| Some(Route::Keys(target));
        assert_eq!(
            route("/v2/actor-runs/r/key-value-store/keys"),
            keys(Target::Run("r".into()))
        );
        for path in [
            "/v2/actors/u~a/runs/last/key-value-store/keys",
            "/v2/acts/u~a/runs/last/key-value-store/keys?status=SUCCEEDED",
        ] {
            assert_eq!(route(path), keys(Target::LastOfActor("u~a".into())));
        }
        assert_eq!(
            route("/v2/actor-tasks/t/runs/last/key-value-store/keys"),
            keys(Target::LastOfTask("t".into()))
        );
    }
}
