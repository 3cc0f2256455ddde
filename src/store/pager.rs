//! Walks a listing page by page and refuses one that cannot be right.

use std::sync::Arc;

use super::{ErrorKind, Key, ListItem, ListQuery, Result, Store, StoreError};
use crate::base::clock::Deadline;

/// The pages of one listing, in order.
///
/// INVARIANT: the keys it hands out grow strictly, whatever the server sends, and none that it sends
/// is left out: a page is sorted, and what the page before had too is dropped. Another key at or
/// before the last one handed out comes of another order: it is a [`ErrorKind::Protocol`] error, since
/// in that order the listing goes on and ends elsewhere. (Of a listing that starts somewhere, only the
/// keys behind that place are asked for: what else its first page has is dropped.) A cursor that does
/// not advance is an error too: a listing that repeats itself ends.
#[derive(Debug)]
pub struct Pager {
    query: ListQuery,
    last: Option<Arc<str>>,
    /// The keys of the page before, in order; `None` before the first.
    before: Option<Vec<Key>>,
    empty: usize,
    done: bool,
}

/// This many pages in a row may be empty before the listing counts as endless.
const MOST_EMPTY_PAGES: usize = 64;

impl Pager {
    /// Starts a listing of what `query` selects; `query.after` is where it starts.
    pub fn new(query: ListQuery) -> Self {
        Self {
            last: query.after.clone(),
            query,
            before: None,
            empty: 0,
            done: false,
        }
    }

    /// Returns whether the last page has been handed out.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Returns what the next page starts after.
    pub fn position(&self) -> Option<Arc<str>> {
        self.query.after.clone()
    }

    /// Fetches the next page; `None` after the last one.
    ///
    /// # Errors
    /// Those of [`Store::list_page`], and [`ErrorKind::Protocol`]. The pager can be asked again.
    pub fn next_page(
        &mut self,
        store: &dyn Store,
        deadline: Deadline,
    ) -> Result<Option<Vec<ListItem>>> {
        if self.done {
            return Ok(None);
        }
        let mut page = store.list_page(&self.query, deadline)?;
        if let Some(next) = &page.next
            && self.query.after.as_ref().is_some_and(|after| next <= after)
        {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                format!(
                    "the listing does not advance: after {:?} it continues at {next:?}",
                    self.query.after
                ),
            ));
        }
        page.items.sort_by(|a, b| a.key.cmp(&b.key));
        page.items.dedup_by(|a, b| a.key == b.key);
        let keys: Vec<Key> = page.items.iter().map(|item| item.key.clone()).collect();
        if let Some(last) = &self.last {
            let again = page
                .items
                .partition_point(|item| item.key.as_str() <= &**last);
            let is_new = |item: &&ListItem| {
                let before = self.before.as_ref();
                before.is_some_and(|before| before.binary_search(&item.key).is_err())
            };
            if let Some(strange) = page.items[..again].iter().find(is_new) {
                return Err(StoreError::new(
                    ErrorKind::Protocol,
                    format!(
                        "the listing is not in the order of the API: {:?} comes after {last:?}",
                        strange.key
                    ),
                ));
            }
            page.items.drain(..again);
        }
        self.before = Some(keys);
        if let Some(item) = page.items.last() {
            self.last = Some(item.key.as_str().into());
        }
        self.empty = if page.items.is_empty() {
            self.empty + 1
        } else {
            0
        };
        if self.empty > MOST_EMPTY_PAGES {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the listing continues without keys",
            ));
        }
        self.done = page.next.is_none();
        self.query.after = page.next.or(self.query.after.take());
        Ok(Some(page.items))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::ListPage;

    /// A store that lists pages as they are scripted, by the cursor that is asked for.
    #[derive(Debug)]
    struct Pages(Vec<(Option<&'static str>, Vec<&'static str>)>);

    impl Store for Pages {
        fn info(&self) -> crate::store::StoreInfo {
            crate::store::StoreInfo::default()
        }

        fn list_page(&self, query: &ListQuery, _: Deadline) -> Result<ListPage> {
            let at = self
                .0
                .iter()
                .position(|(after, _)| *after == query.after.as_deref())
                .expect("a page that is scripted");
            let items = self.0[at].1.iter().map(|key| ListItem {
                key: Key::new(key).expect("a key"),
                stored_size: None,
                modified: None,
                public_url: None,
            });
            Ok(ListPage {
                items: items.collect(),
                next: self
                    .0
                    .get(at + 1)
                    .and_then(|(after, _)| *after)
                    .map(Into::into),
            })
        }

        fn head(&self, _: &Key, _: Deadline) -> Result<crate::store::RecordMeta> {
            unreachable!("only listings")
        }

        fn get(
            &self,
            _: &Key,
            _: &crate::store::GetRequest,
            _: Deadline,
        ) -> Result<crate::store::GetOutcome> {
            unreachable!("only listings")
        }

        fn put(
            &self,
            _: &Key,
            _: &crate::store::PutRequest,
            _: crate::store::Upload<'_>,
            _: Deadline,
        ) -> Result<crate::store::RecordMeta> {
            unreachable!("only listings")
        }

        fn delete(&self, _: &Key, _: Deadline) -> Result<()> {
            unreachable!("only listings")
        }
    }

    fn list(pages: &[(Option<&'static str>, &[&'static str])]) -> Result<Vec<String>> {
        let store = Pages(
            pages
                .iter()
                .map(|(after, keys)| (*after, keys.to_vec()))
                .collect(),
        );
        let mut pager = Pager::new(ListQuery {
            after: pages[0].0.map(Into::into),
            ..ListQuery::default()
        });
        let mut keys = Vec::new();
        while let Some(page) = pager.next_page(&store, Deadline::after(Duration::from_secs(10)))? {
            keys.extend(page.into_iter().map(|item| item.key.to_string()));
        }
        Ok(keys)
    }

    #[test]
    fn keys_of_the_page_before_may_come_again() {
        let keys = list(&[
            (None, &["b", "a", "b"]),
            (Some("b"), &["a", "b", "c", "d"]),
            (Some("d"), &["c", "d", "e"]),
            (Some("x"), &[]),
        ]);
        assert_eq!(keys.expect("a listing"), ["a", "b", "c", "d", "e"]);
        let keys = list(&[(Some("b"), &["a", "b", "c"])]);
        assert_eq!(keys.expect("a listing"), ["c"]);
    }

    #[test]
    fn another_order_is_an_error_and_hides_no_key() {
        for pages in [
            // Regardless of case.
            &[(None, &["a", "B", "c"][..]), (Some("c"), &["D", "e"])][..],
            &[(None, &["c", "d"]), (Some("d"), &["a"])],
            &[(None, &["a", "c"]), (Some("c"), &["b", "d"])],
            &[
                (None, &["a", "b"]),
                (Some("b"), &["c"]),
                (Some("c"), &["a", "d"]),
            ],
            &[(Some("c"), &["d"]), (Some("d"), &["a", "e"])],
        ] {
            let error = list(pages).expect_err("no listing");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        }
    }
}
