//! Stores that refuse: `close` and `fsync` say why, the bytes are kept, and the file can be written
//! again.

use std::time::Duration;

use kvfs::server::FaultRule;

use super::Writable;

/// A store that answers the first PUTs so.
fn refusing(rules: &[&str]) -> Writable {
    Writable::with(
        |config| {
            let rules = rules
                .iter()
                .map(|rule| rule.parse::<FaultRule>().expect("a rule"));
            config.knobs.faults = rules.collect();
        },
        |config| config.deadline = Duration::from_secs(5),
    )
}

#[test]
fn close_and_fsync_return_the_verdict_of_the_store() {
    for (status, errno) in [
        (413, "EFBIG"),
        (403, "EACCES"),
        (401, "EACCES"),
        (404, "ENOENT"),
        (402, "EDQUOT"),
        (400, "EIO"),
        (500, "EIO"),
    ] {
        let writable = refusing(&[&format!("status={status},method=PUT,key=bad*")]);
        let put = writable.mount.python(
            "import errno, os
def verdict(call, fd):
    try: call(fd)
    except OSError as error: return errno.errorcode[error.errno]
for name in ('bad1', 'bad2'):
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    assert os.write(fd, b'content') == 7
    if name == 'bad2': print(verdict(os.fsync, fd))
    print(verdict(os.close, fd))
with open('good', 'w') as f: f.write('good')
",
        );
        assert_eq!(put, [errno; 3].join("\n"), "{status}");
        writable.holds("good", "good");
        assert_eq!(writable.keys(), ["good"]);
        let errors = writable.mount.counters().last_errors;
        let about: Vec<_> = errors
            .iter()
            .filter_map(|error| error.key.as_deref())
            .collect();
        assert!(
            about.contains(&"bad1") && about.contains(&"bad2"),
            "{status}: {errors:?}"
        );
    }
}

#[test]
fn what_was_refused_can_be_written_again() {
    let writable = refusing(&["status=403,method=PUT,key=a,count=1"]);
    writable.put("a", "text/x-a", b"old");
    let said = writable
        .mount
        .fails("cp $BESIDE/../mnt/a b && echo new > $BESIDE/new && cp $BESIDE/new a");
    assert!(said.contains("Permission denied"), "{said}");
    writable.holds("a", "old");
    writable.changes("cp $BESIDE/new a", &["PUT a"]);
    writable.holds("a", "new\n");
    writable.is_typed("a", "text/x-a");
}

#[test]
fn a_descriptor_whose_flush_failed_goes_on() {
    let writable = refusing(&["status=413,method=PUT,key=a,count=2"]);
    writable.mount.python(
        "import errno, os
fd = os.open('a', os.O_RDWR | os.O_CREAT)
os.write(fd, b'x' * 10)
for attempt in range(2):
    try: os.fsync(fd)
    except OSError as error: assert error.errno == errno.EFBIG
    else: raise AssertionError('fsync worked')
os.ftruncate(fd, 5)
assert os.pread(fd, 99, 0) == b'xxxxx'
os.fsync(fd)
os.close(fd)
",
    );
    writable.holds("a", "xxxxx");
}

#[test]
fn failures_that_pass_are_retried_and_not_seen() {
    let writable = refusing(&[
        "status=503,method=PUT,key=a,count=2",
        "reset,method=PUT,key=b,count=1",
        "lose,method=PUT,key=c,count=1",
        "status=500,method=DELETE,key=d,count=1",
    ]);
    writable.put("d", "text/plain", b"d");
    writable
        .mount
        .works("echo a > a; echo b > b; echo c > c; rm d");
    for name in ["a", "b", "c"] {
        writable.holds(name, format!("{name}\n"));
    }
    assert_eq!(writable.keys(), ["a", "b", "c"]);
}

#[test]
fn a_record_that_cannot_be_deleted_stays_and_says_so() {
    let writable = refusing(&["status=403,method=DELETE"]);
    writable.put("a", "text/plain", b"a");
    let said = writable.mount.fails("rm -f a");
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(writable.mount.works("cat a; ls"), "aa");
    let said = writable.mount.fails("mv -f a b");
    assert!(said.contains("Permission denied"), "{said}");
    let after = writable.mount.sh("cat a; echo; cat b; echo; ls -l");
    assert_eq!(
        writable.mount.works("cat a b; ls"),
        "aaa\nb",
        "{after:?} {:?}",
        writable.seen()
    );
    assert_eq!(writable.keys(), ["a", "b"]);
}

#[test]
fn an_overwrite_of_what_changed_meanwhile_is_refused() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"one");
    writable.put("b", "text/plain", b"one");
    let fifo = |step: &str| writable.mount.beside().join(step);
    for step in ["opened", "changed"] {
        assert!(
            std::process::Command::new("mkfifo")
                .arg(fifo(step))
                .status()
                .expect("mkfifo")
                .success()
        );
    }
    let program = format!(
        "import errno, os
a, b, c = (os.open(name, os.O_RDWR | os.O_CREAT) for name in ('a', 'b', 'c'))
for fd in (a, b, c): os.pwrite(fd, b'mine', 0)
open({:?}, 'w').close()
open({:?}).close()
for fd in (a, b, c):
    try: os.close(fd)
    except OSError as error: print(errno.errorcode[error.errno])
    else: print('stored')
",
        fifo("opened"),
        fifo("changed"),
    );
    let file = writable.mount.beside().join("program.py");
    std::fs::write(&file, program).expect("a program");
    let running = writable
        .mount
        .start_sh(&format!("$PYTHON {}", file.display()));
    drop(std::fs::File::open(fifo("opened")).expect("opened"));
    writable.server.put_text("a", "theirs");
    drop(
        std::fs::OpenOptions::new()
            .write(true)
            .open(fifo("changed"))
            .expect("changed"),
    );
    let said = running.wait(Duration::from_secs(30));
    assert_eq!(said.text(), "ESTALE\nstored\nstored", "{}", said.stderr);
    writable.holds("a", "theirs");
    writable.holds("b", "mine");
    writable.holds("c", "mine");
}
