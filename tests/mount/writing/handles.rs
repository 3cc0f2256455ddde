//! Several descriptors on one file, from one program or several: what they see of each other, and
//! which close stores what.

use std::fs;

use super::Writable;

/// What the Python programs below begin with.
const PRELUDE: &str = "import fcntl, mmap, os, sys
def opened(name, flags=os.O_RDWR): return os.open(name, flags, 0o644)
def all_of(name):
    with open(name, 'rb') as f: return f.read()
def errno_of(call, *args):
    try: call(*args)
    except OSError as error: return error.errno
    raise AssertionError('it worked')
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
";

impl Writable {
    /// Runs a Python program in the mount that changes the store exactly so.
    #[track_caller]
    pub(super) fn program(&self, program: &str, expected: &[&str]) -> String {
        self.changed_by(program, expected, |mount| {
            mount.python(&format!("{PRELUDE}{program}"))
        })
    }
}

#[test]
fn what_one_descriptor_wrote_all_others_read_before_it_is_closed() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"0123456789");
    writable.program(
        "r = opened('a', os.O_RDONLY)
assert os.read(r, 3) == b'012'
w = opened('a')
os.pwrite(w, b'XY', 4)
assert os.pread(r, 10, 0) == b'0123XY6789'
assert all_of('a') == b'0123XY6789'
os.pwrite(w, b'END', 20)
assert os.stat('a').st_size == os.fstat(r).st_size == 23
assert os.pread(r, 99, 8) == b'89' + bytes(10) + b'END'
os.ftruncate(w, 5)
assert os.stat('a').st_size == os.fstat(r).st_size == 5
assert os.pread(r, 99, 0) == all_of('a') == b'0123X'
m = mmap.mmap(r, 5, prot=mmap.PROT_READ)
os.pwrite(w, b'M', 0)
assert m[:] == b'M123X'
new = opened('new', NEW)
os.write(new, b'new')
assert all_of('new') == b'new'
assert sorted(os.listdir('.')) == ['a', 'new']
assert os.stat('new').st_size == 3
os.close(w)
os.close(new)
assert os.pread(r, 99, 0) == all_of('a') == b'M123X'",
        &["PUT a", "PUT new"],
    );
    writable.holds("a", "M123X");
    writable.leaves(&["a", "new"]);
}

#[test]
fn a_close_stores_what_changed_since_the_last_and_another_nothing() {
    let writable = Writable::new();
    writable.program(
        "a = opened('a', NEW)
b = os.dup(a)
os.write(a, b'one')
os.close(a)",
        &["PUT a"],
    );
    writable.program(
        "a = opened('a')
b, c = os.dup(a), os.dup(a)
os.lseek(a, 0, os.SEEK_END)
os.write(a, b' two')
os.close(a)
os.close(b)
os.write(c, b' three')
os.close(c)",
        &["PUT a", "PUT a"],
    );
    writable.holds("a", "one two three");
    writable.program(
        "a = opened('a')
os.write(a, b'ONE')
os.fsync(a)
os.fdatasync(a)
os.fsync(a)
os.close(a)",
        &["PUT a"],
    );
    writable.holds("a", "ONE two three");
    writable.leaves(&["a"]);
}

/// Starting a program closes, in the process that becomes it, what is not for it.
#[test]
fn a_program_started_while_a_file_is_half_written_stores_nothing_of_it() {
    let writable = Writable::new();
    writable.put("b", "text/plain", b"whole");
    writable.program(
        "import subprocess
a, b = opened('a', NEW), opened('b')
os.write(a, b'half '), os.write(b, b'HALF ')
subprocess.run(['true'], check=True)
os.set_inheritable(a, True)
subprocess.run(['true'], check=True, close_fds=False)
if os.fork() == 0: os._exit(0)
os.wait()
os.write(a, b'whole'), os.write(b, b'WHOLE')
os.close(a), os.close(b)",
        &["PUT a", "PUT b"],
    );
    writable.holds("a", "half whole");
    writable.holds("b", "HALF WHOLE");
    writable.leaves(&["a", "b"]);
}

