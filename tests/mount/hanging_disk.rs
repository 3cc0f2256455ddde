//! Disks under the cache that hang: reading goes on without them. Disks under the staging folder: no call
//! waits for them for longer than its deadline, and whatever needs none of them goes on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvfs::base::units::ByteSize;
use kvfs::local::memory::MemoryStore;
use kvfs::mount::build::DiskCacheConfig;
use kvfs::store::Encoding;

use crate::support::hanging::{DiskCall, HangingDisk};
use crate::support::mounted::{MountedSession, Output, Running, make_writable, pattern};

const DEADLINE: Duration = Duration::from_secs(12);
/// That of mounts of which the staging disk hangs: a command makes several calls.
const SHORT: Duration = Duration::from_secs(3);
/// The longest that all commands may take which change names, each of several calls.
const MOST: Duration = Duration::from_secs(90);
/// The longest that a command may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
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
        // A reader of a download whose bytes the disk does not take may wait until its deadline (29).
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

/// What needs the staging folder, of files that are written there and of others. The kernel makes,
/// renames and deletes one name after the other, and looks up none meanwhile.
const CHANGES: [&str; 13] = [
    "cat open >/dev/null",
    "cat open >/dev/null",
    "cat open >/dev/null",
    "cat open >/dev/null",
    "echo more >>open",
    "echo more >>open",
    "echo more >>read5000",
    "echo whole >read10",
    "truncate -s 3 new300000",
    "echo whole >fresh",
    "mv new10 moved",
    "mv closed renamed",
    "rm read300000",
];

fn a_staging_disk_hangs(calls: &[DiskCall], write_back: bool) {
    let case = format!("{calls:?} {write_back}");
    let disk = HangingDisk::new();
    let mounted = MountedSession::with(store(), |config| {
        make_writable(config);
        config.deadline = SHORT;
        if let Some(write) = &mut config.write {
            write.staging_dir = disk.path().join("staging");
            write.write_back = write_back;
        }
    });
    let open = File::create(mounted.file("open")).expect("a file");
    open.write_all_at(b"text", 0).expect("room");
    assert!(mounted.sh("echo text >closed").status.success());
    disk.hang(calls);
    // More at once than threads that answer the kernel.
    let mut changes: Vec<(&str, Running)> = CHANGES
        .map(|script| (script, mounted.start_sh(script)))
        .into();
    let mut others: Vec<(&str, Running)> =
        ["ls", "stat read5000 open", "cat new3000000 >/dev/null"]
            .map(|script| (script, mounted.start_sh(script)))
            .into();
    let begun = Instant::now();
    let late = |running: &mut Vec<(&'static str, Running)>, limit: Duration| -> Vec<&str> {
        while running.iter_mut().any(|(_, one)| one.is_running()) && begun.elapsed() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        let running = running.iter_mut();
        running
            .filter_map(|(script, one)| one.is_running().then_some(*script))
            .collect()
    };
    let late = [late(&mut others, MOST), late(&mut changes, MOST)];
    // Else what is late would not end.
    disk.go_on();
    assert!(
        late.concat().is_empty(),
        "{case}: past their deadline: {late:?}"
    );
    for (script, other) in others {
        let ended = other.wait(2 * MOST);
        assert!(ended.status.success(), "{case}: {script}: {}", ended.stderr);
    }
    drop(open);
    let again = mounted.sh("echo again >fresh && echo more >>open && cat fresh open");
    assert!(again.status.success(), "{case}: {}", again.stderr);
    mounted.unmount();
}

#[test]
fn no_call_waits_past_its_deadline_for_a_staging_disk_that_hangs() {
    for write_back in [false, true] {
        thread::scope(|scope| {
            for call in &DiskCall::ALL {
                scope.spawn(move || a_staging_disk_hangs(&[*call], write_back));
            }
            scope.spawn(move || a_staging_disk_hangs(&DiskCall::ALL, write_back));
        });
    }
}
