//! `--write-back`: what was closed survives kills and outages, and is seen at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::server::{Server, ServerConfig};
use kvfs::store::{ErrorKind, Store};

use super::daemon::{User, soon};
use crate::support::mounted::{MountedSession, close, eventually, make_writable, pattern};
use crate::support::served::{STORE, TOKEN, TestServer};

/// A user who mounts the store of a server.
pub(super) struct Writer {
    pub(super) user: User,
    pub(super) server: TestServer,
}

impl Writer {
    pub(super) fn new(change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self {
            user: User::new(),
            server: TestServer::start_with(change),
        }
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.user.command(args);
        command
            .env("APIFY_TOKEN", TOKEN)
            .env("APIFY_CLIENT_BASE_URL", self.server.url());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> (i32, String) {
        let output = self.command(args).output().expect("kvfs runs");
        let said = [output.stdout, output.stderr].concat();
        let code = output.status.code().expect("an exit code");
        (code, String::from_utf8_lossy(&said).into_owned())
    }

    #[track_caller]
    pub(super) fn works(&self, args: &[&str]) -> String {
        let (code, said) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {said}");
        said
    }

    #[track_caller]
    pub(super) fn mount(&self, more: &[&str]) {
        let store = format!("~{STORE}");
        let args = [&["mount", "--rw", "--write-back"], more, &[&store, "mnt"]].concat();
        self.works(&args);
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.user.path("mnt").join(name), bytes).expect("closed");
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.user.path("mnt").join(name)).expect("read")
    }

    pub(super) fn stored(&self, name: &str) -> Option<Vec<u8>> {
        stored(&*self.server.store(), name)
    }

    pub(super) fn kill(&self) {
        let pid: u32 = self.user.pid().parse().expect("a number");
        self.user.signal("-KILL");
        soon(|| !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
    }

    pub(super) fn waiting(&self) -> usize {
        let listed: Vec<serde_json::Value> =
            serde_json::from_str(&self.works(&["recover", "--json"])).expect("JSON");
        listed.len()
    }
}

pub(super) fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

fn stored(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    use crate::support::served::{key, soon};
    let found = store.get(&key(name), &Default::default(), soon()).ok()?;
    let kvfs::store::GetOutcome::Found(mut found) = found else {
        return None;
    };
    let mut bytes = Vec::new();
    found.body.read_to_end(&mut bytes).expect("a body");
    Some(bytes)
}