#[test]
fn programs_that_share_a_file_store_it_when_the_one_that_opened_it_closes_it() {
    let writable = Writable::new();
    writable.program(
        "a = opened('a', NEW)
os.write(a, b'parent ')
if os.fork() == 0:
    os.write(a, b'child ')
    os._exit(0)
os.wait()
os.write(a, b'parent')
os.close(a)",
        &["PUT a"],
    );
    writable.holds("a", "parent child parent");
    for script in [
        "(echo 1; /bin/echo 2; echo 3) > a",
        "bash -c '{ /bin/echo 1; /bin/echo 2; cat <<< 3; } > a'",
        "for n in 1 2 3; do /bin/echo $n; done > a",
        "bash -c 'exec 3> a; /bin/echo 1 >&3; (/bin/echo 2; echo 3) >&3; exec 3>&-'",
        "{ seq 2; seq 3 3 | cat; } | cat > a",
        "sh -c '/bin/echo 1; /bin/echo 2; /bin/echo 3' > a",
    ] {
        writable.changes(script, &["PUT a"]);
        writable.holds("a", "1\n2\n3\n");
    }
    writable.leaves(&["a"]);
}

#[test]
fn who_was_handed_a_file_stores_it_once_the_one_that_opened_it_has_closed_it() {
    let writable = Writable::new();
    // Stored when the program has ended, not some time later: nobody waits here.
    writable.mount.python(&format!(
        "{PRELUDE}import subprocess
with open('a', 'wb') as a:
    program = subprocess.Popen(['sh', '-c', 'read go; echo $go'], stdin=subprocess.PIPE, stdout=a)
program.communicate(b'one\\n')"
    ));
    writable.holds("a", "one\n");
    // The one that opened it has ended.
    writable.mount.python(&format!(
        "{PRELUDE}go, done = os.pipe(), os.pipe()
if os.fork() == 0:
    b = opened('b', NEW)
    os.write(b, b'one ')
    if os.fork() == 0:
        os.read(go[0], 1)
        os.write(b, b'two')
        os.close(b)
        os.write(done[1], b'!')
    os._exit(0)
os.wait()
os.write(go[1], b'!')
os.read(done[0], 1)"
    ));
    writable.holds("b", "one two");
    // What opened `a` has closed it empty, and what is closed is stored.
    assert_eq!(writable.seen(), ["PUT a", "PUT a", "PUT b", "PUT b"]);
    writable.leaves(&["a", "b"]);
}

#[test]
fn several_writers_write_one_file() {
    let writable = Writable::new();
    writable.program(
        "a, b = opened('a', NEW), opened('a')
os.pwrite(a, b'aaaa', 0)
os.pwrite(b, b'bbbb', 4)
os.close(a)
os.pwrite(b, b'B', 0)
os.close(b)",
        &["PUT a", "PUT a"],
    );
    writable.holds("a", "Baaabbbb");
    writable.program(
        "flags = os.O_WRONLY | os.O_APPEND
a, b = opened('a', flags), opened('a', flags)
for n in range(5):
    os.write(a, b'x'), os.write(b, b'y')
os.close(a), os.close(b)",
        &["PUT a"],
    );
    writable.holds("a", "Baaabbbbxyxyxyxyxy");
    // Closes at the same time may share a PUT.
    writable
        .mount
        .works("for n in 1 2 3 4; do (for m in $(seq 50); do echo $n; done >> log) & done; wait");
    let (log, _) = writable.stored("log").expect("a record");
    let mut lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 201, "{}", String::from_utf8_lossy(&log));
    assert!((1..=200).all(|at| lines[at] == [b'1' + ((at - 1) / 50) as u8]));
    writable.leaves(&["a", "log"]);
}

#[test]
fn what_is_written_after_an_unlink_is_never_stored() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"0123456789");
    writable.program(
        "a = opened('a')
os.pwrite(a, b'dirty', 0)
os.unlink('a')
assert not os.path.exists('a')
os.pwrite(a, b'late', 8)
assert os.pread(a, 99, 0) == b'dirty567late'
assert os.fstat(a).st_size == 12
os.fsync(a)
b = opened('a', NEW)
os.write(b, b'another')
assert os.pread(a, 99, 0) == b'dirty567late'
os.close(b)
os.close(a)
assert all_of('a') == b'another'",
        &["DELETE a", "PUT a"],
    );
    writable.holds("a", "another");
    writable.leaves(&["a"]);
}

