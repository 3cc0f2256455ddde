//! What real tools read from a real mount, and that it is what the store has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kvfs::local::MemoryStore;
use kvfs::server::Knobs;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, PYTHON, Running, eventually, pattern, text};
use crate::support::served::{TestServer, encode};

const MIB: usize = 1 << 20;

/// A record for the tools to read.
struct Sample {
    name: String,
    encoding: Encoding,
    content: Vec<u8>,
    stored: Vec<u8>,
}

/// Those of all tests: encoding takes a while.
static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(samples);

/// Returns records under every encoding, of sizes around those that matter: empty, a byte, whole
/// pages, what is pushed to the page cache, what is read into memory; compressed ones that grow
/// when decoded and ones that shrink.
fn samples() -> Vec<Sample> {
    let encodings = [
        ("br", Encoding::Brotli),
        ("gzip", Encoding::Gzip),
        ("deflate", Encoding::Deflate),
        ("identity", Encoding::Identity),
    ];
    let mut samples = Vec::new();
    for (suffix, encoding) in encodings {
        let mut add = |kind: &str, content: Vec<u8>| {
            samples.push(Sample {
                name: format!("{kind}-{}.{suffix}", content.len()),
                encoding: encoding.clone(),
                stored: encode(&encoding, &content),
                content,
            });
        };
        add("empty", Vec::new());
        add("byte", vec![b'x']);
        for len in [4095, 4096, 4097, 8192, 131_072, 131_073] {
            add("grows", text(len));
        }
        for len in [4090, 4096, 4100, 12_288] {
            add("shrinks", pattern(len));
        }
        add("grows", text(MIB));
        add("shrinks", pattern(MIB + 1));
        add("grows", text(5 * MIB));
    }
    samples
}

/// A store with the samples, and a plain folder with the same files.
struct Twins {
    store: Arc<MemoryStore>,
    folder: tempfile::TempDir,
}

impl Twins {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = MemoryStore::new();
        for sample in &*SAMPLES {
            store.insert(
                &sample.name,
                "application/octet-stream",
                sample.encoding.clone(),
                sample.stored.clone(),
            );
            fs::write(folder.path().join(&sample.name), &sample.content).expect("a file");
        }
        Self {
            store: Arc::new(store),
            folder,
        }
    }

    /// Runs a script in a fresh mount, right after `ls -l`, and in the folder: both must say the
    /// same. `$OUT` is an empty folder.
    #[track_caller]
    fn agree_on(&self, script: &str) {
        let mount = MountedSession::of(self.store.clone());
        mount.works("ls -l");
        self.agree_in(&mount, script);
        mount.unmount();
    }

    #[track_caller]
    fn agree_in(&self, mount: &MountedSession, script: &str) {
        let out = tempfile::tempdir_in(mount.beside()).expect("a folder");
        let full = format!("OUT={}; {script}", out.path().display());
        let in_mount = mount.sh(&full);
        let out = tempfile::tempdir_in(mount.beside()).expect("a folder");
        let full = format!("OUT={}; {script}", out.path().display());
        let in_folder = Running::start(
            Command::new("sh")
                .args(["-c", &full])
                .env("LC_ALL", "C")
                .env("BESIDE", mount.beside())
                .env("PYTHON", *PYTHON)
                .current_dir(self.folder.path()),
        )
        .wait(Duration::from_secs(60));
        assert!(in_folder.status.success(), "{script}: {in_folder:?}");
        assert!(in_mount.status.success(), "{script}: {in_mount:?}");
        let lines = |output: &[u8]| {
            String::from_utf8_lossy(output)
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lines(&in_mount.stdout),
            lines(&in_folder.stdout),
            "{script}: {}",
            in_mount.stderr
        );
    }
}