#[test]
fn what_was_closed_before_a_kill_is_shown_and_uploaded_by_the_next_mount() {
    let writer = Writer::new(|config| {
        config.knobs.faults = vec!["status=503,method=PUT,count=25".parse().expect("a rule")];
    });
    writer.mount(&["--deadline", "1s"]);
    let large = pattern(3_000_000);
    writer.write("large", &large);
    writer.write("small", b"first");
    writer.write("small", b"second");
    writer.write("gone", b"deleted");
    writer.write("before", b"renamed");
    let mnt = writer.user.path("mnt");
    fs::rename(mnt.join("before"), mnt.join("after")).expect("renamed");
    fs::remove_file(mnt.join("gone")).expect("deleted");
    writer.kill();
    assert_eq!(writer.stored("small"), None);
    // Of "small" there may be two: the first was perhaps just being sent.
    assert!((3..=4).contains(&writer.waiting()));

    writer.mount(&["--deadline", "1s"]);
    assert_eq!(writer.read("large"), large);
    assert_eq!(writer.read("small"), b"second");
    let mut names: Vec<_> = fs::read_dir(&mnt)
        .expect("a listing")
        .map(|entry| entry.expect("it").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["after", "large", "small"]);
    writer.works(&["sync", "mnt"]);
    assert_eq!(writer.stored("large"), Some(large.clone()));
    assert_eq!(writer.stored("small").as_deref(), Some(&b"second"[..]));
    assert_eq!(writer.stored("after").as_deref(), Some(&b"renamed"[..]));
    assert_eq!(
        (writer.stored("before"), writer.stored("gone")),
        (None, None)
    );
    assert_eq!(writer.read("large"), large);
    assert_eq!(writer.waiting(), 0);
    writer.works(&["unmount", "mnt"]);
    let staging = writer.user.path(".local/state/kvfs/staging/kvfs-1");
    let left: Vec<_> = fs::read_dir(&staging)
        .expect("it")
        .flat_map(|scope| fs::read_dir(scope.expect("it").path()).expect("it"))
        .map(|entry| entry.expect("it").file_name())
        .filter(|name| name != "lock" && name != "store.json")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn unmounting_says_what_is_left_and_recover_uploads_it_when_the_server_is_back() {
    let writer = Writer::new(|_| {});
    writer.mount(&["--deadline", "1s", "--unmount-timeout", "1s"]);
    // The names are known before the server is gone.
    let _ = fs::read_dir(writer.user.path("mnt"))
        .expect("a listing")
        .count();
    let address = writer.server.server.addr();
    let Writer { user, server } = writer;
    let TestServer {
        server,
        folder,
        entry,
    } = server;
    drop(server);
    fs::write(user.path("mnt/k"), "closed without a server").expect("closed");
    assert_eq!(
        fs::read(user.path("mnt/k")).expect("read"),
        b"closed without a server"
    );
    let (code, said) = {
        let (code, out, err) = user.run(&["sync", "mnt", "--timeout", "1s"]);
        (code, out + &err)
    };
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("1 file is not in the store yet"), "{said}");
    let start = Instant::now();
    let said = user.fails(1, &["unmount", "mnt"]);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(said.contains("uploading 1 file first"), "{said}");
    assert!(said.contains("unmounted"), "{said}");
    assert!(
        said.contains("1 file (23 B) not in the store yet; the bytes are safe in"),
        "{said}"
    );
    assert!(said.contains("kvfs recover --upload"), "{said}");
    assert!(user.nothing_left());

    let mut config = ServerConfig::new(folder.path());
    config.token = Some(kvfs::base::redact::Secret::new(TOKEN));
    config.listen = address;
    let server = Server::start(config).expect("it is back");
    let server = TestServer {
        server,
        folder,
        entry,
    };
    let writer = Writer { user, server };
    let said = writer.works(&["recover", "--upload"]);
    assert!(said.contains("uploaded 1 file"), "{said}");
    assert_eq!(
        writer.stored("k").as_deref(),
        Some(&b"closed without a server"[..])
    );
    assert_eq!(writer.waiting(), 0);
}