#[test]
fn a_record_replaced_by_a_rename_is_still_read_by_who_has_it_open() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"old");
    writable.program(
        "r = opened('a', os.O_RDONLY)
w = opened('a')
os.pwrite(w, b'O', 0)
n = opened('.a.swp', NEW)
os.write(n, b'new')
os.close(n)
os.rename('.a.swp', 'a')
assert all_of('a') == b'new'
assert os.pread(r, 9, 0) == os.pread(w, 9, 0) == b'Old'
os.close(w)
assert all_of('a') == b'new'",
        &["PUT a"],
    );
    writable.holds("a", "new");
    writable.leaves(&["a"]);
}

#[test]
fn a_file_renamed_while_it_is_written_is_stored_under_its_last_name() {
    let writable = Writable::new();
    writable.put("c", "text/plain", b"replaced");
    writable.program(
        "a = opened('a', NEW)
os.write(a, b'one')
os.rename('a', 'b')
os.write(a, b' two')
os.rename('b', 'c')
assert all_of('c') == b'one two'
assert os.listdir('.') == ['c']
os.close(a)",
        &["PUT c"],
    );
    writable.holds("c", "one two");
    writable.leaves(&["c"]);
}

#[test]
fn exclusive_creation_and_locks_work_among_programs_of_this_machine() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"there");
    writable.program(
        "import errno
assert errno_of(opened, 'a', NEW) == errno.EEXIST
l = opened('lock.json', NEW)
assert errno_of(opened, 'lock.json', NEW) == errno.EEXIST
a, b = opened('a'), opened('a')
fcntl.flock(a, fcntl.LOCK_EX)
assert errno_of(fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EWOULDBLOCK
fcntl.flock(a, fcntl.LOCK_UN)
fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(a, fcntl.LOCK_EX)
os.unlink('lock.json')",
        &[],
    );
    writable.leaves(&["a"]);
}

#[test]
fn descriptors_do_only_what_they_were_opened_for() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"there");
    writable.program(
        "import errno
r, w = opened('a', os.O_RDONLY), opened('a', os.O_WRONLY)
assert errno_of(os.write, r, b'x') == errno.EBADF
assert errno_of(os.read, w, 1) == errno.EBADF
assert errno_of(os.ftruncate, r, 1) == errno.EINVAL
assert errno_of(opened, '.', os.O_RDWR) == errno.EISDIR
assert errno_of(opened, 'a/b') == errno.ENOTDIR
assert errno_of(opened, 'missing') == errno.ENOENT
assert errno_of(os.rename, 'missing', 'a') == errno.ENOENT
assert errno_of(os.unlink, 'missing') == errno.ENOENT
assert errno_of(os.unlink, '.') in (errno.EISDIR, errno.EPERM, errno.EINVAL)
assert errno_of(os.truncate, 'a', -1) == errno.EINVAL",
        &[],
    );
    assert_eq!(fs::read(writable.file("a")).expect("a file"), b"there");
    writable.leaves(&["a"]);
}

#[test]
fn two_hundred_files_are_written_at_once() {
    let writable = Writable::new();
    writable.mount.python(&format!(
        "{PRELUDE}import concurrent.futures
def work(n):
    for round in range(3):
        with open(f'r{{n}}', 'wb') as f:
            for part in range(10): f.write(b'%d %d %d\\n' % (n, round, part))
        assert all_of(f'r{{n}}').count(b'\\n') == 10
with concurrent.futures.ThreadPoolExecutor(16) as pool: list(pool.map(work, range(200)))
assert len(os.listdir('.')) == 200"
    ));
    for n in 0..200 {
        let lines: String = (0..10).map(|part| format!("{n} 2 {part}\n")).collect();
        writable.holds(&format!("r{n}"), lines);
    }
    let again = writable.mount.counters().requests_retried;
    assert_eq!(writable.seen().len() as u64 - again, 600);
}
