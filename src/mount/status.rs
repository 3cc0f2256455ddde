//! The state of a mount, for `kvfs status` and the attribute of the root.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::build::Mounted;
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
        let freshness = Arc::clone(self.fs.records().freshness());
        Arc::new(move || {
            let info = store.info();
            let expires = info
                .expires
                .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
                .map(|at| at.as_secs());
            serde_json::json!({
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
                "uploads": uploads.as_ref().map(Uploads::status),
                "stats": metrics.snapshot(),
            })
        })
    }
}