#[test]
fn sigterm_finishes_uploads() {
    let writer = Writer::new(|config| config.knobs.latency = Duration::from_millis(300));
    writer.mount(&[]);
    for n in 0..40 {
        writer.write(&format!("k{n}"), format!("text {n}").as_bytes());
    }
    let pid: u32 = writer.user.pid().parse().expect("a number");
    writer.user.signal("-TERM");
    soon(|| !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
    for n in 0..40 {
        assert_eq!(
            writer.stored(&format!("k{n}")),
            Some(format!("text {n}").into_bytes())
        );
    }
    assert_eq!(writer.waiting(), 0);
    assert_eq!(writer.server.counts().put, 40);
}

/// A mount of a store in memory that fails as it is told.
fn faulty(write_back: bool) -> (Arc<MemoryStore>, FaultStore, MountedSession) {
    let memory = Arc::new(MemoryStore::new());
    let faults = FaultStore::new(Arc::clone(&memory) as Arc<dyn Store>);
    let mount = MountedSession::with(Arc::new(faults.clone()), |config| {
        make_writable(config);
        if let Some(write) = &mut config.write {
            write.write_back = write_back;
        }
    });
    (memory, faults, mount)
}

#[test]
fn closing_does_not_wait_for_the_store_and_fsync_does() {
    let (memory, faults, mount) = faulty(true);
    faults.block(Call::Put);
    // Not in this process: what other tests fork meanwhile would close the file, too.
    mount.works("printf first > k");
    assert_eq!(fs::read(mount.file("k")).expect("read"), b"first");
    assert_eq!(fs::metadata(mount.file("k")).expect("it").len(), 5);
    assert_eq!(memory.bytes("k"), None);
    let gets = faults.calls(Call::Get);
    let mut sync = mount.start_sh("sync k && echo stored");
    eventually("the upload", || faults.calls(Call::Put) == 1);
    assert!(sync.is_running());
    faults.release(Call::Put);
    assert!(sync.wait(Duration::from_secs(20)).status.success());
    assert_eq!(memory.bytes("k").as_deref(), Some(&b"first"[..]));
    mount.works("printf second > k");
    assert_eq!(fs::read(mount.file("k")).expect("read"), b"second");
    mount.works("sync k");
    assert_eq!(memory.bytes("k").as_deref(), Some(&b"second"[..]));
    assert_eq!(faults.calls(Call::Put), 2);
    assert_eq!(faults.calls(Call::Get), gets, "what was written is known");
    assert_eq!(fs::read(mount.file("k")).expect("read"), b"second");
    assert_eq!(faults.calls(Call::Get), gets, "what was written is known");
}

#[test]
fn an_fsync_ends_though_the_file_is_closed_again_meanwhile() {
    let (memory, faults, mount) = faulty(true);
    faults.block(Call::Put);
    mount.works("printf first > k");
    let mut sync = mount.start_sh("sync k && echo stored");
    eventually("the upload", || faults.calls(Call::Put) == 1);
    assert!(sync.is_running());
    // Whichever is first: the kernel lets nobody change or close a file while it is synced.
    let second = mount.start_sh("printf second > k");
    faults.release(Call::Put);
    assert!(sync.wait(Duration::from_secs(20)).status.success());
    assert!(second.wait(Duration::from_secs(20)).status.success());
    assert_eq!(fs::read(mount.file("k")).expect("read"), b"second");
    mount.works("sync k");
    assert_eq!(memory.bytes("k").as_deref(), Some(&b"second"[..]));
    assert_eq!(faults.calls(Call::Put), 2);
}

#[test]
fn what_the_store_refuses_after_close_is_told_by_fsync_and_kept() {
    let (memory, faults, mount) = faulty(true);
    faults.fail_next(Call::Put, 1, ErrorKind::TooLarge);
    fs::write(mount.file("k"), "too large").expect("closed");
    eventually("the refusal", || mount.status()["uploads"]["kept"] == 1);
    let status = mount.status();
    assert_eq!(status["uploads"]["items"][0]["key"], "k");
    assert_eq!(status["uploads"]["items"][0]["state"], "kept");
    eventually("the name is gone", || !mount.file("k").exists());
    assert_eq!(memory.bytes("k"), None);
    faults.fail_next(Call::Put, 1, ErrorKind::TooLarge);
    mount.fails("printf text > k && sync k");
}

#[test]
fn a_file_that_is_closed_again_and_again_is_in_nobodys_way() {
    let (memory, faults, mount) = faulty(true);
    for n in 0..300 {
        fs::write(mount.file("k"), format!("text {n}")).expect("closed");
        if n % 3 == 0 {
            // So that uploads end at all moments of the next close.
            eventually("an upload", || faults.calls(Call::Put) > 0);
        }
    }
    mount.works("sync k");
    assert_eq!(memory.bytes("k").as_deref(), Some(&b"text 299"[..]));
    assert_eq!(mount.status()["uploads"]["kept"], 0);
}

#[test]
fn deleting_and_renaming_keep_the_order_of_what_is_on_its_way() {
    let (memory, faults, mount) = faulty(true);
    memory.insert(
        "stored",
        "text/plain",
        kvfs::store::Encoding::Identity,
        "old",
    );
    faults.block(Call::Put);
    fs::write(mount.file("deleted"), "text").expect("closed");
    fs::write(mount.file("stored"), "new").expect("closed");
    eventually("the uploads", || faults.calls(Call::Put) == 2);
    // Both have to wait for the uploads under way, which must not come after them.
    let mut removed = mount.start_sh("rm deleted && mv stored moved && echo done");
    assert!(removed.is_running());
    faults.release(Call::Put);
    assert!(removed.wait(Duration::from_secs(20)).status.success());
    assert_eq!(fs::read(mount.file("moved")).expect("read"), b"new");
    mount.works("sync moved");
    assert_eq!(memory.bytes("moved").as_deref(), Some(&b"new"[..]));
    assert_eq!(
        (memory.bytes("deleted"), memory.bytes("stored")),
        (None, None)
    );
    let names = mount.works("ls");
    assert_eq!(names.trim(), "moved");
}

/// Writes files until the mount is gone; returns what every name was closed with last, and what
/// was being written when it failed.
fn write_stream(mnt: &Path, round: u32, thread: u32, stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    for n in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("t{thread}-{}", n % 7);
        let len = usize::try_from((n * 7919 + thread) % 9000).expect("small");
        let mut text = format!("{round}/{thread}/{n}\n").into_bytes();
        text.resize(text.len() + len, b'a' + (n % 26) as u8);
        written.begun.insert(name.clone(), text.clone());
        let closed = fs::File::create(mnt.join(&name)).and_then(|mut file| {
            file.write_all(&text)?;
            // Only this tells what `close` answered.
            close(file)
        });
        if closed.is_err() {
            break;
        }
        written.begun.remove(&name);
        written.closed.insert(name, text);
    }
    written
}

