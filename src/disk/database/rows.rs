//! The rows of a database, and its statements.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Database, Trouble, USES};

/// The version of the tables.
pub(super) const VERSION: i64 = 1;
/// Rows looked at together when some must go.
const STEP: usize = 64;
/// A row is noted as used once its last use lies back by so much of the time since the oldest use.
const PART: i64 = 4;

/// The name of a row: the hash of a key.
pub(in crate::disk) type Name = [u8; 20];

/// A row that is there.
#[derive(Debug)]
pub(in crate::disk) struct Row {
    pub(in crate::disk) about: Vec<u8>,
    pub(in crate::disk) bytes: Vec<u8>,
}

/// A row to be.
#[derive(Debug)]
pub(in crate::disk) struct NewRow {
    pub(in crate::disk) name: Name,
    pub(in crate::disk) about: Vec<u8>,
    pub(in crate::disk) bytes: bytes::Bytes,
}

/// What a database takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::disk) struct Space {
    /// All of it, in bytes.
    pub(in crate::disk) bytes: u64,
    /// What of this waits to be used again.
    pub(in crate::disk) free: u64,
    /// When the row that was used least lately was used, in milliseconds since 1970.
    pub(in crate::disk) oldest: i64,
}

/// The tables.
pub(super) mod schema {
    use super::{Connection, VERSION};

    /// Uses change often and contents do not: so they lie apart.
    const TABLES: [&str; 3] = [
        "CREATE TABLE entries (name BLOB PRIMARY KEY, used INTEGER NOT NULL, size INTEGER NOT NULL, content INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE INDEX uses ON entries (used)",
        "CREATE TABLE contents (id INTEGER PRIMARY KEY, about BLOB NOT NULL, bytes BLOB NOT NULL)",
    ];

    /// Returns the version of the tables; `None` without any, and another if they are not as they
    /// were made.
    pub(in super::super) fn found(connection: &Connection) -> rusqlite::Result<Option<i64>> {
        // Both at one moment: another process may be making them. No transaction is open but in `make`.
        let moment = match connection.is_autocommit() {
            true => Some(connection.unchecked_transaction()?),
            false => None,
        };
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let mut query = connection
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")?;
        let tables: Vec<String> = query
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        drop(query);
        drop(moment);
        Ok(match tables.is_empty() && version == 0 {
            true => None,
            false if tables == TABLES => Some(version),
            false => Some(VERSION - 1),
        })
    }

    pub(in super::super) fn make(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        // Another process may have made them meanwhile.
        if found(connection)?.is_none() {
            for table in TABLES {
                connection.execute_batch(table)?;
            }
            connection.execute_batch(&format!("PRAGMA user_version = {VERSION}"))?;
        }
        connection.execute_batch("COMMIT")
    }
}

// Joins are LEFT: an entry without its content is damage, not a miss.