macro_rules! tools_agree {
    ($($(#[$doc:meta])* $name:ident: [$($script:expr),+ $(,)?];)+) => {
        $($(#[$doc])* #[test] fn $name() {
            let twins = Twins::new();
            $(twins.agree_on($script);)+
        })+
    };
}

/// Runs a Python function `f` on every file and prints what it returns.
macro_rules! python {
    ($($line:literal)+) => {
        concat!(
            "$PYTHON - <<'END'\n",
            "import ctypes, hashlib, mmap, os, sys\n",
            "libc = ctypes.CDLL(None, use_errno=True)\n",
            "def digest(b): return len(b), hashlib.md5(b).hexdigest()\n",
            $($line, "\n",)+
            "for name in sorted(os.listdir('.')):\n",
            "    try: print(name, f(name))\n",
            "    except OSError as error: print(name, error)\n",
            "END"
        )
    };
}

tools_agree! {
    cat_and_checksums_see_all_bytes_right_after_ls: [
        "for f in *; do cat $f | md5sum; done",
        "cat * | sha256sum",
        "md5sum *",
        "sha256sum *",
    ];
    counting_and_the_ends_of_files_are_exact_right_after_ls: [
        // With several names wc believes a stat from before the open, but for -l and -w.
        "for f in *; do wc -c $f; wc -c <$f; done",
        "wc -lw * | awk '{print $1, $2, $3}'",
        "for f in *; do head -c 5000 $f | md5sum; tail -c 5000 $f | md5sum; done",
        "tail -c 1 *",
        "for f in *; do tail -c +4090 $f | md5sum; done",
    ];
    sizes_are_exact_once_a_file_was_opened: [
        "cat * >/dev/null; stat -c '%n %s' *",
        "for f in *; do : <$f; done; find . -type f -size +4096c | sort; find . -type f -size -2c | sort",
        "for f in *; do : <$f; stat -c '%n %s' $f; ls -l $f | awk '{print $5}'; done",
        "cat * >/dev/null; ls -l | awk '{print $5, $9}'",
        "cat * >/dev/null; du -b -c * | tail -1",
    ];
    copies_are_exact_right_after_ls: [
        "cp * $OUT && cd $OUT && md5sum *",
        "cp -r . $OUT/copy && cd $OUT/copy && md5sum *",
        "for f in *; do dd bs=4k if=$f of=$OUT/$f status=none; done; cd $OUT && md5sum *",
        "for f in *; do dd bs=1M if=$f of=$OUT/$f status=none; done; cd $OUT && md5sum *",
        "for f in *; do dd bs=4100 skip=1 if=$f status=none | md5sum; done",
    ];
    archives_are_exact_right_after_ls: [
        "tar cf - . | tar xf - -C $OUT && cd $OUT && md5sum *",
        "tar cf $OUT/a.tar * && cd $OUT && tar xf a.tar && rm a.tar && md5sum *",
        "tar czf - * | tar tzf -",
    ];
    rsync_copies_and_then_has_nothing_to_do: [
        "rsync -rt ./ $OUT/ && rsync -rtin ./ $OUT/ && cd $OUT && md5sum *",
        "rsync -rc ./ $OUT/ && rsync -rcin ./ $OUT/ && cd $OUT && md5sum *",
    ];
    python_reads_maps_and_seeks_exactly_right_after_ls: [
        python!(
            "def f(name):"
            "    with open(name, 'rb') as file: return digest(file.read())"
        ),
        python!(
            "def f(name):"
            "    with open(name, 'rb', buffering=0) as file: return digest(file.readall())"
        ),
        python!(
            "def f(name):"
            "    fd = os.open(name, os.O_RDONLY)"
            "    end = os.lseek(fd, 0, os.SEEK_END)"
            "    return end, os.fstat(fd).st_size, digest(os.pread(fd, 5000, max(0, end - 4999)))"
        ),
        python!(
            "def f(name):"
            "    fd = os.open(name, os.O_RDONLY)"
            "    if os.fstat(fd).st_size == 0: return 0"
            "    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m: return digest(m[:]), digest(m[-3000:])"
        ),
    ];
    reads_that_never_ask_for_the_size_get_exactly_the_content: [
        // No fstat between open and these: the kernel has only what the open left it.
        python!(
            "def f(name):"
            "    fd = os.open(name, os.O_RDONLY)"
            "    r, w = os.pipe(); out = b''"
            "    while True:"
            "        n = os.sendfile(w, fd, None, 30000)"
            "        if n == 0: return digest(out)"
            "        while n: piece = os.read(r, n); out += piece; n -= len(piece)"
        ),
        // Reads that end between the real and the listed end, where padding would show.
        python!(
            "def f(name):"
            "    fd = os.open(name, os.O_RDONLY)"
            "    pieces = []"
            "    while piece := os.read(fd, 1003): pieces.append(piece)"
            "    return len(pieces), digest(b''.join(pieces))"
        ),
        python!(
            "def f(name):"
            "    fd = os.open(name, os.O_RDONLY)"
            "    return [digest(os.pread(fd, n, at)) for at in (0, 4000, 4096, 8000) for n in (1, 10, 100, 4101, 8193)]"
        ),
        // A raw mapping of known length, touched at its end: a size too small would be SIGBUS.
        python!(
            "def f(name):"
            "    size = int(name.split('-')[1].split('.')[0])"
            "    if size == 0: return 0"
            "    libc.mmap.restype = ctypes.c_void_p"
            "    fd = os.open(name, os.O_RDONLY)"
            "    at = libc.mmap(None, ctypes.c_size_t(size), 1, 1, fd, ctypes.c_long(0))"
            "    last = ctypes.string_at(at + size - 1, 1)"
            "    return last, digest(ctypes.string_at(at, size))"
        ),
        python!(
            "def f(name):"
            "    size = int(name.split('-')[1].split('.')[0])"
            "    a, b = os.open(name, os.O_RDONLY), os.open(name, os.O_RDONLY)"
            "    return digest(os.pread(a, 10**7, 0)), digest(os.pread(b, 10**7, 0)), os.fstat(a).st_size == size"
        ),
    ];
    searching_and_comparing_work_right_after_ls: [
        "grep -rc 'text of a record' . | sort",
        "grep -rl 'line 00000100' . | sort",
        // Its other word for an empty file comes from a stat before the open.
        "file --mime-type * | sed s,application/x-empty,inode/x-empty,",
        "diff -r . . && echo same",
        "cmp grows-4097.br grows-4097.gzip && cmp -n 4095 grows-4095.br grows-5242880.deflate",
    ];
}

#[test]
fn tools_that_compare_two_folders_find_no_difference() {
    let twins = Twins::new();
    let folder = twins.folder.path().display();
    let mount = MountedSession::of(twins.store.clone());
    mount.works("ls -l");
    // These believe a stat from before the open, so the exact sizes must be known by then.
    mount.works("cat * >/dev/null");
    assert_eq!(mount.works(&format!("diff -r . {folder}")), "");
    assert_eq!(mount.works(&format!("diff -rq . {folder}")), "");
    assert_eq!(mount.works(&format!("git diff --no-index {folder} .")), "");
    assert_eq!(
        mount.works(&format!("rsync -rcin --delete ./ {folder}/")),
        ""
    );
}

#[test]
fn with_exact_sizes_stat_is_right_before_anything_was_opened() {
    let twins = Twins::new();
    let mount = MountedSession::with(twins.store.clone(), |config| config.exact_sizes = true);
    twins.agree_in(&mount, "ls -l | awk '{print $5, $9}'");
    twins.agree_in(&mount, "find . -type f -size +4096c | sort");
    let folder = twins.folder.path().display();
    assert_eq!(mount.works(&format!("git diff --no-index {folder} .")), "");
    let other = MountedSession::with(twins.store.clone(), |config| config.exact_sizes = true);
    twins.agree_in(&other, "stat -c '%n %s' *");
}

#[test]
fn exact_sizes_are_known_again_after_a_remount() {
    let twins = Twins::new();
    let cache = tempfile::tempdir().expect("a folder");
    let open = || {
        MountedSession::with(twins.store.clone(), |config| {
            if let Some(disk) = &mut config.disk_cache {
                disk.dir = cache.path().to_owned();
            }
        })
    };
    let first = open();
    first.works("cat * >/dev/null");
    first.unmount();
    let second = open();
    twins.agree_in(&second, "ls -l | awk '{print $5, $9}'");
    assert_eq!(second.counters().requests_total, 0);
}

#[test]
fn raw_mounts_show_stored_bytes_and_their_sizes() {
    let twins = Twins::new();
    let raw = Twins {
        store: twins.store.clone(),
        folder: tempfile::tempdir().expect("a folder"),
    };
    for sample in &*SAMPLES {
        fs::write(raw.folder.path().join(&sample.name), &sample.stored).expect("a file");
    }
    let mount = MountedSession::with(raw.store.clone(), |config| config.raw = true);
    raw.agree_in(&mount, "ls -l | awk '{print $5, $9}'");
    raw.agree_in(&mount, "md5sum *");
    raw.agree_in(&mount, "gunzip -c <grows-4096.gzip | md5sum");
    raw.agree_in(
        &mount,
        "tar cf - . | tar xf - -C $OUT && cd $OUT && md5sum *",
    );
}

#[test]
fn jq_and_scandir_work_on_compressed_records() {
    let store = MemoryStore::new();
    let json = serde_json::json!({"items": (0..2000).map(|n| serde_json::json!({"n": n, "text": "x".repeat(n % 50)})).collect::<Vec<_>>()});
    for (name, encoding) in [
        ("a.json", Encoding::Brotli),
        ("b.json", Encoding::Gzip),
        ("c.json", Encoding::Deflate),
        ("d.json", Encoding::Identity),
    ] {
        let stored = encode(&encoding, json.to_string().as_bytes());
        store.insert(name, "application/json; charset=utf-8", encoding, stored);
    }
    let mount = MountedSession::of(Arc::new(store));
    mount.works("ls -l");
    assert_eq!(
        mount.works("jq '.items | length' *.json"),
        "2000\n2000\n2000\n2000"
    );
    assert_eq!(mount.works("jq -c '.items[1999].n' a.json"), "1999");
    let listed = mount.python(
        "import os\nprint([(e.name, e.is_file(), e.is_dir(), e.stat().st_size) for e in sorted(os.scandir('.'), key=lambda e: e.name)])",
    );
    let size = json.to_string().len();
    let expected = ["a", "b", "c", "d"]
        .map(|name| format!("('{name}.json', True, False, {size})"))
        .join(", ");
    assert_eq!(listed, format!("[{expected}]"));
}

/// Puts the samples into a server's store and compares them with a folder through the real client.
#[track_caller]
fn served_reads(knobs: Knobs, change: impl FnOnce(&mut kvfs::setup::MountConfig)) {
    let server = TestServer::start_with(|config| config.knobs = knobs);
    let twins = Twins::new();
    for sample in &*SAMPLES {
        server.put(
            &sample.name,
            "application/octet-stream",
            sample.encoding.clone(),
            &sample.stored,
        );
    }
    let mount = MountedSession::served_with(&server, |config| {
        // Of long records without a length the sizes are known for this long.
        config.ttl = Some(Duration::from_secs(3600));
        change(config);
    });
    mount.works("ls -l");
    twins.agree_in(&mount, "for f in *; do wc -c $f; done");
    twins.agree_in(
        &mount,
        "tar cf - . | tar xf - -C $OUT && cd $OUT && md5sum *",
    );
    twins.agree_in(&mount, "for f in *; do tail -c 4000 $f | md5sum; done");
    twins.agree_in(&mount, "stat -c '%n %s' *");
    let again = MountedSession::served(&server);
    again.works("ls -l");
    twins.agree_in(&again, "for f in *; do tail -c 4000 $f | md5sum; done");
}

#[test]
fn records_come_right_from_a_server_that_does_all_it_can() {
    served_reads(Knobs::default(), |_| {});
}

#[test]
fn records_come_right_from_a_server_that_sends_no_lengths() {
    served_reads(
        Knobs {
            content_length: false,
            ..Knobs::default()
        },
        |_| {},
    );
}

#[test]
fn records_come_right_from_a_server_without_validators_or_ranges() {
    served_reads(
        Knobs {
            etags: false,
            ranges: false,
            ..Knobs::default()
        },
        |_| {},
    );
}

#[test]
fn records_come_right_from_a_server_that_tells_nothing_and_with_next_to_no_caches() {
    served_reads(
        Knobs {
            etags: false,
            ranges: false,
            content_length: false,
            ..Knobs::default()
        },
        |config| {
            config.memory_cache = kvfs::units::ByteSize(4096);
            config.disk_cache = None;
            config.ttl = Some(Duration::ZERO);
        },
    );
}

#[test]
fn records_come_right_with_a_disk_cache_that_is_too_small_for_some() {
    served_reads(Knobs::default(), |config| {
        config.memory_cache = kvfs::units::ByteSize(100_000);
        if let Some(disk) = &mut config.disk_cache {
            disk.size = kvfs::units::ByteSize(3 << 20);
        }
    });
}

#[test]
fn an_unknown_content_type_changes_nothing() {
    let server = TestServer::start();
    let page = b"<html><script>alert(1)</script><base href=x></html>";
    for (name, content_type) in [
        ("odd", "chemical/x-unheard-of; a=\"b;c\""),
        ("html", "text/html; charset=utf-8"),
        ("svg", "image/svg+xml"),
    ] {
        server.put(name, content_type, Encoding::Identity, page);
    }
    let mount = MountedSession::served(&server);
    for name in ["odd", "html", "svg"] {
        assert_eq!(fs::read(mount.file(name)).expect("bytes"), page);
    }
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.content-type odd"),
        "chemical/x-unheard-of; a=\"b;c\""
    );
}

#[test]
fn attributes_are_shown_and_cost_no_request_once_known() {
    let server = TestServer::start();
    let stored = server.put_encoded(
        "page.json",
        "application/json; charset=utf-8",
        Encoding::Gzip,
        br#"{"a": 1}"#,
    );
    let mount = MountedSession::served(&server);
    mount.works("cat page.json");
    let before = server.counts().requests();
    let shown = mount.works("getfattr --absolute-names -d page.json");
    for line in [
        "user.apify.key=\"page.json\"".to_owned(),
        "user.apify.content-type=\"application/json; charset=utf-8\"".to_owned(),
        "user.apify.content-encoding=\"gzip\"".to_owned(),
        format!("user.apify.stored-size=\"{}\"", stored.len()),
        format!("user.apify.url=\"{}\"", server.record_url("page.json")),
    ] {
        assert!(shown.contains(&line), "{line} is not in {shown}");
    }
    assert!(shown.contains("user.apify.etag=\""), "{shown}");
    let seen = mount.python(
        "import os, json\nassert 'user.apify.key' in os.listxattr('page.json')\nprint(os.getxattr('page.json', 'user.apify.key').decode())\nstats = json.loads(os.getxattr('.', 'user.kvfs.stats'))\nprint(stats['stats']['requests_get'], stats['mode'], stats['store_name'], stats['access'])",
    );
    assert_eq!(seen, "page.json\n1 decoded test-store read-only");
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.store-id ."),
        server.entry.id
    );
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.store-name ."),
        "test-store"
    );
    let complaint = mount.fails("getfattr -n user.apify.nothing page.json");
    assert!(complaint.contains("No such attribute"), "{complaint}");
    assert_eq!(server.counts().requests(), before);
    let everything = mount.works("getfattr -d . page.json") + &mount.status().to_string();
    assert!(!everything.contains(crate::support::served::TOKEN));
}

