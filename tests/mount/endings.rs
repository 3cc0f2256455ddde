//! Mounts that are taken away, and daemons that are told to end again and again, while files are
//! written and uploaded: what was closed is in the store or can be recovered, whole.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::daemon::soon;
use super::write_back::{Writer, is_zombie};
use crate::support::mounted::{PYTHON, Running, pattern};

/// Uploads take so long that they are under way when something happens.
const LATENCY: Duration = Duration::from_millis(300);
/// Writes half of a file, waits, writes the rest and closes it; says what closing answered.
const SLOW_WRITER: &str = "import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b'first half, ')
open(sys.argv[2] + '/wrote', 'w').close()
while not os.path.exists(sys.argv[2] + '/go'): time.sleep(0.01)
try:
    os.write(fd, b'second half')
    os.close(fd)
    print('stored')
except OSError as error: print('refused', error.errno)
";

fn slow() -> Writer {
    Writer::new(|config| config.knobs.latency = LATENCY)
}

/// Waits until a daemon has ended, and checks what it has left behind.
#[track_caller]
fn ends_clean(writer: &Writer, pid: u32) {
    soon(|| !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
    soon(|| writer.user.nothing_left());
    let staging = writer.user.path(".local/state/kvfs/staging/kvfs-1");
    for scope in fs::read_dir(staging).into_iter().flatten().flatten() {
        for owner in fs::read_dir(scope.path()).into_iter().flatten().flatten() {
            for file in fs::read_dir(owner.path()).into_iter().flatten().flatten() {
                let path = file.path();
                let is_entry = path.with_extension("json").exists();
                let is_lock = path.file_name().is_some_and(|name| name == "lock");
                assert!(is_lock || is_entry, "{} is left", path.display());
            }
        }
    }
}

/// Everything that was closed is there, if need be with the help of `kvfs recover`.
#[track_caller]
fn is_stored(writer: &Writer, name: &str, bytes: &[u8]) {
    if writer.stored(name).as_deref() != Some(bytes) && writer.waiting() > 0 {
        writer.works(&["recover", "--upload"]);
    }
    assert!(writer.stored(name).as_deref() == Some(bytes), "{name}");
}

#[test]
fn a_mount_that_is_taken_away_while_files_are_open_and_uploads_run_loses_nothing_that_was_closed() {
    let large = pattern(2_000_000);
    for write_back in [false, true] {
        for how in ["umount -l mnt", "kvfs unmount --lazy mnt"] {
            let writer = slow();
            let args: &[&str] = if write_back {
                &[]
            } else {
                &["--scratch-delay", "1s"]
            };
            if write_back {
                writer.mount(args);
            } else {
                let store = format!("~{}", crate::support::served::STORE);
                writer.works(&[&["mount", "--rw"], args, &[&store, "mnt"]].concat());
            }
            let pid: u32 = writer.user.pid().parse().expect("a number");
            let home = writer.user.path("");
            fs::write(writer.user.path("writer.py"), SLOW_WRITER).expect("a program");
            let script = format!("exec {} writer.py mnt/open .", *PYTHON);
            let open = Running::start(Command::new("sh").args(["-c", &script]).current_dir(&home));
            soon(|| writer.user.path("wrote").exists());
            // Its close waits for the upload, or has put it into the journal.
            fs::write(writer.user.path("large"), &large).expect("a file");
            let closing = Running::start(
                Command::new("cp")
                    .args(["large", "mnt/closed"])
                    .current_dir(&home),
            );
            soon(|| writer.server.counts().put > 0 || write_back && writer.waiting() > 0);
            let taken = if how.starts_with("kvfs") {
                writer.command(&["unmount", "--lazy", "mnt"]).output()
            } else {
                Command::new("umount")
                    .args(["-l", "mnt"])
                    .current_dir(&home)
                    .output()
            };
            let taken = taken.expect("it runs");
            let said = String::from_utf8_lossy(&taken.stderr);
            let waits = write_back && said.contains("not in the store yet");
            assert!(taken.status.success() || waits, "{how}: {said}");
            fs::write(writer.user.path("go"), "").expect("a file");
            let said = open.wait(Duration::from_secs(30)).text();
            assert_eq!(said, "stored", "{how}, {write_back}");
            let closed = closing.wait(Duration::from_secs(30));
            assert!(closed.status.success(), "{how}, {write_back}: {closed:?}");
            ends_clean(&writer, pid);
            is_stored(&writer, "open", b"first half, second half");
            is_stored(&writer, "closed", &large);
            assert_eq!(writer.waiting(), 0);
        }
    }
}

/// What else there is when a storm of signals begins, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Plain,
    /// A file is open, so that the mount is not gone with the first signal.
    InUse,
    /// The server takes nothing, so that waiting for uploads has no end.
    Becalmed,
    /// It cannot be caught.
    Kill,
}

#[test]
fn a_storm_of_signals_ends_the_daemon_and_loses_nothing_that_was_closed() {
    let pause = Duration::from_millis(30);
    let storms = [
        (Duration::ZERO, Weather::Plain),
        (pause, Weather::Plain),
        (pause, Weather::InUse),
        (pause, Weather::Becalmed),
        (Duration::ZERO, Weather::Kill),
    ];
    thread::scope(|scope| {
        for (gap, weather) in storms {
            scope.spawn(move || storm(gap, weather));
        }
    });
}

/// As many as are uploaded at a time.
const FILES: usize = 8;

fn storm(gap: Duration, weather: Weather) {
    let writer = Writer::new(|config| match weather {
        // One for each file, and none for who uploads it later.
        Weather::Becalmed => {
            let rule = format!("delay=1h,method=PUT,count={FILES}");
            config.knobs.faults = vec![rule.parse().expect("a rule")];
        }
        _ => config.knobs.latency = LATENCY,
    });
    // Nothing but the signals is to end it.
    writer.mount(&[
        "--unmount-timeout",
        "1h",
        "--timeout",
        "1h",
        "--deadline",
        "1h",
    ]);
    let pid: u32 = writer.user.pid().parse().expect("a number");
    let files: Vec<(String, Vec<u8>)> = (0..FILES)
        .map(|n| (format!("k{n}"), pattern(1000 + 50_000 * n)))
        .collect();
    for (name, bytes) in &files {
        writer.write(name, bytes);
    }
    let open = (weather == Weather::InUse)
        .then(|| fs::File::open(writer.user.path("mnt/k0")).expect("a file"));
    if weather == Weather::Becalmed {
        soon(|| writer.server.counts().in_flight == FILES as u64);
    }
    let process = Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a pid");
    let signals = (0..60).map(|n| [Signal::TERM, Signal::INT, Signal::HUP][n % 3]);
    let kill = (weather == Weather::Kill).then_some(Signal::KILL);
    for signal in signals.chain(kill) {
        if kill_process(process, signal).is_err() {
            break;
        }
        thread::sleep(gap);
    }
    // Who keeps it open for longer is not waited for, and a killed daemon clears nothing away.
    if open.is_some() {
        soon(|| !writer.user.is_mounted());
        drop(open);
        soon(|| !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid));
    } else if weather != Weather::Kill {
        ends_clean(&writer, pid);
    }
    if writer.waiting() > 0 {
        writer.works(&["recover", "--upload"]);
    }
    for (name, bytes) in &files {
        is_stored(&writer, name, bytes);
    }
    assert_eq!(writer.waiting(), 0, "{weather:?}");
    // Whatever was left behind is in nobody's way.
    writer.mount(&[]);
    writer.works(&["unmount", "mnt"]);
    assert!(writer.user.nothing_left(), "{weather:?}");
}
