//! `kvfs ls`.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::args::{GlobalArgs, LsArgs};
use super::direct::{Direct, failure, shown};
use super::error::CliError;
use super::settings::Environment;
use crate::base::text;
use crate::store::pager::Pager;
use crate::store::{ErrorKind, ListItem, ListQuery, RecordMeta, Result, StoreError};

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
    let direct = Direct::open_unasked(&args.store, &args.access, global, environment)?;
    let query = ListQuery {
        prefix: args.prefix.as_deref().map(Into::into),
        collection: args.collection.as_deref().map(Into::into),
        ..ListQuery::default()
    };
    let mut out = BufWriter::new(io::stdout().lock());
    thread::scope(|scope| {
        // The next pages are on their way while this one is printed.
        let (send, pages) = mpsc::sync_channel(PAGES_AHEAD);
        scope.spawn(|| list(&direct, query, send));
        for page in pages {
            let page = page.map_err(|error| failure("cannot list the store", &error))?;
            print(&mut out, &direct, args, &page)?;
            out.flush()?;
        }
        Ok(())
    })
}

fn list(direct: &Direct, query: ListQuery, pages: mpsc::SyncSender<Result<Vec<ListItem>>>) {
    let mut pager = Pager::new(query);
    while let Some(page) = pager
        .next_page(&*direct.store, direct.deadline())
        .transpose()
    {
        let failed = page.is_err();
        // Nobody listens any more when printing has failed.
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
                writeln!(out, "{}", line(item, &meta))?;
            }
        }
    }
    Ok(())
}

/// Asks about several records at once; the answers are in their order.
fn heads(direct: &Direct, items: &[ListItem]) -> Vec<Result<RecordMeta>> {
    let next = AtomicUsize::new(0);
    let unasked = || StoreError::new(ErrorKind::Protocol, "nobody asked");
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

/// Returns `SIZE  MODIFIED  TYPE  KEY`, with `-` for what is unknown.
fn line(item: &ListItem, meta: &RecordMeta) -> String {
    let size = item.stored_size.or(meta.stored_size);
    let modified = item.modified.or_else(|| meta.modified());
    let kind = meta.content_type.as_deref().unwrap_or("-");
    let mut kind = text::line(kind).into_owned();
    if let Some(encoding) = meta.encoding.header_value() {
        kind = format!("{kind} ({})", text::line(encoding));
    }
    format!(
        "{:>12}  {:20}  {kind:32}  {}",
        size.map_or_else(|| "-".into(), |size| size.to_string()),
        modified.map_or_else(|| "-".into(), timestamp),
        shown(&item.key)
    )
}

/// Returns what is known of a listed record, for programs.
fn describe(item: &ListItem, meta: Option<&RecordMeta>) -> Value {
    let mut record = json!({ "key": item.key.as_str(), "size": item.stored_size });
    if let Some(modified) = item.modified {
        record["modified"] = timestamp(modified).into();
    }
    if let Some(meta) = meta {
        super::info::add_meta(&mut record, meta);
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
