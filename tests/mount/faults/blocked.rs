//! Programs that are blocked: signals end them, nobody else waits for them, and the mount can go.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvfs::apify::http::HttpOptions;
use kvfs::local::MemoryStore;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::store::Encoding;
use rustix::process::Signal;

use super::faulty;
use crate::support::mounted::{MountedSession, eventually, scripted, scripted_keys, scripted_path};
use crate::support::scripted::Answer;
use crate::support::served::soon;

/// Where the store leaves a program waiting.
enum Gate {
    /// In the call.
    Get,
    /// In the body, before this byte.
    Body(u64),
}

#[track_caller]
fn is_ended(signal: Signal, gate: Gate, command: &str) {
    let (store, mount) = faulty(|_| {});
    mount.works("cat a");
    match gate {
        Gate::Get => store.block(Call::Get),
        Gate::Body(at) => store.block_bodies(at),
    }
    let mut reader = mount.start_sh(command);
    assert!(
        match gate {
            Gate::Get => store.wait_blocked(Call::Get, 1, soon()),
            Gate::Body(_) => store.wait_bodies_blocked(1, soon()),
        },
        "nothing waits"
    );
    // Long enough for the kernel to be where it waits.
    std::thread::sleep(Duration::from_millis(100));
    assert!(reader.is_running());
    let start = Instant::now();
    reader.signal(signal);
    let output = reader.wait(Duration::from_secs(20));
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1500), "{signal:?}: {took:?}");
    assert_eq!(output.signal(), Some(signal.as_raw()), "{output:?}");
    assert!(output.stdout.is_empty());
    // The others go on, before and after the store does.
    assert_eq!(mount.works("cat a"), "first");
    eventually("its file is closed", || mount.counters().open_files == 0);
    store.release(Call::Get);
    store.release_bodies();
    assert_eq!(mount.works("cat b"), "second");
    // What was opened for a program that did not wait for it is closed again.
    eventually("all files are closed", || mount.counters().open_files == 0);
    assert_eq!(mount.counters().panics_total, 0);
    mount.unmount();
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_a_lookup() {
    is_ended(Signal::INT, Gate::Get, "exec cat b");
}

