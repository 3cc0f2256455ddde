//! `kvfs ls`.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::args::{GlobalArgs, LsArgs};
use super::direct::{Direct, failure, shown};
use super::error::CliError;
use super::select::{check_patterns, no_match, no_record, select};
use super::settings::Environment;
use crate::base::text;
use crate::base::units::ByteSize;
use crate::store::pager::Pager;
use crate::store::{ErrorKind, Key, ListItem, ListQuery, RecordMeta, Result, StoreError};

/// Records asked about at once.
const HEADS_AT_ONCE: usize = 16;
/// Pages fetched before they are printed.
const PAGES_AHEAD: usize = 4;

/// Lists the keys of a store, page by page.
///
/// # Errors
/// That the store cannot be opened or listed.
pub fn run(
    args: &LsArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> std::result::Result<(), CliError> {
    check_patterns(&args.keys)?;
    let direct = Direct::open_unasked(&args.store, &args.access, global, environment)?;
    let keys = direct.keys(&args.keys)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.long && !args.json && io::stdout().is_terminal() {
        writeln!(out, "{}", columns("STORED", "MODIFIED", "TYPE", "KEY"))?;
    }
    if !keys.is_empty() {
        return selected(&mut out, &direct, args, keys);
    }
    let mut left = args.limit.unwrap_or(u64::MAX);
    let query = ListQuery {
        prefix: args.prefix.as_deref().map(Into::into),
        collection: args.collection.as_deref().map(Into::into),
        ..ListQuery::default()
    };
    thread::scope(|scope| {
        // The next pages are on their way while this one is printed.
        let (send, pages) = mpsc::sync_channel(PAGES_AHEAD);
        scope.spawn(|| list(&direct, query, send));
        for page in pages {
            let mut page = page.map_err(|error| failure("cannot list the store", &error))?;
            page.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= page.len() as u64;
            print(&mut out, &direct, args, &page)?;
            out.flush()?;
            if left == 0 {
                break;
            }
        }
        Ok(())
    })
}

/// Lists the records that keys and patterns mean.
fn selected(
    out: &mut impl Write,
    direct: &Direct,
    args: &LsArgs,
    keys: Vec<Key>,
) -> std::result::Result<(), CliError> {
    let selection = select(direct, keys, args.prefix.as_deref())?;
    let mut missing = None;
    let mut items = Vec::new();
    for key in selection.named {
        match direct.store.head(&key, direct.deadline()) {
            Ok(meta) => items.push(ListItem {
                stored_size: meta.stored_size,
                modified: None,
                public_url: None,
                key,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                missing.get_or_insert(no_record(&key, &direct.shown));
            }
            Err(error) => {
                let what = format!("cannot ask about {}", shown(&key));
                return Err(failure(&what, &error));
            }
        }
    }
    items.extend(selection.listed);
    items.truncate(usize::try_from(args.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX));
    print(out, direct, args, &items)?;
    out.flush()?;
    match missing {
        Some(missing) => Err(missing),
        None if selection.unmatched.is_empty() => Ok(()),
        None => Err(no_match(&selection.unmatched, &direct.shown)),
    }
}

fn list(direct: &Direct, query: ListQuery, pages: mpsc::SyncSender<Result<Vec<ListItem>>>) {
    let mut pager = Pager::new(query);
    while let Some(page) = pager
        .next_page(&*direct.store, direct.deadline())
        .transpose()
    {
        let failed = page.is_err();
        // The printing side has stopped listening when printing has failed.
        if pages.send(page).is_err() || failed {
            return;
        }
    }
}

fn print(
    out: &mut impl Write,
    direct: &Direct,
    args: &LsArgs,
    page: &[ListItem],
) -> std::result::Result<(), CliError> {
    if !args.long {
        for item in page {
            if args.json {
                writeln!(out, "{}", text::json(&describe(item, None).to_string()))?;
            } else {
                writeln!(out, "{}", shown(&item.key))?;
            }
        }
        return Ok(());
    }
    for batch in page.chunks(8 * HEADS_AT_ONCE) {
        for (item, meta) in batch.iter().zip(heads(direct, batch)) {
            let meta = match meta {
                Ok(meta) => meta,
                // It was deleted after it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    let what = format!("cannot ask about {}", shown(&item.key));
                    return Err(failure(&what, &error));
                }
            };
            if args.json {
                let described = describe(item, Some(&meta)).to_string();
                writeln!(out, "{}", text::json(&described))?;
            } else {
                writeln!(out, "{}", line(item, &meta, args.human_readable))?;
            }
        }
    }
    Ok(())
}

/// Asks about several records at once; the answers are in their order.
fn heads(direct: &Direct, items: &[ListItem]) -> Vec<Result<RecordMeta>> {
    let next = AtomicUsize::new(0);
    let unasked = || StoreError::new(ErrorKind::Protocol, "not asked");
    let answers: Mutex<Vec<_>> = Mutex::new(items.iter().map(|_| Err(unasked())).collect());
    thread::scope(|scope| {
        for _ in 0..HEADS_AT_ONCE.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let answer = direct.store.head(&item.key, direct.deadline());
                    if let Some(place) = answers.lock().get_mut(index) {
                        *place = answer;
                    }
                }
            });
        }
    });
    answers.into_inner()
}

/// Returns `STORED  MODIFIED  TYPE  KEY`, with `-` for what is unknown.
fn line(item: &ListItem, meta: &RecordMeta, human: bool) -> String {
    let size = item.stored_size.or(meta.stored_size);
    let modified = item.modified.or_else(|| meta.modified());
    let kind = meta.content_type.as_deref().unwrap_or("-");
    let mut kind = text::line(kind).into_owned();
    if let Some(encoding) = meta.encoding.header_value() {
        kind = format!("{kind} ({})", text::line(encoding));
    }
    let size = size.map_or_else(
        || "-".into(),
        |size| match human {
            true => ByteSize(size).to_string(),
            false => size.to_string(),
        },
    );
    let modified = modified.map_or_else(|| "-".into(), timestamp);
    columns(&size, &modified, &kind, shown(&item.key))
}

fn columns(size: &str, modified: &str, kind: &str, key: impl Display) -> String {
    format!("{size:>12}  {modified:20}  {kind:32}  {key}")
}

/// Returns what is known of a listed record, for programs.
fn describe(item: &ListItem, meta: Option<&RecordMeta>) -> Value {
    let mut record = json!({ "key": item.key.as_str(), "size": item.stored_size });
    if let Some(meta) = meta {
        super::info::add_meta(&mut record, meta, item.modified);
    }
    record
}

/// Returns a time as `2026-11-23T10:00:00Z`.
pub(super) fn timestamp(time: std::time::SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => "-".into(),
    }
}
