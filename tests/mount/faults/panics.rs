//! Panics, which cost their request an error and nothing else.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::local::MemoryStore;
use kvfs::store::{
    Encoding, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest, RecordMeta, Store,
    StoreInfo, Upload,
};

use crate::support::mounted::{MountedSession, eventually, make_writable};

/// A store whose calls panic while it is told so.
#[derive(Debug)]
struct Panicking {
    inner: MemoryStore,
    panics: AtomicBool,
    puts_panic: AtomicBool,
}

impl Panicking {
    fn perhaps(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "expected by this test");
    }
}

impl Store for Panicking {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> kvfs::store::Result<ListPage> {
        self.perhaps();
        self.inner.list_page(query, deadline)
    }

    fn head(&self, key: &Key, deadline: Deadline) -> kvfs::store::Result<RecordMeta> {
        self.perhaps();
        self.inner.head(key, deadline)
    }

    fn get(
        &self,
        key: &Key,
        request: &GetRequest,
        deadline: Deadline,
    ) -> kvfs::store::Result<GetOutcome> {
        self.perhaps();
        self.inner.get(key, request, deadline)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> kvfs::store::Result<RecordMeta> {
        assert!(
            !self.puts_panic.load(Ordering::SeqCst),
            "expected by this test"
        );
        self.inner.put(key, request, body, deadline)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> kvfs::store::Result<()> {
        self.inner.delete(key, deadline)
    }
}

#[test]
fn a_panic_costs_its_request_an_error_and_nothing_else() {
    let inner = MemoryStore::new();
    for name in ["a", "b"] {
        inner.insert(name, "text/plain", Encoding::Identity, name);
    }
    let store = Arc::new(Panicking {
        inner,
        panics: AtomicBool::new(false),
        puts_panic: AtomicBool::new(false),
    });
    let mount = MountedSession::of(store.clone());
    assert_eq!(mount.works("cat a"), "a");
    let open = fs::File::open(mount.file("a")).expect("a file");
    store.panics.store(true, Ordering::SeqCst);
    for script in ["cat b", "ls", "stat b"] {
        let complaint = mount.fails(script);
        assert!(
            complaint.contains("Input/output error"),
            "{script}: {complaint}"
        );
    }
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).expect("what is cached");
    assert_eq!(mount.works("cat a"), "a");
    assert!(mount.counters().panics_total >= 3);
    store.panics.store(false, Ordering::SeqCst);
    assert_eq!(mount.works("ls; cat b"), "a\nb\nb");
    drop(open);
    mount.unmount();
}

/// A thread of its own stores what is held back; nobody waits for its answers.
#[test]
fn a_panic_while_something_is_stored_later_is_counted_and_the_next_thing_is_stored() {
    for write_back in [false, true] {
        let store = Arc::new(Panicking {
            inner: MemoryStore::new(),
            panics: AtomicBool::new(false),
            puts_panic: AtomicBool::new(true),
        });
        let mount = MountedSession::with(store.clone(), |config| {
            make_writable(config);
            if let Some(write) = &mut config.write {
                write.write_back = write_back;
                write.scratch_delay = Duration::from_millis(100);
            }
        });
        let panics = || mount.counters().panics_total;
        fs::write(mount.file("a.tmp"), "held back").expect("written");
        eventually("a panic", || panics() > 0);
        store.puts_panic.store(false, Ordering::SeqCst);
        fs::write(mount.file("b.tmp"), "held back").expect("written");
        eventually("it is stored", || store.inner.bytes("b.tmp").is_some());
    }
}