#[test]
fn nothing_can_be_changed_and_every_attempt_says_so() {
    let store = MemoryStore::new();
    store.insert("a", "text/plain", Encoding::Identity, "hi\n");
    let mount = MountedSession::of(Arc::new(store));
    for script in [
        "touch new",
        "touch a",
        "rm -f a",
        "mv a b",
        "mkdir d",
        "echo more >>a",
        "echo other >a",
        "chmod 600 a",
        "chown 1 a",
        "ln a b",
        "ln -s a b",
        "truncate -s 0 a",
        "setfattr -n user.apify.content-type -v text/html a",
        "cp a b",
    ] {
        let complaint = mount.fails(script);
        assert!(
            complaint.contains("Read-only file system"),
            "{script}: {complaint}"
        );
    }
    assert_eq!(mount.works("cat a; ls"), "hi\na");
    assert_eq!(mount.counters().errors_total, 0);
}

#[test]
fn owners_and_modes_are_as_told_and_df_works() {
    let store = MemoryStore::new();
    store.insert("a", "text/plain", Encoding::Identity, "hi\n");
    let mount = MountedSession::with(Arc::new(store), |config| {
        (config.uid, config.gid) = (1234, 2345);
        (config.file_mode, config.dir_mode) = (0o640, 0o750);
    });
    assert_eq!(
        mount.works("stat -c '%u %g %a %F %h' . a"),
        "1234 2345 750 directory 2\n1234 2345 640 regular file 1"
    );
    let df = mount.works("df -P . | tail -1");
    assert!(df.starts_with("kvfs:"), "{df}");
    mount.works("df -i . && stat -f .");
    let options = mount.works("grep \" $PWD \" /proc/self/mounts");
    for option in ["fuse.kvfs", "ro", "nosuid", "nodev", "noexec"] {
        assert!(options.contains(option), "{options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
}

/// Opens a file, changes the record, opens it again: the first handle must go on reading the
/// first version, also what it had not read before.
fn two_versions(first: &[u8], second: &[u8]) {
    let store = Arc::new(MemoryStore::new());
    store.insert("k", "text/plain", Encoding::Identity, first.to_vec());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    use std::os::unix::fs::FileExt;
    let old = fs::File::open(mount.file("k")).expect("the first version");
    let mut begin = vec![0; 10.min(first.len())];
    old.read_exact_at(&mut begin, 0).expect("its beginning");
    store.insert("k", "text/plain", Encoding::Identity, second.to_vec());
    let new = fs::File::open(mount.file("k")).expect("the second version");
    let read = |file: &fs::File| {
        let len = file.metadata().expect("a size").len();
        let mut bytes = vec![0; len as usize + 10];
        let mut read = 0;
        loop {
            match file
                .read_at(&mut bytes[read..], read as u64)
                .expect("bytes")
            {
                0 => break,
                n => read += n,
            }
        }
        assert_eq!(read as u64, len, "fstat disagrees with the bytes");
        bytes.truncate(read);
        bytes
    };
    for _ in 0..2 {
        assert!(read(&old) == first, "the old handle left its version");
        assert!(read(&new) == second, "the new handle has another version");
    }
    assert!(fs::read(mount.file("k")).expect("bytes") == second);
    drop((old, new));
    assert!(fs::read(mount.file("k")).expect("bytes") == second);
}

#[test]
fn an_open_handle_keeps_its_version_beside_one_on_the_next() {
    two_versions(b"the first version", b"the 2nd");
    two_versions(b"short", &pattern(200_000));
    let (mut a, b) = (pattern(300_000), text(300_000));
    two_versions(&a, &b);
    a.truncate(4096);
    two_versions(&a, &b[..4096]);
}

#[test]
fn an_open_handle_on_a_large_record_keeps_its_version_or_fails() {
    two_versions(&pattern(5 * MIB), &text(5 * MIB + 1));
}

#[test]
fn a_changed_record_of_the_same_size_drops_the_pages() {
    let store = Arc::new(MemoryStore::new());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    for (len, round) in [(100, 0), (4096, 1), (200_000, 2), (3 * MIB, 3)] {
        for version in 0..3u8 {
            let content = vec![b'a' + version + round * 3; len];
            store.insert("k", "text/plain", Encoding::Identity, content.clone());
            assert!(fs::read(mount.file("k")).expect("bytes") == content);
            assert!(fs::read(mount.file("k")).expect("bytes") == content);
        }
    }
}

#[test]
fn a_record_deleted_while_open_is_read_to_its_end_and_then_gone() {
    use kvfs::store::Store;
    use std::os::unix::fs::FileExt;
    let store = Arc::new(MemoryStore::new());
    let content = pattern(700_000);
    store.insert("k", "text/plain", Encoding::Identity, content.clone());
    let mount = MountedSession::with(store.clone(), |config| config.ttl = Some(Duration::ZERO));
    let file = fs::File::open(mount.file("k")).expect("a file");
    store
        .delete(
            &crate::support::served::key("k"),
            crate::support::served::soon(),
        )
        .expect("a delete");
    let error = fs::File::open(mount.file("k")).expect_err("it is gone");
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).expect("all of it");
    assert!(bytes == content);
    assert_eq!(mount.works("ls"), "");
}

/// Keys that are no file names, and what they are called.
fn odd_keys() -> Vec<(String, String)> {
    vec![
        (".".into(), "%2E".into()),
        ("..".into(), "%2E%2E".into()),
        ("...".into(), "...".into()),
        (".hidden".into(), ".hidden".into()),
        ("x".repeat(256), "x".repeat(256)),
        ("a/b".into(), "a%2Fb".into()),
        ("/".into(), "%2F".into()),
        ("with blank".into(), "with%20blank".into()),
        ("100%".into(), "100%25".into()),
        ("žluť".into(), "%C5%BElu%C5%A5".into()),
        ("a!b-c_d.e'(f)".into(), "a!b-c_d.e'(f)".into()),
        ("-n".into(), "-n".into()),
    ]
}

#[track_caller]
fn reaches_odd_keys(mount: &MountedSession, keys: &[(String, String)]) {
    let mut names: Vec<&str> = keys.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(mount.works("ls -A | sort"), names.join("\n"));
    for (key, name) in keys {
        let read = fs::read_to_string(mount.file(name))
            .unwrap_or_else(|error| panic!("{name}: {error}: {:?}", mount.counters().last_errors));
        assert_eq!(read, format!("content of {key}"));
        assert_eq!(
            mount.works(&format!(
                "getfattr --only-values -n user.apify.key ./\"{name}\""
            )),
            *key
        );
    }
    mount.works("cat ./* .hidden >/dev/null && tar cf - . | wc -c");
}

#[test]
fn keys_that_are_no_file_names_are_listed_and_reachable() {
    let store = MemoryStore::new();
    let mut keys = odd_keys();
    keys.push(("nul\0".into(), "nul%00".into()));
    for (key, _) in &keys {
        store.insert(
            key,
            "text/plain",
            Encoding::Identity,
            format!("content of {key}"),
        );
    }
    let store = Arc::new(store);
    reaches_odd_keys(&MountedSession::of(store.clone()), &keys);
    // Also before any listing.
    let other = MountedSession::of(store);
    for (key, name) in &keys {
        let read = fs::read_to_string(other.file(name)).expect(name);
        assert_eq!(read, format!("content of {key}"));
    }
}

#[test]
fn keys_that_are_no_file_names_are_reachable_through_the_server() {
    let server = TestServer::start();
    let keys = odd_keys();
    for (key, _) in &keys {
        server.put_text(key, &format!("content of {key}"));
    }
    reaches_odd_keys(&MountedSession::served(&server), &keys);
}

#[test]
fn a_prefix_narrows_the_mount() {
    let server = TestServer::start();
    for name in ["a-1", "a-2", "b-1"] {
        server.put_text(name, name);
    }
    let mount = MountedSession::served_with(&server, |config| config.prefix = Some("a-".into()));
    assert_eq!(mount.works("ls; cat a-1"), "a-1\na-2\na-1");
    let complaint = mount.fails("cat b-1");
    assert!(
        complaint.contains("No such file or directory"),
        "{complaint}"
    );
}

#[test]
fn a_local_folder_in_either_layout_shows_what_is_written_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    // As Crawlee for JavaScript leaves it, and as Crawlee for Python does.
    fs::write(folder.path().join("INPUT.json"), "{}").expect("a record");
    fs::write(folder.path().join("with%20blank"), "quoted").expect("a record");
    fs::write(
        folder.path().join("with%20blank.__metadata__.json"),
        r#"{"key": "with blank", "content_type": "text/plain", "size": 6}"#,
    )
    .expect("a sidecar");
    let reference = kvfs::store::reference::StoreRef::Directory(folder.path().to_owned());
    let mount = MountedSession::opened(crate::support::mounted::open_config(reference), |config| {
        config.ttl = Some(Duration::from_millis(200))
    });
    assert_eq!(mount.works("ls; cat INPUT"), "INPUT\nwith%20blank\n{}");
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.content-type INPUT"),
        "application/json; charset=utf-8"
    );
    assert_eq!(mount.works("cat with%20blank"), "quoted");
    mount.fails("cat OUTPUT");
    fs::write(folder.path().join("OUTPUT.json"), "[1]").expect("a record");
    eventually("the new record is listed", || {
        mount.works("ls").contains("OUTPUT")
    });
    // Its absence may be believed for a TTL even after it was listed.
    eventually("the new record is read", || {
        mount.sh("cat OUTPUT").stdout == b"[1]"
    });
    fs::write(folder.path().join("OUTPUT.json"), "[1, 2]").expect("a record");
    eventually("the changed record is read", || {
        mount.works("cat OUTPUT") == "[1, 2]"
    });
    fs::remove_file(folder.path().join("OUTPUT.json")).expect("a removal");
    eventually("the removed record is gone", || {
        !mount.file("OUTPUT").exists()
    });
    eventually("the removed record is not listed", || {
        !mount.works("ls").contains("OUTPUT")
    });
}

