//! Connections that wait for their next request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::connection::Connection;
use crate::apify::transport::{IDLE_CONNECTIONS, IDLE_TIMEOUT, Transport};

/// Connections that nobody uses.
#[derive(Debug, Default)]
pub struct Idle {
    connections: Mutex<Vec<(String, Connection, Instant)>>,
    /// Whether somebody will come and close those that have been idle for long.
    watched: AtomicBool,
}

impl Idle {
    /// Returns a connection to this server that is open and quiet.
    pub fn take(&self, server: &str) -> Option<Connection> {
        loop {
            let (_, mut connection, since) = {
                let mut connections = self.connections.lock();
                let last = connections.iter().rposition(|(of, ..)| of == server)?;
                connections.remove(last)
            };
            if since.elapsed() < IDLE_TIMEOUT && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection on which nothing is to come, for a while and up to a number.
    pub fn put(self: &Arc<Self>, server: String, connection: Connection, transport: &Transport) {
        let mut connections = self.connections.lock();
        let oldest = (connections.len() == IDLE_CONNECTIONS).then(|| connections.remove(0));
        connections.push((server, connection, Instant::now()));
        drop(connections);
        drop(oldest);
        if !self.watched.swap(true, Ordering::Relaxed) {
            transport.spawn(Self::watch(Arc::downgrade(self)));
        }
    }

    /// Closes what has been idle for long, until nothing is left.
    async fn watch(idle: Weak<Self>) {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT / 5).await;
            let Some(idle) = idle.upgrade() else { return };
            let mut old = Vec::new();
            let mut connections = idle.connections.lock();
            while connections
                .first()
                .is_some_and(|(.., since)| since.elapsed() >= IDLE_TIMEOUT)
            {
                old.push(connections.remove(0));
            }
            if connections.is_empty() {
                idle.watched.store(false, Ordering::Relaxed);
                return;
            }
        }
    }
}