#[derive(Default)]
struct Written {
    closed: BTreeMap<String, Vec<u8>>,
    begun: BTreeMap<String, Vec<u8>>,
}

/// `KVFS_CRASH_ROUNDS` says how often (`scripts/crash`); few where it does not.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "how long a test runs is for whoever runs it"
)]
fn no_closed_file_is_lost_however_often_the_mount_is_killed() {
    let rounds = std::env::var("KVFS_CRASH_ROUNDS").ok();
    let rounds: u32 = rounds.and_then(|text| text.parse().ok()).unwrap_or(5);
    let writer = Writer::new(|config| config.knobs.latency = Duration::from_millis(20));
    let mnt = writer.user.path("mnt");
    // What the store or the journal must have, and what else a name may be.
    let mut closed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut closes = 0;
    let mut seed = 88_172_645_463_325_252_u64;
    for round in 0..rounds {
        writer.mount(&[]);
        for (name, text) in &closed {
            assert_eq!(
                writer.read(name),
                *text,
                "round {round}: {name} after the remount"
            );
        }
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let span = Duration::from_millis(seed % 400);
        let stop = AtomicBool::new(false);
        let results: Vec<Written> = std::thread::scope(|scope| {
            let (mnt, stop) = (&mnt, &stop);
            let threads: Vec<_> = (0..3)
                .map(|thread| scope.spawn(move || write_stream(mnt, round, thread, stop)))
                .collect();
            std::thread::sleep(span);
            writer.kill();
            stop.store(true, Ordering::Relaxed);
            let ended = threads.into_iter().map(|thread| thread.join());
            ended.map(|written| written.expect("no panic")).collect()
        });
        let mut open = BTreeMap::new();
        for written in results {
            closes += written.closed.len();
            closed.extend(written.closed);
            open.extend(written.begun);
        }
        // Half of the time the next mount recovers, half of the time nobody but recover does.
        if round % 2 == 0 {
            let said = writer.works(&["recover", "--upload"]);
            assert_eq!(writer.waiting(), 0, "round {round}: {said}");
            for (name, text) in &mut closed {
                let found = writer
                    .stored(name)
                    .unwrap_or_else(|| panic!("round {round}: {name} is lost"));
                settle(round, name, text, &open, found);
            }
        } else {
            writer.mount(&[]);
            for (name, text) in &mut closed {
                let found = writer.read(name);
                settle(round, name, text, &open, found);
            }
            writer.works(&["sync", "mnt"]);
            for (name, text) in &closed {
                assert_eq!(
                    writer.stored(name).as_ref(),
                    Some(text),
                    "round {round}: {name}"
                );
            }
            writer.works(&["unmount", "mnt"]);
        }
        let listed: Vec<serde_json::Value> =
            serde_json::from_str(&writer.works(&["recover", "--json"])).expect("JSON");
        assert!(listed.is_empty(), "round {round}: {listed:?}");
    }
    writer.mount(&[]);
    println!("{rounds} kills, {closes} names closed before them, none lost");
}

/// What was being closed at the kill may be there or not, but never in part.
fn settle(
    round: u32,
    name: &str,
    closed: &mut Vec<u8>,
    open: &BTreeMap<String, Vec<u8>>,
    found: Vec<u8>,
) {
    if found != *closed {
        let begun = open.get(name).is_some_and(|begun| *begun == found);
        assert!(
            begun,
            "round {round}: {name} is torn or lost: {} bytes",
            found.len()
        );
        *closed = found;
    }
}