#[test]
fn a_record_of_two_gibibytes_can_be_read_anywhere() {
    const SIZE: u64 = (2 << 30) + 4097;
    let folder = tempfile::tempdir().expect("a folder");
    let file = fs::File::create(folder.path().join("huge.bin")).expect("a record");
    file.set_len(SIZE).expect("a sparse file");
    use std::os::unix::fs::FileExt;
    let marks = [0, 1 << 20, (1 << 30) - 3, 1 << 31, SIZE - 5];
    for at in marks {
        file.write_all_at(&at.to_le_bytes()[..5], at)
            .expect("a mark");
    }
    let reference = kvfs::store::reference::StoreRef::Directory(folder.path().to_owned());
    let mount = MountedSession::opened(crate::support::mounted::open_config(reference), |config| {
        if let Some(disk) = &mut config.disk_cache {
            disk.size = kvfs::units::ByteSize(64 << 20);
        }
    });
    assert_eq!(mount.works("stat -c %s huge"), SIZE.to_string());
    let huge = fs::File::open(mount.file("huge")).expect("a file");
    for at in marks.into_iter().rev() {
        let mut bytes = [0; 5];
        huge.read_exact_at(&mut bytes, at).expect("bytes");
        assert_eq!(bytes, at.to_le_bytes()[..5]);
    }
    drop(huge);
    assert_eq!(mount.works("wc -c <huge"), SIZE.to_string());
    assert_eq!(
        mount.works("tail -c 5000 huge | md5sum"),
        mount.works(&format!(
            "tail -c 5000 {} | md5sum",
            folder.path().join("huge.bin").display()
        ))
    );
    // All that lies past the second gibibyte, and a good deal before it.
    let from = SIZE - (300 << 20);
    mount.works(&format!(
        "cmp -i {from} huge {}",
        folder.path().join("huge.bin").display()
    ));
}

