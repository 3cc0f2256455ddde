//! URLs: of the API, of the Console, of files. The signature in one is kept, never shown.

use percent_encoding::percent_decode_str;
use url::Url;

use super::forms::{is_name, named, resource, without_query};
use super::{ReferenceError, RemoteRef, StoreRef};
use crate::base::redact::{SafeUrl, Secret, bare};

/// The host of the Console; the address of a page there stands for the store it shows.
const CONSOLE_HOST: &str = "console.apify.com";

pub(super) fn from_url(text: &str) -> Result<StoreRef, ReferenceError> {
    let url = Url::parse(text).map_err(|_| ReferenceError::Url {
        url: without_query(text),
        reason: "it is not a well-formed URL",
    })?;
    let refuse = |reason| ReferenceError::Url {
        url: bare(&url),
        reason,
    };
    if url.scheme() == "file" {
        let path = url
            .to_file_path()
            .map_err(|()| refuse("a file URL must name a path on this machine"))?;
        // It could be neither handed to the daemon nor kept with what is pending.
        if path.to_str().is_none() {
            return Err(refuse("its path is not UTF-8"));
        }
        return Ok(StoreRef::Directory(path));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it must hold no user name or password"));
    }
    let mut signature = None;
    for (name, value) in url.query_pairs() {
        match &*name {
            "signature" if !value.is_empty() => signature = Some(Secret::new(value)),
            "token" => {
                return Err(refuse(
                    "it must hold no token; pass that as APIFY_TOKEN or with --token-file",
                ));
            }
            "prefix" => return Err(refuse("give its prefix with --prefix instead")),
            "collection" => return Err(refuse("give its collection with --collection instead")),
            _ => {}
        }
    }
    let segments: Vec<String> = url
        .path_segments()
        .into_iter()
        .flatten()
        .map(|segment| percent_decode_str(segment).decode_utf8().map(Into::into))
        .collect::<Result<_, _>>()
        .map_err(|_| refuse("its path is not UTF-8"))?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if url.host_str() == Some(CONSOLE_HOST) {
        return from_console(&segments)
            .map(StoreRef::Remote)
            .ok_or_else(|| {
                refuse("a Console address must be that of a key-value store or of a run")
            });
    }
    let (at, remote, rest) = segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| **segment == "v2")
        .find_map(|(at, _)| {
            let (remote, rest) = from_api(&segments[at + 1..])?;
            Some((at, remote, rest))
        })
        .ok_or_else(|| refuse("an API address has /v2/key-value-stores/ID, or a run's key-value-store, in its path"))?;
    match rest {
        [] | [""] | ["keys"] | ["keys", ""] => {
            let mut base = url.clone();
            base.set_query(None);
            base.set_fragment(None);
            // The raw segments, so that the prefix keeps its spelling.
            let prefix: Vec<&str> = url.path_segments().into_iter().flatten().take(at).collect();
            let prefix: String = prefix.iter().map(|part| format!("{part}/")).collect();
            base.set_path(&prefix);
            Ok(StoreRef::Url {
                base,
                remote,
                signature,
            })
        }
        ["records", key] if !key.is_empty() => {
            let mut url = url.clone();
            url.set_fragment(None);
            Ok(StoreRef::Records(vec![SafeUrl::new(url)]))
        }
        _ => Err(refuse(
            "after the store only /keys or /records/KEY can follow",
        )),
    }
}

/// Reads the path after `/v2`: which store, and what follows it.
fn from_api<'a, 'b>(path: &'a [&'b str]) -> Option<(RemoteRef, &'a [&'b str])> {
    match path {
        ["key-value-stores", store, rest @ ..] => {
            let remote = if is_name(store) {
                RemoteRef::Id((*store).to_owned())
            } else {
                named(store)?
            };
            Some((remote, rest))
        }
        ["actor-runs", id, "key-value-store", rest @ ..] if is_name(id) => {
            Some((RemoteRef::Run((*id).to_owned()), rest))
        }
        [
            "acts" | "actors",
            actor,
            "runs",
            "last",
            "key-value-store",
            rest @ ..,
        ] => Some((RemoteRef::LastRunOfActor(resource(actor)?), rest)),
        [
            "actor-tasks",
            task,
            "runs",
            "last",
            "key-value-store",
            rest @ ..,
        ] => Some((RemoteRef::LastRunOfTask(resource(task)?), rest)),
        _ => None,
    }
}

/// Reads a path of the Console.
fn from_console(path: &[&str]) -> Option<RemoteRef> {
    let after = |word: &str| {
        let at = path.iter().position(|segment| *segment == word)?;
        path.get(at + 1)
            .filter(|id| is_name(id))
            .map(|id| (*id).to_owned())
    };
    after("key-value-stores")
        .or_else(|| after("key-value"))
        .map(RemoteRef::Id)
        .or_else(|| after("runs").map(RemoteRef::Run))
}
