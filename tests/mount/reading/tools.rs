//! Tools that read everything, in a mount and in a plain folder: both must say the same.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use super::Twins;
use crate::support::mounted::MountedSession;
use crate::support::served::encode;

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