impl Database {
    /// Finds a row, and notes that it is used.
    pub(in crate::disk) fn find(self: &Arc<Self>, name: &Name, now: i64) -> Option<Row> {
        let (row, used) = self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT about, bytes, used FROM entries LEFT JOIN contents ON id = content WHERE name = ?1",
            )?;
            query
                .query_row([&name[..]], |row| {
                    let about = row.get_ref(0)?.as_bytes()?.to_vec();
                    let bytes = row.get_ref(1)?.as_bytes()?.to_vec();
                    Ok((Row { about, bytes }, row.get::<_, i64>(2)?))
                })
                .optional()
        })??;
        let mut state = self.state.lock();
        let is_old = now.saturating_sub(used) > now.saturating_sub(state.oldest) / PART;
        if is_old && state.used.len() < 2 * USES {
            state.used.insert(*name, now);
            if state.used.len() == USES {
                self.tend.notify_one();
            }
        }
        Some(row)
    }

    /// Returns what a row is about.
    pub(in crate::disk) fn about(self: &Arc<Self>, name: &Name) -> Option<Vec<u8>> {
        self.read(|connection| about(connection, name)).flatten()
    }

    /// Returns how many rows there are, and when one of them was last used.
    pub(in crate::disk) fn count(self: &Arc<Self>) -> Option<(u64, Option<i64>)> {
        self.read(|connection| {
            connection.query_row("SELECT count(*), max(used) FROM entries", [], |row| {
                Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?))
            })
        })
    }

    /// Returns what it takes on disk; `None` where there is none.
    pub(in crate::disk) fn space(self: &Arc<Self>) -> Option<Space> {
        let space = self.read(space)?;
        self.state.lock().oldest = space.oldest;
        Some(space)
    }

    /// Puts rows in, in place of those of the same names.
    ///
    /// # Errors
    /// Why they are not in it.
    pub(in crate::disk) fn put(&self, rows: &[NewRow], now: i64) -> Result<Space, Trouble> {
        let used = std::mem::take(&mut self.state.lock().used);
        let space = self.write(true, |connection| {
            write_uses(connection, &used)?;
            for row in rows {
                delete(connection, &row.name)?;
                connection
                    .prepare_cached("INSERT INTO contents (about, bytes) VALUES (?1, ?2)")?
                    .execute(params![row.about, &row.bytes[..]])?;
                connection
                    .prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![
                        &row.name[..],
                        now,
                        (row.about.len() + row.bytes.len()) as i64,
                        connection.last_insert_rowid()
                    ])?;
            }
            space(connection)
        })?;
        self.state.lock().oldest = space.oldest;
        Ok(space)
    }

    /// Changes what a row is about, where `change` has something to change; returns whether there is
    /// such a row.
    pub(in crate::disk) fn describe(
        self: &Arc<Self>,
        name: &Name,
        change: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> bool {
        let Some(before) = self.about(name) else {
            return false;
        };
        if change(&before).is_some() {
            let changed = self.write(false, |connection| {
                let changed = about(connection, name)?.and_then(|now| change(&now));
                let Some(changed) = changed else { return Ok(()) };
                connection.execute(
                    "UPDATE contents SET about = ?2 WHERE id = (SELECT content FROM entries WHERE name = ?1)",
                    params![&name[..], changed],
                )?;
                Ok(())
            });
            if let Err(trouble) = changed {
                tracing::debug!("cannot change what is cached: {trouble:?}");
            }
        }
        true
    }

    /// Removes a row; with `about` only if that is what it is about. Returns whether it was there.
    pub(in crate::disk) fn remove(self: &Arc<Self>, name: &Name, is_about: Option<&[u8]>) -> bool {
        let Some(found) = self.about(name) else {
            return false;
        };
        if is_about.is_some_and(|is_about| is_about != found) {
            return false;
        }
        let removed = self.write(false, |connection| {
            match is_about.is_none() || about(connection, name)?.as_deref() == is_about {
                true => delete(connection, name),
                false => Ok(()),
            }
        });
        if let Err(trouble) = &removed {
            tracing::debug!("cannot remove what is cached: {trouble:?}");
        }
        removed.is_ok()
    }

    /// Removes the rows that were used least lately, about `bytes` in all; with `shrinks` the disk
    /// gets their room back, else rows to come.
    ///
    /// # Errors
    /// Why they are still there.
    pub(in crate::disk) fn evict(&self, bytes: u64, shrinks: bool) -> Result<Space, Trouble> {
        let used = std::mem::take(&mut self.state.lock().used);
        let space = self.write(false, |connection| {
            write_uses(connection, &used)?;
            let mut freed = 0;
            while freed < bytes {
                let oldest: Vec<(Vec<u8>, i64)> = connection
                    .prepare_cached("SELECT name, size FROM entries ORDER BY used LIMIT ?1")?
                    .query_map([STEP as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                if oldest.is_empty() {
                    break;
                }
                for (name, size) in oldest {
                    if freed < bytes {
                        delete(connection, &name)?;
                        freed += u64::try_from(size).unwrap_or(0);
                    }
                }
            }
            if shrinks {
                let mut shrink = connection.prepare("PRAGMA incremental_vacuum")?;
                let mut steps = shrink.query([])?;
                while steps.next()?.is_some() {}
            }
            space(connection)
        })?;
        self.state.lock().oldest = space.oldest;
        Ok(space)
    }

    pub(super) fn note_uses(&self, used: &HashMap<Name, i64>) {
        if used.is_empty() {
            return;
        }
        // Losing them is harmless.
        if let Err(trouble) = self.write(false, |connection| write_uses(connection, used)) {
            tracing::debug!("cannot note what was used: {trouble:?}");
        }
    }
}

fn about(connection: &Connection, name: &Name) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "SELECT about FROM entries LEFT JOIN contents ON id = content WHERE name = ?1",
        )?
        .query_row([&name[..]], |row| Ok(row.get_ref(0)?.as_bytes()?.to_vec()))
        .optional()
}

fn delete(connection: &Connection, name: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM contents WHERE id = (SELECT content FROM entries WHERE name = ?1)",
        )?
        .execute([name])?;
    connection
        .prepare_cached("DELETE FROM entries WHERE name = ?1")?
        .execute([name])?;
    Ok(())
}

fn write_uses(connection: &Connection, used: &HashMap<Name, i64>) -> rusqlite::Result<()> {
    let mut update =
        connection.prepare_cached("UPDATE entries SET used = ?2 WHERE name = ?1 AND used < ?2")?;
    for (name, at) in used {
        update.execute(params![&name[..], at])?;
    }
    Ok(())
}

fn space(connection: &Connection) -> rusqlite::Result<Space> {
    let of = |pragma: &str| -> rusqlite::Result<u64> {
        let value: i64 = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))?;
        Ok(u64::try_from(value).unwrap_or(0))
    };
    let size = of("page_size")?;
    let oldest: Option<i64> =
        connection.query_row("SELECT min(used) FROM entries", [], |row| row.get(0))?;
    Ok(Space {
        bytes: of("page_count")? * size,
        free: of("freelist_count")? * size,
        oldest: oldest.unwrap_or(i64::MAX),
    })
}
