//! All records of a store as a ZIP archive, made while it is sent.
//!
//! Files hold the records' content, decoded; bytes that do not decode are left as they are. They
//! are named like the keys, but for what cannot be in a file name everywhere: that is
//! percent-encoded. A record that vanishes meanwhile is left out; one that cannot be read, or decodes
//! to far more than is stored, ends the answer early, and the archive with it, so that no client takes
//! it for whole.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::sync::Semaphore;
use zip::write::{SimpleFileOptions, StreamWriter, ZipWriter};

use super::aliases::resolve;
use super::auth::{self, Wanted};
use super::errors::{ApiError, Result};
use super::negotiate::decoded;
use super::routes::Target;
use super::schema::{Selection, select};
use super::{App, Call, REQUEST_DEADLINE, body, reply};
use crate::base::clock::Deadline;
use crate::store::codec::DecoderMemory;
use crate::store::{Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, MAX_PAGE, Store};

/// What Windows and Unix do not both take in file names, and the mark of encoding itself.
const NOT_IN_NAMES: &AsciiSet = &CONTROLS
    .add(b'/')
    .add(b'\\')
    .add(b':')
    .add(b'*')
    .add(b'?')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'|')
    .add(b'%');

/// Text shrinks well at this level already, and it is fast.
const LEVEL: i64 = 1;

/// Archives that are made at once: the table of one's files is in memory, for large stores some
/// 20 MiB of it.
const MOST: usize = 4;

/// Places for archives that are being made.
#[derive(Debug)]
pub(super) struct Archives {
    places: Arc<Semaphore>,
    /// Whether a client was refused one.
    wanted: AtomicBool,
}

impl Default for Archives {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MOST)),
            wanted: AtomicBool::new(false),
        }
    }
}

/// Answers `GET …/records`.
///
/// A client that hardly takes its archive makes way once another was refused one.
pub(super) fn get(app: &App, call: &Call, target: &Target) -> Result<Response> {
    let resolved = resolve(app, call, target)?;
    auth::sight(call, &resolved, Wanted::Keys)?;
    let entry = resolved.entry;
    let selection = select(
        entry.schema.as_deref(),
        call.query.text("collection"),
        call.query.text("prefix"),
    )?;
    app.stats.store(&entry.id).listed();
    let store = entry.store;
    // What is wrong with the store is said before the archive begins.
    selection.page(&*store, None, 1, Deadline::after(REQUEST_DEADLINE))?;
    let (archives, memory) = (app.archives.clone(), app.decoders.clone());
    let place = archives.places.clone().try_acquire_owned();
    let Ok(place) = place else {
        archives.wanted.store(true, Ordering::Relaxed);
        return Err(ApiError::busy());
    };
    let body = body::written(
        move |out| {
            let packed = pack(&*store, &selection, &memory, out);
            drop(place);
            packed
        },
        move || archives.wanted.swap(false, Ordering::Relaxed),
    );
    let mut response = reply::empty(StatusCode::OK);
    *response.body_mut() = body;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/zip"),
    );
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{}.zip\"", entry.id))
    {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

fn pack(
    store: &dyn Store,
    selection: &Selection,
    memory: &DecoderMemory,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut archive = ZipWriter::new_stream(out);
    let mut after: Option<String> = None;
    loop {
        let deadline = Deadline::after(REQUEST_DEADLINE);
        let page = selection.page(store, after.as_deref(), MAX_PAGE, deadline)?;
        for item in &page.items {
            add(store, &item.key, memory, &mut archive)?;
        }
        match page.next {
            Some(next) => after = Some(next.to_string()),
            None => break,
        }
    }
    archive.finish()?.into_inner().flush()
}

fn add(
    store: &dyn Store,
    key: &Key,
    memory: &DecoderMemory,
    archive: &mut ZipWriter<StreamWriter<&mut dyn Write>>,
) -> io::Result<()> {
    let Some(fetched) = fetch(store, key)? else {
        return Ok(());
    };
    let plain = match fetched.meta.encoding {
        Encoding::Unknown(_) => None,
        encoding => decoded(&encoding, fetched.body, None, memory)?,
    };
    let mut content = match plain {
        Some(plain) => plain,
        None => match fetch(store, key)? {
            Some(stored) => stored.body,
            None => return Ok(()),
        },
    };
    let options = SimpleFileOptions::default()
        .compression_level(Some(LEVEL))
        .unix_permissions(0o644)
        // How long it is shows only when it has gone out.
        .large_file(true);
    archive.start_file(file_name(key), options)?;
    io::copy(&mut content, archive)?;
    Ok(())
}

/// Gets a record; `None` if it has vanished.
fn fetch(store: &dyn Store, key: &Key) -> io::Result<Option<Fetched>> {
    let deadline = Deadline::after(REQUEST_DEADLINE);
    match store.get(key, &GetRequest::default(), deadline) {
        Ok(GetOutcome::Found(fetched)) => Ok(Some(fetched)),
        Ok(GetOutcome::NotModified) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.with_key(key).into()),
    }
}

fn file_name(key: &Key) -> String {
    match key.as_str() {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        key => utf8_percent_encode(key, NOT_IN_NAMES).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_file_names_that_are_good_everywhere() {
        for (key, name) in [
            ("my!key'(v1).json", "my!key'(v1).json"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
            ("C:\\x", "C%3A%5Cx"),
            ("50%", "50%25"),
            ("a\nb", "a%0Ab"),
        ] {
            let key = Key::new(key).expect("a key");
            assert_eq!(file_name(&key), name);
        }
    }
}
