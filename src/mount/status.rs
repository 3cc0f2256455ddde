//! The state of a mount, for `kvfs status` and the attribute of the root.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::build::Mounted;
use crate::base::text;
use crate::staging::folder::scope_name;
use crate::upload::Uploads;

/// Gives the part of `kvfs status` that the mount itself knows.
pub type StatusSource = Arc<dyn Fn() -> Value + Send + Sync>;

impl Mounted {
    /// Returns where the status comes from.
    pub fn status_source(&self) -> StatusSource {
        let (store, metrics, config) = (
            Arc::clone(&self.store),
            Arc::clone(self.fs.metrics()),
            self.config.clone(),
        );
        let started = self.started;
        let uploads = self.uploads.clone();
        let scope = scope_name(&self.store.info().upload_scope);
        let freshness = Arc::clone(self.fs.records().freshness());
        Arc::new(move || {
            let info = store.info();
            let expires = info
                .expires
                .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
                .map(|at| at.as_secs());
            let mut status = serde_json::json!({
                "mount_point": config.mount_point.to_string_lossy(),
                "pid": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_s": started.elapsed().as_secs(),
                "store": config.open.reference.to_string(),
                "store_id": info.id,
                "store_name": info.name,
                "prefix": config.prefix,
                "collection": config.collection,
                "mode": if config.raw { "raw" } else { "decoded" },
                "access": if config.write.is_some() { "read-write" } else { "read-only" },
                "ttl_s": config.ttl.map(|ttl| ttl.as_secs_f64()),
                "held_current": freshness.status(),
                "signature_expires_unix_s": expires,
                "signature_expired": info.expires.map(|at| at <= SystemTime::now()),
                "staging_scope": scope,
                "uploads": uploads.as_ref().map(Uploads::status),
                "stats": metrics.snapshot(),
            });
            shorten(&mut status);
            status
        })
    }
}

/// The longest text in a status, in characters: keys, names and ids of a server may be of any length.
const LONGEST_TEXT: usize = 1024;

fn shorten(value: &mut Value) {
    match value {
        Value::String(whole) => {
            if let Cow::Owned(short) = text::short(whole, LONGEST_TEXT) {
                *whole = short;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_of_a_server_makes_a_status_large() {
        let long = "\u{1b}".repeat(10_000_000);
        let mut status = json!({"store_id": long, "uploads": {"items": [{"key": long}, 7, null]}});
        shorten(&mut status);
        assert!(status.to_string().len() < 2 * 6 * 1100);
        let mut status = json!({"store_id": "short"});
        shorten(&mut status);
        assert_eq!(status, json!({"store_id": "short"}));
    }
}
