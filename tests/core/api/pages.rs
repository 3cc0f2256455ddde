//! Pages of keys that the server says are unchanged.

use kvfs::store::{ErrorKind, ListPage, ListQuery, Result};

use super::*;

fn page(keys: &[&str], tag: Option<&str>) -> Answer {
    let items: Vec<_> = keys
        .iter()
        .map(|key| serde_json::json!({"key": key, "size": key.len()}))
        .collect();
    let page = serde_json::json!({"data": {"items": items, "isTruncated": false}});
    let answer = Answer::new(200, page.to_string());
    match tag {
        Some(tag) => answer.header("etag", tag),
        None => answer,
    }
}

fn list(api: &Scripted) -> Result<ListPage> {
    api.store.list_page(&ListQuery::default(), deadline())
}

fn keys(page: &ListPage) -> Vec<&str> {
    page.items.iter().map(|item| item.key.as_str()).collect()
}

fn conditions(api: &Scripted) -> Vec<Option<String>> {
    let seen = api.seen();
    let condition = |seen: &Seen| seen.header("if-none-match").map(str::to_owned);
    seen.iter().map(condition).collect()
}

#[test]
fn a_page_is_asked_for_under_the_tag_that_it_had() {
    let unchanged = || Answer::new(304, "");
    let api = Scripted::queue([
        page(&["a", "b"], Some("W/\"1\"")),
        unchanged(),
        unchanged().header("etag", "\"1\""),
        page(&["a", "c"], Some("W/\"2\"")),
        unchanged().header("etag", "W/\"2\""),
        page(&["d"], None),
        page(&["e"], None),
    ]);
    for expected in [
        vec!["a", "b"],
        vec!["a", "b"],
        vec!["a", "b"],
        vec!["a", "c"],
        vec!["a", "c"],
        vec!["d"],
        vec!["e"],
    ] {
        let page = list(&api).expect("a page");
        assert_eq!(keys(&page), expected);
        assert!(page.items.iter().all(|item| item.stored_size == Some(1)));
    }
    let tags = [None, Some(1), Some(1), Some(1), Some(2), Some(2), None];
    let tags = tags.map(|tag| tag.map(|tag| format!("W/\"{tag}\"")));
    assert_eq!(conditions(&api), tags);
}

#[test]
fn another_page_is_not_asked_for_under_its_tag() {
    let api = Scripted::with(options(), |_, _| page(&["a"], Some("\"1\"")));
    let queries = [
        ListQuery::default(),
        ListQuery {
            after: Some("0".into()),
            ..ListQuery::default()
        },
        ListQuery {
            prefix: Some("a".into()),
            ..ListQuery::default()
        },
        ListQuery {
            limit: Some(5),
            ..ListQuery::default()
        },
    ];
    for query in &queries {
        api.store.list_page(query, deadline()).expect("a page");
    }
    assert_eq!(conditions(&api), [None, None, None, None]);
}

#[test]
fn a_304_about_another_page_is_not_believed() {
    let unchanged = |tag| Answer::new(304, "").header("etag", tag);
    let api = Scripted::queue([
        page(&["a"], Some("\"1\"")),
        unchanged("\"2\""),
        page(&["b"], Some("\"2\"")),
        unchanged("\"3\""),
        unchanged("\"3\""),
    ]);
    assert_eq!(keys(&list(&api).expect("a page")), ["a"]);
    assert_eq!(keys(&list(&api).expect("a page")), ["b"]);
    let error = list(&api).expect_err("no page");
    assert_eq!(error.kind(), ErrorKind::Protocol);
    let tag = |tag: &str| Some(tag.to_owned());
    let asked = [None, tag("\"1\""), None, tag("\"2\""), None];
    assert_eq!(conditions(&api), asked);
}
