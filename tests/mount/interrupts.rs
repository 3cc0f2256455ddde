//! Whoever waits for the store gets the prompt back when it is told to end: within 300 ms, whatever
//! it waits for and whether it is asked (Ctrl-C) or killed.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::local::MemoryStore;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::store::Encoding;
use rustix::process::Signal;

use crate::support::mounted::{MountedSession, eventually, make_writable, pattern};
use crate::support::served::soon;

/// The longest from the signal to the end of the program.
const PROMPT: Duration = Duration::from_millis(300);
/// A busy machine may be late now and then, but not each time.
const TRIES: usize = 5;

/// What a program waits for.
#[derive(Clone, Copy)]
enum Gate {
    Call(Call),
    /// The body of a record, from this byte on.
    Body(u64),
}

/// Changes a file and waits until the store has it. Signals do to it what they do to most programs.
const SYNCER: &str = "import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
fd = os.open('synced', os.O_WRONLY | os.O_CREAT)
os.write(fd, b'new')
os.fsync(fd)
";

/// Lengthens a file by its name.
const LENGTHENER: &str = "import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.truncate('a', os.stat('a').st_size + 1)
";

fn mounted(write_back: bool) -> (FaultStore, MountedSession) {
    // Each try is to wait for the store.
    mounted_for(write_back, &Arc::new(MemoryStore::new()), Duration::ZERO)
}

fn mounted_for(
    write_back: bool,
    memory: &Arc<MemoryStore>,
    ttl: Duration,
) -> (FaultStore, MountedSession) {
    for name in ["a", "b", "c", "d"] {
        memory.insert(name, "text/plain", Encoding::Identity, name);
    }
    memory.insert("large", "text/plain", Encoding::Identity, pattern(8 << 20));
    let store = FaultStore::new(Arc::<MemoryStore>::clone(memory));
    let mount = MountedSession::with(Arc::new(store.clone()), |config| {
        make_writable(config);
        if let Some(write) = &mut config.write {
            write.write_back = write_back;
        }
        config.deadline = Duration::from_secs(60);
        config.ttl = Some(ttl);
    });
    fs::write(mount.beside().join("new"), "new").expect("a file");
    fs::write(mount.beside().join("sync.py"), SYNCER).expect("a program");
    fs::write(mount.beside().join("longer.py"), LENGTHENER).expect("a program");
    (store, mount)
}

/// Ends a program with a signal while it waits; returns how long that took.
#[track_caller]
fn ended_in(
    store: &FaultStore,
    mount: &MountedSession,
    gate: Gate,
    command: &str,
    signal: Signal,
) -> Duration {
    match gate {
        Gate::Call(call) => store.block(call),
        Gate::Body(at) => store.block_bodies(at),
    }
    let mut program = mount.start_sh(&format!("exec {command}"));
    let waits = match gate {
        Gate::Call(call) => store.wait_blocked(call, 1, soon()),
        Gate::Body(_) => store.wait_bodies_blocked(1, soon()),
    };
    assert!(waits, "{command}: nothing waits");
    // Long enough for the kernel to be where it waits.
    std::thread::sleep(Duration::from_millis(50));
    assert!(program.is_running(), "{command}");
    let start = Instant::now();
    program.signal(signal);
    let output = program.wait(Duration::from_secs(20));
    let took = start.elapsed();
    assert_eq!(
        output.signal(),
        Some(signal.as_raw()),
        "{command}: {output:?}"
    );
    match gate {
        Gate::Call(call) => store.release(call),
        Gate::Body(_) => store.release_bodies(),
    }
    took
}

#[track_caller]
fn ends_at_once(gate: Gate, command: &str) {
    ends_at_once_in(&|| mounted(false), gate, command);
}

#[track_caller]
fn ends_at_once_in(mounted: &dyn Fn() -> (FaultStore, MountedSession), gate: Gate, command: &str) {
    for signal in [Signal::INT, Signal::KILL] {
        let (store, mount) = mounted();
        mount.works("ls -l > /dev/null; cat c");
        let mut took = Vec::new();
        while took.last().is_none_or(|last| *last >= PROMPT) {
            assert!(took.len() < TRIES, "{command}, {signal:?}: {took:?}");
            took.push(ended_in(&store, &mount, gate, command, signal));
        }
        // The others go on, and nothing is left open for the program.
        assert_eq!(mount.works("cat c"), "c");
        eventually("all files are closed", || mount.counters().open_files == 0);
        assert_eq!(mount.counters().panics_total, 0);
    }
}

