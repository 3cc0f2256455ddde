//! The uploader against a store that fails on demand.

mod restore;
mod search;
mod unanswered;
mod uploading;

use std::os::unix::fs::FileExt;

use jiff::Timestamp;

use super::*;
use crate::base::clock::{Deadline, SystemClock};
use crate::local::MemoryStore;
use crate::local::fault::{Call, FaultStore};
use crate::staging::folder::StoreFile;
use crate::staging::{Pending, StagingConfig, StagingFolder};
use crate::store::reference::StoreRef;
use crate::store::{Encoding, ErrorKind};

struct Bench {
    memory: Arc<MemoryStore>,
    store: FaultStore,
    dir: tempfile::TempDir,
    folder: Arc<StagingFolder>,
    uploader: Arc<Uploader>,
    metrics: Arc<Metrics>,
    delay: Duration,
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

fn open(dir: &tempfile::TempDir) -> Arc<StagingFolder> {
    StagingFolder::open(&StagingConfig {
        dir: dir.path().join("staging"),
        scope: "scope".into(),
        store: StoreFile {
            reference: "here".into(),
            open: StoreRef::Directory("/here".into()),
            api_url: None,
        },
        limit: None,
    })
    .expect("a staging folder")
}

fn uploader(
    store: &FaultStore,
    folder: &StagingFolder,
    metrics: &Arc<Metrics>,
    delay: Duration,
) -> Arc<Uploader> {
    Uploader::new(
        Arc::new(store.clone()),
        Arc::clone(folder.journal()),
        UploaderConfig {
            parallel: 4,
            first_delay: delay,
            max_delay: 20 * delay,
            ..UploaderConfig::new(Duration::from_secs(10))
        },
        Arc::new(SystemClock),
        Arc::clone(metrics),
    )
}

/// An observer that is not there.
fn no_observer() -> Weak<dyn UploadObserver> {
    struct NoObserver;
    impl UploadObserver for NoObserver {
        fn uploaded(&self, _: &JournalEntry, _: &Arc<File>, _: &RecordMeta) {}
        fn failed(&self, _: &JournalEntry, _: &StoreError) {}
    }
    Weak::<NoObserver>::new()
}

impl Bench {
    fn new() -> Self {
        Self::trying_again_after(Duration::from_millis(1))
    }

    /// One that tries nothing again before a program waits for it.
    fn patient() -> Self {
        Self::trying_again_after(Duration::from_secs(3600))
    }

    fn trying_again_after(delay: Duration) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let store = FaultStore::new(Arc::clone(&memory) as Arc<dyn Store>);
        let dir = tempfile::tempdir().expect("a folder");
        let folder = open(&dir);
        let metrics = Arc::new(Metrics::default());
        let uploader = uploader(&store, &folder, &metrics, delay);
        uploader.start(no_observer());
        Self {
            memory,
            store,
            dir,
            folder,
            uploader,
            metrics,
            delay,
        }
    }

    fn close(&self, name: &str, text: &str) -> EntryId {
        self.close_if(name, text, None)
    }

    fn close_if(&self, name: &str, text: &str, if_match: Option<crate::store::ETag>) -> EntryId {
        let file = self.folder.new_file().expect("a staging file");
        file.write_all_at(text.as_bytes(), 0).expect("room");
        let pending = Pending {
            key: key(name),
            content_type: Some("text/plain".into()),
            encoding: Encoding::Identity,
            if_match,
            if_absent: false,
            size: text.len() as u64,
            is_new: false,
            closed_at: Timestamp::now(),
            why: Why::WriteBack,
            attempts: 0,
            unanswered: Default::default(),
            began: None,
        };
        self.submit(&file, pending, soon()).expect("journalled")
    }

    fn submit(&self, file: &File, pending: Pending, deadline: Deadline) -> io::Result<EntryId> {
        let upload = Upload {
            id: self.folder.journal().stamp(),
            pending,
            file,
        };
        let how = Submission {
            durable: true,
            ..Submission::default()
        };
        let submitted = self
            .uploader
            .submit(&upload, how, deadline, |_, _| true, |_| ())?;
        Ok(submitted.expect("it was wanted"))
    }

    fn newest(&self, name: &str) -> Option<JournalEntry> {
        self.folder.journal().of_key(&key(name)).pop()
    }

    fn etag(&self, name: &str) -> Option<crate::store::ETag> {
        self.memory.head(&key(name), soon()).expect("a record").etag
    }

    /// What `kill -9` and the next mount do.
    fn restart(&mut self) {
        self.uploader.stop();
        self.store.release(Call::Put);
        while Arc::strong_count(&self.uploader) > 1 {
            std::thread::yield_now();
        }
        let spare = tempfile::tempdir().expect("a folder");
        self.folder = open(&spare);
        self.uploader = uploader(&self.store, &self.folder, &self.metrics, self.delay);
        self.folder = open(&self.dir);
        self.uploader = uploader(&self.store, &self.folder, &self.metrics, self.delay);
        self.uploader.start(no_observer());
    }

    fn text(&self, name: &str) -> Option<String> {
        let bytes = self.memory.bytes(name)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Waits until an upload of a key has failed and is to be tried again later.
fn put_off(bench: &Bench, name: &str) {
    let key = key(name);
    let deadline = soon();
    let waits = || {
        let pending = bench.uploader.pending();
        pending.iter().any(|upload| {
            upload.entry.pending.key == key && matches!(upload.state, Progress::Retrying(..))
        })
    };
    while !waits() {
        assert!(deadline.remaining().is_some(), "it is not tried again");
        std::thread::yield_now();
    }
}
