//! Disks under the cache that hang: reading goes on without them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::base::units::ByteSize;
use kvfs::local::memory::MemoryStore;
use kvfs::mount::build::DiskCacheConfig;
use kvfs::store::Encoding;

use crate::support::hanging::{DiskCall, HangingDisk};
use crate::support::mounted::{MountedSession, Output, Running, make_writable, pattern};

const DEADLINE: Duration = Duration::from_secs(6);
/// The longest that a command may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const SIZES: [usize; 4] = [10, 5_000, 300_000, 3_000_000];

fn store() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    for size in SIZES {
        for name in [format!("read{size}"), format!("new{size}")] {
            let bytes = pattern(size);
            store.insert(&name, "application/octet-stream", Encoding::Identity, bytes);
        }
    }
    store
}

/// A command that is running, and the bytes that it prints if it succeeds.
struct Started {
    script: String,
    running: Running,
    prints: Option<Vec<u8>>,
}

impl Started {
    fn new(mounted: &MountedSession, script: &str, prints: Option<Vec<u8>>) -> Self {
        Self {
            script: script.to_owned(),
            running: mounted.start_sh(script),
            prints,
        }
    }

    /// Waits for its end. It has printed the right bytes, or said that it has taken too long.
    #[track_caller]
    fn ends(self, case: &str) -> Result<(), String> {
        let Output {
            status,
            stdout,
            stderr,
            ..
        } = self.running.wait(LIMIT);
        if status.success() {
            if let Some(bytes) = self.prints {
                assert!(stdout == bytes, "{case}: {}: other bytes", self.script);
            }
            return Ok(());
        }
        assert!(
            stderr.contains("timed out"),
            "{case}: {}: {stderr}",
            self.script
        );
        Err(self.script)
    }
}

fn started(mounted: &MountedSession, names: &str) -> Vec<Started> {
    let cat = |size: &usize| {
        let script = format!("cat {names}{size}");
        Started::new(mounted, &script, Some(pattern(*size)))
    };
    SIZES.iter().map(cat).collect()
}

fn a_cache_disk_hangs(calls: &[DiskCall]) {
    let case = format!("{calls:?}");
    let disk = HangingDisk::new();
    let mounted = MountedSession::with(store(), |config| {
        // The kernel reads no file of the cache by itself.
        make_writable(config);
        config.deadline = DEADLINE;
        config.memory_cache = ByteSize(64 << 10);
        config.disk_cache = Some(DiskCacheConfig {
            dir: disk.path().join("cache"),
            size: ByteSize(1 << 30),
        });
    });
    for read in started(&mounted, "read") {
        read.ends(&case).expect("a disk that works");
    }
    disk.hang(calls);
    let mut reads = started(&mounted, "read");
    reads.extend(started(&mounted, "new"));
    // They need no disk.
    for script in ["ls", "stat read10 new10", "cat new10", "ls -l"] {
        let done = Started::new(&mounted, script, None).ends(&case);
        assert_eq!(done, Ok(()), "{case}");
    }
    for read in reads {
        // A reader of a download whose bytes the disk does not take may wait until its deadline.
        let waits = read.script.ends_with("new3000000") && calls.contains(&DiskCall::Write);
        let done = read.ends(&case);
        assert!(done.is_ok() || waits, "{case}: {done:?}");
    }
    disk.go_on();
    for names in ["read", "new"] {
        for read in started(&mounted, names) {
            read.ends(&case).expect("a disk that works again");
        }
    }
    mounted.unmount();
}

#[test]
fn what_reads_over_a_cache_disk_that_hangs_ends_in_time() {
    thread::scope(|scope| {
        for call in &DiskCall::ALL {
            scope.spawn(move || a_cache_disk_hangs(&[*call]));
        }
        scope.spawn(|| a_cache_disk_hangs(&DiskCall::ALL));
    });
}