#[test]
fn the_tools_of_these_tests_are_installed() {
    for tool in [
        "rsync", "jq", "getfattr", "setfattr", "git", "file", "tar", "diff", "awk", "python3",
    ] {
        assert!(
            Path::new("/usr/bin").join(tool).exists()
                || Command::new("sh")
                    .args(["-c", &format!("command -v {tool}")])
                    .output()
                    .is_ok_and(|found| found.status.success()),
            "{tool} is missing: apt install rsync jq attr git file tar diffutils gawk python3"
        );
    }
}

/// Returns version `n` of a record that changes: sizes go up and down, every byte tells which.
fn version(n: u64) -> Vec<u8> {
    let len = [10, 5000, 4096, 150_000, 1, 2_000_000, 4097][n as usize % 7];
    let mut bytes = vec![b'a' + (n % 26) as u8; len];
    let tag = n.to_string();
    for at in (0..len.saturating_sub(16)).step_by(1000) {
        bytes[at..at + tag.len()].copy_from_slice(tag.as_bytes());
    }
    bytes
}

#[test]
fn readers_of_a_record_that_keeps_changing_each_see_one_whole_version() {
    use std::os::unix::fs::FileExt;
    for encoding in [Encoding::Identity, Encoding::Gzip] {
        let store = Arc::new(MemoryStore::new());
        let put = |n: u64| {
            let stored = match encoding {
                Encoding::Identity => version(n),
                _ => {
                    let mut encoder =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    std::io::Write::write_all(&mut encoder, &version(n)).expect("in memory");
                    encoder.finish().expect("in memory")
                }
            };
            store.insert("k", "text/plain", encoding.clone(), stored);
        };
        put(0);
        let mount = MountedSession::with(store.clone(), |config| {
            config.ttl = Some(Duration::ZERO);
        });
        let until = std::time::Instant::now() + Duration::from_secs(2);
        let latest = std::sync::atomic::AtomicU64::new(0);
        let whole = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (mount, latest, whole) = (&mount, &latest, &whole);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    while std::time::Instant::now() < until {
                        let before = latest.load(std::sync::atomic::Ordering::SeqCst);
                        let mut read = || -> std::io::Result<Vec<u8>> {
                            let file = fs::File::open(mount.file("k"))?;
                            let len = file.metadata()?.len();
                            let piece = [700, 5000, 70_000, 3_000_000][random.usize(..4)];
                            let mut bytes = vec![0; len as usize + piece];
                            let mut at = 0;
                            loop {
                                match file.read_at(&mut bytes[at..at + piece], at as u64)? {
                                    0 => break,
                                    n => at += n,
                                }
                            }
                            assert_eq!(at as u64, len, "fstat is not the length that was read");
                            assert_eq!(
                                file.metadata()?.len(),
                                len,
                                "the open file changed its size"
                            );
                            bytes.truncate(at);
                            Ok(bytes)
                        };
                        match read() {
                            Ok(bytes) => {
                                let after = latest.load(std::sync::atomic::Ordering::SeqCst);
                                assert!(
                                    (before..=after + 1).any(|n| bytes == version(n)),
                                    "{} bytes are of no version from {before} to {after}",
                                    bytes.len()
                                );
                                whole.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            }
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                            }
                        }
                    }
                });
            }
            let mut n = 0;
            while std::time::Instant::now() < until {
                n += 1;
                put(n);
                latest.store(n, std::sync::atomic::Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(fastrand::u64(..20)));
            }
        });
        let whole = whole.into_inner();
        assert!(whole > 20, "only {whole} reads came through");
        assert_eq!(mount.counters().panics_total, 0);
        mount.unmount();
    }
}
