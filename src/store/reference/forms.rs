//! The forms that a person can type: words and paths, as opposed to addresses.

use std::path::PathBuf;
use std::str::FromStr;

use super::address::from_url;
use super::bucket::{bucket_address, in_bucket};
use super::{ReferenceError, RemoteRef, StoreRef};

/// The length of the platform's ids, in characters.
const ID_LEN: usize = 17;

impl StoreRef {
    /// Reads STORE; several arguments are several record URLs.
    ///
    /// # Errors
    /// The reason, with the accepted forms.
    pub fn parse(arguments: &[String]) -> Result<Self, ReferenceError> {
        match arguments {
            [] => Err(ReferenceError::Missing),
            [one] => one.parse(),
            several => {
                let mut urls = Vec::with_capacity(several.len());
                for text in several {
                    match text.parse() {
                        Ok(Self::Records(mut records)) => urls.append(&mut records),
                        Ok(_) => {
                            return Err(ReferenceError::Several {
                                text: without_query(text),
                            });
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(Self::Records(urls))
            }
        }
    }
}

impl FromStr for StoreRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ReferenceError::Unknown {
            text: without_query(text),
        };
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        if scheme.is_some_and(|s| {
            ["http", "https", "file"]
                .iter()
                .any(|known| s.eq_ignore_ascii_case(known))
        }) {
            return from_url(text);
        }
        if let Some(address) = bucket_address(text) {
            return in_bucket(address?);
        }
        if is_local_path(text) {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if let Some((word, rest)) = text.split_once(':') {
            let remote = match word {
                "run" if is_name(rest) => RemoteRef::Run(rest.to_owned()),
                "actor" => RemoteRef::LastRunOfActor(resource(rest).ok_or_else(unknown)?),
                "task" => RemoteRef::LastRunOfTask(resource(rest).ok_or_else(unknown)?),
                _ => return Err(unknown()),
            };
            return Ok(Self::Remote(remote));
        }
        // The platform's ids are 17 letters and digits; other servers have ids of their own.
        if is_name(text) {
            return Ok(Self::Remote(RemoteRef::Id(text.to_owned())));
        }
        named(text).map(Self::Remote).ok_or_else(unknown)
    }
}

fn is_local_path(text: &str) -> bool {
    text == "."
        || text == ".."
        || ["/", "./", "../"].iter().any(|p| text.starts_with(p))
        || (!text.starts_with('~')
            && !text.contains("://")
            && text.split('/').filter(|part| !part.is_empty()).count() >= 3)
}

/// Returns whether `text` can be an id or a name: a path segment that needs no encoding.
pub(super) fn is_name(text: &str) -> bool {
    // Empty texts and rows of dots consist of dots only.
    !text.bytes().all(|b| b == b'.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Reads `user~name`, `user/name` or `~name`.
pub(super) fn named(text: &str) -> Option<RemoteRef> {
    let (user, name) = text
        .split_once('~')
        .or_else(|| text.split_once('/').filter(|(user, _)| !user.is_empty()))?;
    if !is_name(name) || !(user.is_empty() || is_name(user)) {
        return None;
    }
    Some(RemoteRef::Named {
        user: (!user.is_empty()).then(|| user.to_owned()),
        name: name.to_owned(),
    })
}

/// Reads an Actor or a task: an id, or a name as for stores.
pub(super) fn resource(text: &str) -> Option<String> {
    if is_name(text) {
        return Some(text.to_owned());
    }
    named(text).map(|remote| remote.to_string())
}

pub(super) fn without_query(text: &str) -> String {
    text.split(['?', '#']).next().unwrap_or_default().to_owned()
}
