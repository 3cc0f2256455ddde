//! Large records: written in bounded memory, and refused early where they are too large.

use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use kvfs::base::units::ByteSize;

use super::{Writable, writing};
use crate::daemon::User;
use crate::support::long;
use crate::support::mounted::{Running, eventually, pattern};
use crate::support::served::{TOKEN, TestServer};

/// What the daemon may take beyond what it has after mounting, however large the record.
const MEMORY: u64 = 64 << 20;

/// Returns the most memory that a process has had so far, in bytes.
fn peak_memory(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|peak| peak.split_whitespace().next());
    peak.and_then(|kib| kib.parse::<u64>().ok()).expect("VmHWM") << 10
}

/// Returns by how much that has grown. The kernel counts roughly: it may tell less than before.
fn grown_by(pid: &str, before: u64) -> u64 {
    peak_memory(pid).saturating_sub(before)
}

#[test]
fn a_large_file_is_written_with_flat_memory() {
    let size: u64 = if long() { 2 << 30 } else { 256 << 20 };
    let server = TestServer::start();
    let user = User::new();
    let mut command = user.command(&["mount", "--rw", &server.entry.id, "mnt"]);
    command
        .env("APIFY_CLIENT_BASE_URL", server.url())
        .env("APIFY_TOKEN", TOKEN);
    let mounted = Running::start(&mut command).wait(Duration::from_secs(30));
    assert!(mounted.status.success(), "{}", mounted.stderr);
    let before = peak_memory(&user.pid());
    // Blocks that differ from each other and do not fit the requests that carry them.
    let block = pattern(1_000_003);
    let written = user.path("mnt/large");
    let file = File::create(&written).expect("a file");
    let mut left = size;
    let mut copies = 0;
    while left > 0 {
        let part = (block.len() as u64).min(left) as usize;
        std::io::Write::write_all(&mut &file, &block[..part]).expect("a write");
        left -= part as u64;
        copies += 1;
    }
    file.sync_all().expect("the store has it");
    drop(file);
    let grown = grown_by(&user.pid(), before);
    assert!(grown < MEMORY, "{size} bytes took {grown} bytes of memory");
    let counts = server.counts();
    assert_eq!((counts.put, counts.bytes_received), (1, size));

    let mut stored = File::open(server.store_folder().join("large")).expect("the record");
    assert_eq!(stored.metadata().expect("metadata").len(), size);
    let mut read = vec![0; block.len()];
    for copy in 0..copies {
        let part = (block.len() as u64).min(size - copy * block.len() as u64) as usize;
        stored.read_exact(&mut read[..part]).expect("bytes");
        assert!(read[..part] == block[..part], "block {copy} is wrong");
    }
    // A change in its middle is stored with all the rest, which is at hand.
    let before = (server.counts().get, peak_memory(&user.pid()));
    let file = File::options().write(true).open(&written).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&file, b"CHANGED", size / 2).expect("a write");
    drop(file);
    eventually("the change is stored", || server.counts().put == 2);
    assert_eq!(
        server.counts().get,
        before.0,
        "what was written is read again"
    );
    assert_eq!(server.counts().bytes_received, 2 * size);
    let grown = grown_by(&user.pid(), before.1);
    assert!(grown < MEMORY, "a change took {grown} bytes of memory");
    user.works(&["unmount", "mnt"]);
}

#[test]
fn what_is_larger_than_allowed_is_refused_while_it_is_written() {
    let writable = Writable::mounted(|config| {
        writing(config).max_record_size = Some(ByteSize(1 << 20));
    });
    writable.program(
        "import errno
a = opened('a', NEW)
assert os.write(a, bytes(1 << 20)) == 1 << 20
assert errno_of(os.write, a, b'x') == errno.EFBIG
assert errno_of(os.ftruncate, a, (1 << 20) + 1) == errno.EFBIG
assert errno_of(os.posix_fallocate, a, 0, (1 << 20) + 1) == errno.EFBIG
os.close(a)
c = opened('a', os.O_WRONLY | os.O_TRUNC)
assert os.write(c, b'half') == 4
assert errno_of(os.pwrite, c, b'x', 1 << 20) == errno.EFBIG
assert errno_of(os.close, c) == errno.EFBIG",
        &["PUT a"],
    );
    writable.holds("a", vec![0; 1 << 20]);
    let said = writable.mount.fails("head -c 2000000 /dev/zero > b");
    assert!(said.contains("File too large"), "{said}");
}
