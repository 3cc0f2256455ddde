//! Writing through real mounts of a real server: what is stored, under which keys and types, what
//! it costs in requests, and what programs are told when it goes wrong.

mod deadlines;
mod differential;
mod editors;
mod errors;
mod everyday;
mod exercisers;
mod given_up;
mod handles;
mod large;
mod others;
mod repeated;
mod stored_as;
mod stress;
mod tools;
mod types;
mod unanswered;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use kvfs::mount::build::{MountConfig, WriteSettings};
use kvfs::server::ServerConfig;
use kvfs::store::{Encoding, ErrorKind, GetOutcome, GetRequest, ListQuery, RecordMeta};

use crate::support::mounted::{MountedSession, make_writable};
use crate::support::served::{TestServer, key, soon};

/// A server and a mount of its store that can be written to.
struct Writable {
    mount: MountedSession,
    server: TestServer,
}

impl Writable {
    fn new() -> Self {
        Self::mounted(|_| {})
    }

    /// The same after the settings of the mount were changed.
    fn mounted(change: impl FnOnce(&mut MountConfig)) -> Self {
        Self::with(|_| {}, change)
    }

    /// The same after the settings of server and mount were changed.
    fn with(serve: impl FnOnce(&mut ServerConfig), change: impl FnOnce(&mut MountConfig)) -> Self {
        let server = TestServer::start_with(serve);
        let mount = MountedSession::served_with(&server, |config| {
            make_writable(config);
            change(config);
        });
        Self { mount, server }
    }

    /// Puts a record behind the server's back.
    fn put(&self, name: &str, content_type: &str, bytes: &[u8]) {
        self.server
            .put(name, content_type, Encoding::Identity, bytes);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.mount.file(name)
    }

    /// Runs a shell in the mount, and waits until the server has been asked to change exactly
    /// this: `PUT key` and `DELETE key`, in any order.
    #[track_caller]
    fn changes(&self, script: &str, expected: &[&str]) -> String {
        self.changed_by(script, expected, |mount| mount.works(script))
    }

    /// The same for anything else than a shell.
    #[track_caller]
    fn changed_by<T>(
        &self,
        what: &str,
        expected: &[&str],
        work: impl FnOnce(&MountedSession) -> T,
    ) -> T {
        let before = self.seen().len();
        let result = work(&self.mount);
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        let start = Instant::now();
        loop {
            let mut changes = self.seen().split_off(before);
            changes.sort_unstable();
            if changes == expected {
                return result;
            }
            // More will not become less.
            assert!(
                start.elapsed() < Duration::from_secs(10) && changes.len() <= expected.len(),
                "{what}: {changes:?} instead of {expected:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns which changes the server was asked for, in the order of its answers.
    fn seen(&self) -> Vec<String> {
        seen(&self.server)
    }

    /// Returns all keys of the store.
    fn keys(&self) -> Vec<String> {
        keys(&self.server)
    }

    /// Returns a record, past the server.
    fn stored(&self, name: &str) -> Option<(Vec<u8>, RecordMeta)> {
        let request = GetRequest::default();
        match self.server.store().get(&key(name), &request, soon()) {
            Ok(GetOutcome::Found(mut fetched)) => {
                let mut bytes = Vec::new();
                fetched.body.read_to_end(&mut bytes).expect("a body");
                Some((bytes, fetched.meta))
            }
            Ok(GetOutcome::NotModified) => unreachable!("no condition was set"),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Checks a record's bytes.
    #[track_caller]
    fn holds(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let (stored, bytes) = (self.stored(name), bytes.as_ref());
        let (stored, _) = stored.unwrap_or_else(|| panic!("no record {name}"));
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(
            stored == bytes,
            "{name} has {} bytes ({}) instead of {} ({})",
            stored.len(),
            shown(&stored),
            bytes.len(),
            shown(bytes)
        );
    }

    /// Checks a record's content type.
    #[track_caller]
    fn is_typed(&self, name: &str, content_type: &str) {
        let stored = self.stored(name);
        let (_, meta) = stored.unwrap_or_else(|| panic!("no record {name}"));
        assert_eq!(meta.content_type.as_deref(), Some(content_type), "{name}");
    }

    /// Unmounts, which ends all uploads, and checks that no change was asked for since, and which
    /// keys the store has.
    #[track_caller]
    fn leaves(self, expected: &[&str]) {
        let before = self.seen();
        let Self { mount, server } = self;
        mount.unmount();
        assert_eq!(seen(&server), before, "changes asked for while unmounting");
        assert_eq!(keys(&server), expected);
    }
}

/// Returns the settings about changes.
fn writing(config: &mut MountConfig) -> &mut WriteSettings {
    config
        .write
        .as_mut()
        .expect("a mount that can be written to")
}

fn seen(server: &TestServer) -> Vec<String> {
    let requests = server.server.requests();
    let changes = requests
        .iter()
        .filter(|request| request.method == "PUT" || request.method == "DELETE");
    let named = changes.map(|request| {
        let path = request.path.split('?').next().unwrap_or_default();
        let key = path.rsplit('/').next().unwrap_or_default();
        format!("{} {key}", request.method)
    });
    named.collect()
}

fn keys(server: &TestServer) -> Vec<String> {
    let page = server.store().list_page(&ListQuery::default(), soon());
    let items = page.expect("a page").items;
    let keys = items.iter().map(|item| item.key.as_str().to_owned());
    keys.collect()
}