#[test]
fn a_program_that_waits_in_stat_ends_at_once() {
    // Of a name that is listed, the listing tells.
    ends_at_once(Gate::Call(Call::Get), "stat missing");
}

#[test]
fn a_program_that_waits_in_open_ends_at_once() {
    ends_at_once(Gate::Call(Call::Get), "cat b");
}

#[test]
fn a_program_that_waits_in_read_ends_at_once() {
    ends_at_once(Gate::Body(0), "cat large");
    ends_at_once(Gate::Body(2 << 20), "dd bs=1M skip=3 count=1 if=large");
}

#[test]
fn a_program_that_waits_in_close_ends_at_once() {
    // A new file and an overwritten one.
    ends_at_once(Gate::Call(Call::Put), "cp ../beside/new made");
    ends_at_once(Gate::Call(Call::Put), "cp ../beside/new a");
}

#[test]
fn a_program_that_waits_in_fsync_ends_at_once() {
    for write_back in [false, true] {
        let mounted = || mounted(write_back);
        let (gate, command) = (Gate::Call(Call::Put), "$PYTHON ../beside/sync.py");
        ends_at_once_in(&mounted, gate, command);
    }
}

#[test]
fn a_program_that_lists_deletes_or_renames_ends_at_once() {
    ends_at_once(Gate::Call(Call::List), "ls");
    ends_at_once(Gate::Call(Call::Delete), "rm d");
    ends_at_once(Gate::Call(Call::Put), "mv b renamed");
}

#[test]
fn a_program_that_waits_in_truncate_ends_at_once() {
    ends_at_once(Gate::Call(Call::Put), "$PYTHON ../beside/longer.py");
}

/// The kernel may have the entry of the old name still, and the open wait while the rename goes on.
#[test]
fn what_is_written_to_a_name_whose_renaming_was_interrupted_stays_there() {
    for (write_back, other) in [
        (false, "echo x >> z"),
        (false, "echo x > z"),
        (true, "stat z"),
    ] {
        let memory = Arc::new(MemoryStore::new());
        let (store, mount) = mounted_for(write_back, &memory, Duration::from_secs(600));
        mount.works("ls -l > /dev/null; cat a");
        store.block(Call::Put);
        let renaming = mount.start_sh("exec mv a z");
        assert!(store.wait_blocked(Call::Put, 1, soon()));
        renaming.signal(Signal::INT);
        renaming.wait(Duration::from_secs(20));
        let writing = mount.start_sh("echo new > a && sync a");
        // Long enough for the kernel to be where it waits.
        std::thread::sleep(Duration::from_millis(100));
        let others = mount.start_sh(other);
        std::thread::sleep(Duration::from_millis(100));
        store.release(Call::Put);
        let written = writing.wait(Duration::from_secs(20));
        assert!(written.status.success(), "{other}: {written:?}");
        others.wait(Duration::from_secs(20));
        // The entry of the old name may have been looked up during the rename.
        mount.works("echo more >> a && sync a");
        let stored = |name| memory.bytes(name).map(|bytes| bytes.to_vec());
        assert_eq!(stored("a"), Some(b"new\nmore\n".to_vec()), "{other}");
        let renamed = stored("z").expect("the renamed one");
        assert!(
            [&b"a"[..], b"ax\n", b"x\n"].contains(&&*renamed),
            "{other}: {renamed:?}"
        );
    }
}

/// Its files are closed when it ends, and the store is not there to take what it wrote.
#[test]
fn a_program_with_unsaved_bytes_ends_at_once_and_they_are_stored_later() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut took = Vec::new();
        while took.last().is_none_or(|last| *last >= PROMPT) {
            assert!(took.len() < TRIES, "{signal:?}: {took:?}");
            took.push(unsaved_ended_in(signal));
        }
    }
}

fn unsaved_ended_in(signal: Signal) -> Duration {
    let (store, mount) = mounted(false);
    store.block(Call::Put);
    let program = mount.beside().join("writer.py");
    let text = "import os, time
fd = os.open('made', os.O_WRONLY | os.O_CREAT)
os.write(fd, b'new')
open('../beside/wrote', 'w')
time.sleep(60)";
    fs::write(&program, text).expect("a program");
    let program = mount.start_sh(&format!("exec $PYTHON {}", program.display()));
    eventually("it has written", || mount.beside().join("wrote").exists());
    let start = Instant::now();
    program.signal(signal);
    program.wait(Duration::from_secs(20));
    let took = start.elapsed();
    store.release(Call::Put);
    eventually("it is stored", || mount.sh("cat made").text() == "new");
    took
}