#[test]
fn a_kill_ends_a_program_blocked_in_a_lookup() {
    is_ended(Signal::KILL, Gate::Get, "exec cat b");
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_an_open() {
    is_ended(Signal::INT, Gate::Get, "ls -l >/dev/null; exec cat b");
}

#[test]
fn a_kill_ends_a_program_blocked_in_an_open() {
    is_ended(Signal::KILL, Gate::Get, "ls -l >/dev/null; exec cat b");
}

#[test]
fn ctrl_c_ends_a_program_blocked_in_a_read() {
    // Lookup and open are content with the headers of a large record.
    is_ended(Signal::INT, Gate::Body(0), "exec cat large");
    is_ended(
        Signal::INT,
        Gate::Body(2 << 20),
        "exec dd bs=1M skip=3 count=1 if=large",
    );
}

#[test]
fn a_kill_ends_a_program_blocked_in_a_read() {
    is_ended(Signal::KILL, Gate::Body(0), "exec cat large");
    is_ended(
        Signal::KILL,
        Gate::Body(2 << 20),
        "exec dd bs=1M skip=3 count=1 if=large",
    );
}

#[test]
fn ctrl_c_ends_a_program_that_handles_it_while_blocked_in_a_read() {
    let (store, mount) = faulty(|_| {});
    mount.works("ls -l");
    store.block_bodies(0);
    let program = mount.beside().join("reader.py");
    fs::write(
        &program,
        "import os\nfd = os.open('large', os.O_RDONLY)\ntry: os.read(fd, 100)\nexcept KeyboardInterrupt: print('interrupted')\n",
    )
    .expect("a program");
    let reader = mount.start_sh(&format!("exec $PYTHON {}", program.display()));
    assert!(store.wait_bodies_blocked(1, soon()));
    std::thread::sleep(Duration::from_millis(150));
    let start = Instant::now();
    reader.signal(Signal::INT);
    let output = reader.wait(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(5)); // the deadline is far later
    assert_eq!(output.text(), "interrupted", "{output:?}");
    store.release_bodies();
}

#[test]
fn ctrl_c_ends_a_listing_that_waits() {
    let (store, mount) = faulty(|_| {});
    store.block(Call::List);
    let reader = mount.start_sh("exec ls");
    assert!(store.wait_blocked(Call::List, 1, soon()));
    std::thread::sleep(Duration::from_millis(150));
    let start = Instant::now();
    reader.signal(Signal::INT);
    let output = reader.wait(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(5)); // the deadline is far later
    assert_eq!(output.signal(), Some(2));
    store.release(Call::List);
    assert_eq!(mount.works("ls"), "a\nb\nc\nlarge");
}

#[test]
fn a_hundred_blocked_readers_stop_nobody_else() {
    let memory = MemoryStore::new();
    for n in 0..130 {
        memory.insert(
            &format!("r{n:03}"),
            "text/plain",
            Encoding::Identity,
            "hello",
        );
    }
    let store = FaultStore::new(Arc::new(memory));
    let mount = MountedSession::with(Arc::new(store.clone()), |config| {
        config.deadline = Duration::from_secs(30);
    });
    mount.works("ls -l; cat r129");
    store.block(Call::Get);
    let mut readers = mount.start_sh("for n in $(seq 100 199); do cat r0${n#1} & done; wait");
    assert!(store.wait_blocked(Call::Get, 90, soon()), "no readers");
    std::thread::sleep(Duration::from_millis(200));
    let output = mount.sh("ls | wc -l; ls -l | wc -l; cat r129; stat r050 >/dev/null; df . >/dev/null; getfattr -d r129 >/dev/null; ! cat 'a b' 2>/dev/null");
    assert!(output.status.success(), "{output:?}");
    assert!(output.took < Duration::from_secs(2), "{:?}", output.took);
    assert!(readers.is_running());
    store.release(Call::Get);
    let output = readers.wait(Duration::from_secs(20));
    assert_eq!(output.text(), "hello".repeat(100));
}

#[test]
fn a_mount_can_be_ended_while_readers_wait() {
    let (store, mount) = faulty(|_| {});
    mount.works("ls");
    store.block(Call::Get);
    let reader = mount.start_sh("exec cat b");
    assert!(store.wait_blocked(Call::Get, 1, soon()));
    rustix::mount::unmount(
        mount.path(),
        rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH,
    )
    .expect("an unmount by force");
    let output = reader.wait(Duration::from_secs(5));
    assert!(!output.status.success());
    store.release(Call::Get);
    mount.ended();
}

/// A walk over the directory has records fetched ahead, as many at a time as may be; the server
/// answers none of them. Who asks for another record is not behind them.
#[test]
fn a_queue_of_records_fetched_ahead_keeps_nobody_waiting() {
    let stalled = Arc::new(AtomicBool::new(false));
    let held = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (gate, waiting) = (Arc::clone(&stalled), Arc::clone(&held));
    let names: Vec<String> = (0..200).map(|n| format!("r{n:03}")).collect();
    let listed = names.clone();
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            let keys: Vec<(&str, u64)> = listed.iter().map(|name| (name.as_str(), 5)).collect();
            return scripted_keys(&keys);
        }
        let is_ahead = (60..180).any(|n| seen.path() == scripted_path(&format!("r{n:03}")));
        if is_ahead && gate.load(Ordering::SeqCst) {
            waiting.fetch_add(1, Ordering::SeqCst);
            return Answer::silence();
        }
        Answer::new(200, "hello")
    });
    let mount =
        MountedSession::scripted(&server, HttpOptions::new(Duration::from_secs(30)), |_| {});
    mount.works("ls");
    stalled.store(true, Ordering::SeqCst);
    // The window grows to all that may be fetched at once.
    mount.works("for n in $(seq 0 59); do cat $(printf r%03d $n); done");
    eventually("many records are fetched ahead", || {
        held.load(Ordering::SeqCst) >= 40
    });
    let output = mount.sh("cat r190 r191; stat r192 > /dev/null; ls | wc -l");
    assert_eq!(output.text(), "hellohello200", "{output:?}");
    assert!(output.took < Duration::from_secs(5), "{:?}", output.took);
    // These wait still: they were no part of it.
    assert!(mount.counters().prefetched < 60 + 50);
}
