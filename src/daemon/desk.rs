//! Handles control requests on a mount: share, refresh, warm, trace. [`super::serve`] unmounts and
//! reports the state.

use std::ffi::OsStr;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::base::clock::{Deadline, Wait};
use crate::daemon::control::{Answer, Progress};
use crate::fs::warm::Wanted;
use crate::fs::{FsError, KvFs};
use crate::store::{Key, Store};

/// The silence after which a follower gets a sign of life.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Operations told at once.
const BATCH: usize = 500;

/// The mount as the control socket shows it.
#[derive(Clone)]
pub struct Desk {
    fs: Arc<KvFs>,
    store: Arc<dyn Store>,
    /// The longest that one answer of the store, or of the kernel, is waited for.
    deadline: Duration,
    /// What a link to the store would show beyond what is mounted.
    narrowed: bool,
    /// Whether a request is invalidating the kernel's caches at the moment.
    forgetting: Arc<AtomicBool>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    /// Makes the desk of a mount; `narrowed` says that it shows only a part of its store.
    pub fn new(fs: Arc<KvFs>, store: Arc<dyn Store>, deadline: Duration, narrowed: bool) -> Self {
        Self {
            fs,
            store,
            deadline,
            narrowed,
            forgetting: Arc::default(),
        }
    }

    /// Makes a link to the file of that name, or to the store.
    pub fn share(&self, name: Option<&str>, expires_unix_s: Option<u64>) -> Answer {
        let key = match name.map(|name| (name, self.key(name))) {
            None => None,
            Some((_, Some(key))) => {
                let wait = Wait::Until(Deadline::after(self.deadline));
                // A link to nothing helps no one.
                match self.fs.check_exists(&key, wait) {
                    Ok(()) => Some(key),
                    Err(FsError::NoEntry) => return no_such_file(key.as_str()),
                    Err(error) => return Answer::Failed(self.fs.explain(&error)),
                }
            }
            Some((name, None)) => return no_such_file(name),
        };
        let expires =
            expires_unix_s.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        match self.store.shared_url(key.as_ref(), expires) {
            Some(url) => Answer::Done(json!({
                "url": url.expose(),
                "shows_more": key.is_none() && self.narrowed,
            })),
            None => Answer::Failed(
                "the signing key of the store is not known: the API shows it only to accounts that \
                 may write to the store"
                    .into(),
            ),
        }
    }

    /// Forgets what is cached of these files, or of all. Of files of which nothing was cached the store
    /// is asked whether they are there.
    pub fn refresh(&self, names: &[String]) -> Answer {
        let keys: Option<Vec<Key>> = names.iter().map(|name| self.key(name)).collect();
        let Some(keys) = keys else {
            let unknown = names.iter().find(|name| self.key(name).is_none());
            return no_such_file(unknown.map_or("", |name| name));
        };
        let keys = (!names.is_empty()).then_some(keys);
        if self.forgetting.swap(true, Ordering::AcqRel) {
            return Answer::Failed("another refresh of this mount has not ended yet".into());
        }
        let forgotten = self.fs.invalidate(keys.as_deref());
        let contents = forgotten.contents;
        if contents == 0
            && let Some(key) = keys.iter().flatten().find(|key| self.is_missing(key))
        {
            self.forgetting.store(false, Ordering::Release);
            return no_such_file(key.as_str());
        }
        let (sender, told) = mpsc::channel();
        let forgetting = Arc::clone(&self.forgetting);
        // A thread that holds no lock and answers no request: it may wait for reads under way.
        let started = thread::Builder::new()
            .name("kvfs-notifier".into())
            .spawn(move || {
                let files = forgotten.tell_kernel();
                forgetting.store(false, Ordering::Release);
                // The asking process may have gone.
                let _ = sender.send(files);
            });
        if let Err(error) = started {
            self.forgetting.store(false, Ordering::Release);
            return Answer::Failed(format!("cannot start a thread: {error}"));
        }
        match told.recv_timeout(self.deadline) {
            Ok(files) => Answer::Done(json!({ "contents": contents, "kernel_files": files })),
            Err(_) => Answer::Failed(
                "the caches are empty, but the kernel still waits for reads under way before it \
                 forgets its pages"
                    .into(),
            ),
        }
    }

    /// Fetches ahead, telling how far it has come.
    pub fn warm(&self, wanted: &Wanted, progress: &mut Progress<'_>) -> Answer {
        let told = self.fs.warm(wanted, &mut |now| {
            let Ok(now) = serde_json::to_value(now) else {
                return false;
            };
            progress.send(now).is_ok()
        });
        match told.map(|told| serde_json::to_value(&told)) {
            Ok(Ok(told)) => Answer::Done(told),
            Ok(Err(error)) => Answer::Failed(error.to_string()),
            Err(error) => Answer::Failed(self.fs.explain(&error)),
        }
    }

    /// Sends operations until the follower hangs up, or `is_over`.
    pub fn trace(&self, progress: &mut Progress<'_>, is_over: &dyn Fn() -> bool) -> Answer {
        let follower = self.fs.metrics().tracer.follow();
        // Says that nothing is missed from now on.
        let mut told = progress.send(json!({ "events": [], "dropped": 0 }));
        while told.is_ok() && !is_over() {
            let (events, dropped) = follower.next(HEARTBEAT);
            told = progress.send(json!({ "events": [], "dropped": dropped }));
            for batch in events.chunks(BATCH) {
                if told.is_ok() {
                    told = progress.send(json!({ "events": batch, "dropped": 0 }));
                }
            }
        }
        Answer::Done(Value::Null)
    }

    /// Returns whether the store says that there is no such record: a typing error, most likely.
    fn is_missing(&self, key: &Key) -> bool {
        let wait = Wait::Until(Deadline::after(self.deadline));
        matches!(self.fs.check_exists(key, wait), Err(FsError::NoEntry))
    }

    fn key(&self, name: &str) -> Option<Key> {
        self.fs.key_named(OsStr::new(name))
    }
}

fn no_such_file(name: &str) -> Answer {
    Answer::Missing(format!("there is no file '{name}' in the mount"))
}
