//! Walks a listing page by page and refuses one that cannot be right.

use std::sync::Arc;

use super::{ErrorKind, ListItem, ListQuery, Result, Store, StoreError};
use crate::base::clock::Deadline;

/// The pages of one listing, in order.
///
/// INVARIANT: the keys it hands out grow strictly, whatever the server sends: a page is sorted,
/// keys at or before the last one handed out are dropped, and a cursor that does not advance is
/// a [`ErrorKind::Protocol`] error, so a listing that repeats itself ends.
#[derive(Debug)]
pub struct Pager {
    query: ListQuery,
    last: Option<Arc<str>>,
    empty: usize,
    done: bool,
}

/// So many pages in a row may be empty before the listing counts as endless.
const MOST_EMPTY_PAGES: usize = 64;

impl Pager {
    /// Starts a listing of what `query` selects; `query.after` is where it starts.
    pub fn new(query: ListQuery) -> Self {
        Self {
            last: query.after.clone(),
            query,
            empty: 0,
            done: false,
        }
    }

    /// Tells whether the last page has been handed out.
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
        if let Some(last) = &self.last {
            page.items.retain(|item| item.key.as_str() > &**last);
        }
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
                "the listing goes on without keys",
            ));
        }
        self.done = page.next.is_none();
        self.query.after = page.next.or(self.query.after.take());
        Ok(Some(page.items))
    }
}
