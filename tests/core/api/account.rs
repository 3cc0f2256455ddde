//! The list of an account's stores.

use std::collections::HashSet;
use std::sync::Arc;

use kvfs::mount::account::open_account;
use kvfs::store::{ErrorKind, Result};

use super::{config, deadline};
use crate::support::scripted::{Answer, ScriptedServer, Seen};

fn offset(seen: &Seen) -> usize {
    let (_, query) = seen.target.split_once("offset=").expect("an offset");
    let digits = query.split('&').next().unwrap_or_default();
    digits.parse().expect("a number")
}

fn page(total: usize, ids: impl IntoIterator<Item = usize>) -> Answer {
    let items: Vec<_> = ids
        .into_iter()
        .map(|id| serde_json::json!({"id": format!("{id:017}"), "name": format!("n{id}")}))
        .collect();
    let page = serde_json::json!({"data": {"total": total, "items": items}});
    Answer::new(200, page.to_string())
}

/// Lists at most `pages` pages; returns the ids, and how many requests that took.
fn list(
    pages: usize,
    answer: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> Result<(Vec<String>, usize)> {
    let server = ScriptedServer::start(move |seen, _| answer(offset(seen)));
    let account = open_account(&config("~any", &server), Arc::default())?;
    let mut stores = account.stores(false);
    let mut ids = Vec::new();
    for _ in 0..pages {
        match stores.next_page(deadline())? {
            Some(page) => ids.extend(page.into_iter().map(|store| store.id)),
            None => break,
        }
    }
    Ok((ids, server.seen().len()))
}

#[test]
fn every_store_is_listed_once() {
    for (total, each, requests) in [(0, 1000, 1), (1, 1000, 1), (2500, 1000, 3), (250, 100, 3)] {
        let (ids, asked) = list(9, move |offset| {
            page(total, offset..total.min(offset + each))
        })
        .expect("a list");
        assert_eq!((ids.len(), asked), (total, requests));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), total);
    }
    // One was deleted meanwhile, and one more is counted than listed.
    let (ids, _) = list(9, |offset| match offset {
        0 => page(3, [1, 2]),
        2 => page(3, [2, 3]),
        _ => page(5, []),
    })
    .expect("a list");
    assert_eq!(ids.len(), 3);
}

#[test]
fn a_list_that_repeats_itself_ends() {
    for distinct in [1, 1000] {
        let error = list(9, move |_| {
            page(usize::MAX >> 1, (0..1000).map(|id| id % distinct))
        })
        .expect_err("endless");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    let (ids, asked) = list(9, |_| page(usize::MAX >> 1, [])).expect("an empty list");
    assert_eq!((ids.len(), asked), (0, 1));
    let error = list(9, |_| page(5000, 0..1001)).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}
