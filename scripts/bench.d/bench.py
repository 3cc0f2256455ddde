"""Measures kvfs beside other mounts and curl over a long line with TLS; started by scripts/bench.

Server and programs are in two network namespaces, joined by a line that delays packets, so that
handshakes and slow start cost what they cost. Rows of the platform meet a server that answers as
the platform does: TLS 1.2, no validators, no ranges, 200 requests a second. Mounts over S3 meet the
same nginx under its kinder name, as they need validators and ranges.

Each run starts with a fresh mount, an empty cache and an empty page cache; what was read is
checked. A command that takes longer than --patience is ended and shown as "over"; one that took
longer than 20 s is not repeated. The order of the peers changes with each round. Figures are
medians; "noise" is the largest distance from the median among kvfs's own runs.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from line import Line
from server import LARGE_SIZE, STORES, Server, content

SLOW = 20
FIRST, LARGE = "rec-0000777.json", "rec-0000000.json"
# Longer than the time for which kvfs believes what it knows.
TTL = 11

# name: (store, server, what it is, unit)
ROWS = {
    "direct": ("small", "platform", "one record of 4 KiB, no mount", "ms"),
    "keys": ("small", "platform", "list 1,000 keys, no mount", "ms"),
    "one": ("small", "platform", "first record after mounting", "ms"),
    "cat": ("small", "platform", "`cat *`, 1,000 x 4 KiB", "s"),
    "tar": ("small", "platform", "`tar`, 1,000 x 4 KiB", "s"),
    "grep": ("small", "platform", "`grep -r`, 1,000 x 4 KiB", "s"),
    "again": ("small", "platform", "`cat *` again 11 s later", "s"),
    "remount": ("small", "platform", "`cat *` after unmount and mount", "s"),
    "ls": ("many", "platform", "`ls -l`, 100,000 records", "s"),
    "large": ("large", "platform", "256 MiB front to back", "s"),
    "put": ("out", "platform", "`echo > new`, until close returns", "ms"),
    "cp": ("out", "platform", "`cp` of 200 x 4 KiB into the mount", "s"),
    "tail": ("large", "kind", "`tail -c 100` of 256 MiB", "ms"),
    "kindlarge": ("large", "kind", "256 MiB front to back", "s"),
    "fast": ("small", "loopback", "`cat *`, 1,000 x 4 KiB", "s"),
    "fastlarge": ("large", "loopback", "256 MiB front to back", "MB/s"),
}
SERVERS = {"platform": "as the platform answers", "kind": "a kinder server", "loopback": "on loopback"}

S3 = "--s3-provider Other --s3-endpoint {s3} --s3-access-key-id x --s3-secret-access-key y --s3-region us-east-1 --ca-cert {folder}/ca.pem"
S3FS = {"AWSACCESSKEYID": "x", "AWSSECRETACCESSKEY": "y"}
RECORDS = "{url}/v2/key-value-stores/{store}/records"
# It knows no limit: what the server refuses it asks again a second later.
ALL = f"curl -sf --no-progress-meter --retry 9 --retry-delay 1 -Z --parallel-max 50 '{RECORDS}/rec-[0000000-0000999].json' -o '{{cache}}/#1' && cat {{cache}}/* | md5sum"
# A mount, and commands for rows that need none or that are another program's way.
PEERS = {
    "kvfs": {
        "mount": "{kvfs} mount {store} {mnt}",
        "writes": "{kvfs} mount --rw {store} {mnt}",
        "env": {"APIFY_CLIENT_BASE_URL": "{url}", "APIFY_TOKEN": "for-measuring", "XDG_CACHE_HOME": "{cache}"},
        "direct": f"{{kvfs}} cat {{store}} {FIRST} | md5sum",
        "keys": "{kvfs} ls {store} | md5sum",
    },
    "kvfs --write-back": {
        "writes": "{kvfs} mount --rw --write-back {store} {mnt}",
        "env": {"APIFY_CLIENT_BASE_URL": "{url}", "APIFY_TOKEN": "for-measuring", "XDG_CACHE_HOME": "{cache}"},
    },
    # Its mounts upload later or not at all: no rows of writing.
    "rclone": {
        "mount": "rclone mount :s3:{store} {mnt} --daemon --cache-dir {cache} " + S3,
        "direct": f"rclone cat {S3} :s3:{{store}}/{FIRST} | md5sum",
        "keys": f"rclone lsf {S3} :s3:{{store}} | md5sum",
    },
    "rclone, tuned": {
        "mount": "rclone mount :s3:{store} {mnt} --daemon --cache-dir {cache} " + S3
        + " --vfs-cache-mode full --use-server-modtime --dir-cache-time 1h --attr-timeout 1h --vfs-fast-fingerprint --vfs-read-ahead 64M --buffer-size 0"
    },
    "s3fs": {"mount": "s3fs {store} {mnt} -o url={s3} -o use_path_request_style", "writes": "s3fs {store} {mnt} -o url={s3} -o use_path_request_style", "env": S3FS},
    "curl": {
        "direct": f"curl -sf {RECORDS}/{FIRST} | md5sum",
        "keys": "curl -sf --compressed '{url}/v2/key-value-stores/{store}/keys?limit=1000' | jq -r .data.items[].key | md5sum",
        "cat": ALL,
        "fast": ALL,
        "large": f"curl -sf {RECORDS}/{LARGE} -o /dev/null",
        "kindlarge": f"curl -sf {RECORDS}/{LARGE} -o /dev/null",
        "fastlarge": f"curl -sf {RECORDS}/{LARGE} -o /dev/null",
        "tail": f"curl -sf -r -100 {RECORDS}/{LARGE} | md5sum",
        "put": f"curl -sf -X PUT -d x {RECORDS}/new -o /dev/null",
    },
}
WRITES = ("put", "cp")


def md5(content):
    return hashlib.md5(content).hexdigest()


def timed(side, command, env, patience):
    """Returns (seconds or None, output, what went wrong or '')."""
    begun = time.monotonic()
    process = subprocess.Popen([*side, "bash", "-o", "pipefail", "-c", command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, "", ""
    took = time.monotonic() - begun
    return took, out, err.strip()[-300:] if process.returncode else ""


def drop_caches(served):
    """Empties the page cache; what the server serves is loaded again: its disk is not the matter."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for path in served.iterdir():
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass
    for program in ("cat", "md5sum", "tar", "grep", "cp", "ls", "wc", "curl", "bash"):
        subprocess.run([program, "--version"], capture_output=True)


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.mnt, self.cache, self.files = folder / "mnt", folder / "cache", folder / "files"
        self.server = None
        self.line = Line(folder, options.rtt, options.mbit)
        try:
            self.server = Server(folder, self.line)
        except BaseException:
            self.line.stop()
            raise
        small = [content(n, 4096) for n in range(1000)]
        large = content(0, LARGE_SIZE)
        self.wanted = {"one": md5(small[777]), "all": md5(b"".join(small)), "large": md5(large), "tail": md5(large[-100:])}
        self.wanted["keys"] = md5("".join(f"rec-{n:07}.json\n" for n in range(1000)).encode())
        self.files.mkdir()
        for n in range(200):
            (self.files / f"new-{n:04}.json").write_bytes(small[n])
        self.wanted["cp"] = md5(b"".join(small[:200]))

    def fill(self, text, row):
        store, server = ROWS[row][:2]
        urls = self.server.urls
        # The S3 side of the platform's rows is the kinder server: there is no other.
        words = {"url": urls[server], "s3": urls["kind" if server == "platform" else server], "mnt": self.mnt, "cache": self.cache}
        words |= {"store": store, "kvfs": self.options.kvfs, "folder": self.folder}
        for word, value in words.items():
            text = text.replace("{" + word + "}", str(value))
        return text

    def command(self, row):
        """Returns what runs inside a mount, and what its output must be."""
        m, everything = self.mnt, "md5sum | head -c 32"
        cat = (f"cd {m} && cat * | {everything}", self.wanted["all"])
        large = (f"cat {m}/{LARGE} >/dev/null", "")
        return {
            "one": (f"cat {m}/{FIRST} | {everything}", self.wanted["one"]),
            "cat": cat,
            "fast": cat,
            "again": cat,
            "remount": cat,
            "tar": (f"tar cf - -C {m} --sort=name . | tar xOf - | {everything}", self.wanted["all"]),
            "grep": (f"grep -r NEEDLE {m} | wc -l", "100"),
            "ls": (f"ls -l {m} | wc -l", "100001"),
            "large": large,
            "kindlarge": large,
            "fastlarge": large,
            "tail": (f"tail -c 100 {m}/{LARGE} | {everything}", self.wanted["tail"]),
            "put": (f"echo x > {m}/new.txt", ""),
            "cp": (f"cp {self.files}/* {m}/", ""),
        }[row]

    def side(self, row):
        """Returns the words that start a program where the row's client is."""
        return self.line.server if ROWS[row][1] == "loopback" else self.line.client

    def run(self, name, row):
        peer, store = PEERS[name], ROWS[row][0]
        mount = peer.get("writes" if row in WRITES else "mount")
        direct = row in peer
        if not direct and (mount is None or row in ("direct", "keys")):
            return None
        for folder in (self.cache, self.mnt):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C", "RCLONE_CONFIG": "/dev/null"}
        env |= {"SSL_CERT_FILE": f"{self.folder}/ca.pem", "CURL_CA_BUNDLE": f"{self.folder}/ca.pem"}
        env |= {f"XDG_{name}": f"{self.folder}/{name}" for name in ("STATE_HOME", "CONFIG_HOME", "RUNTIME_DIR")}
        env |= {k: self.fill(v, row) for k, v in peer.get("env", {}).items()}
        (self.folder / "RUNTIME_DIR").mkdir(mode=0o700, exist_ok=True)
        self.server.empty()
        drop_caches(self.folder / "stores" / store)
        # Limits count within a second.
        time.sleep(1)
        side, patience = self.side(row), self.options.patience
        self.server.set()
        if direct:
            took, out, wrong = timed(side, self.fill(peer[row], row), env, patience)
            wanted = {"direct": self.wanted["one"], "keys": self.wanted["keys"]}.get(row) or self.command(row)[1]
            right = took is None or out.strip().split(" ")[0] == wanted
            return self.result(took, wrong or ("" if right else f"wrong output: {out[:80]}"))
        try:
            mounted = self.mount(side, self.fill(mount, row), env)
            command, wanted = self.command(row)
            if row in ("again", "remount"):
                took, _, wrong = timed(side, command, env, patience)
                if took is None or wrong:
                    return self.result(took, wrong)
                if row == "remount":
                    self.unmount()
                    mounted = self.mount(side, self.fill(mount, row), env)
                time.sleep(TTL)
            self.server.set()
            took, out, wrong = timed(side, command, env, patience)
            result = self.result(took, wrong)
            if took is not None and not wrong and out.strip() != wanted:
                result["error"] = f"wrong output: {out[:80]}"
            result["mib"] = self.memory(mounted)
            if row.endswith("large") and took is not None:
                if self.wanted["large"] != timed(side, f"md5sum < {self.mnt}/{LARGE} | head -c 32", env, 60)[1]:
                    result["error"] = "wrong bytes"
        finally:
            self.unmount()
        # `--write-back` stores before the mount ends.
        if row == "cp" and result["s"] is not None and not result["error"]:
            stored = sorted((self.folder / "stores/out").iterdir())
            if md5(b"".join(path.read_bytes() for path in stored)) != self.wanted["cp"]:
                result["error"] = f"wrong bytes in the store: {len(stored)} files"
        return result

    def result(self, took, wrong):
        requests, refused = self.server.set()
        return {"s": took, "requests": requests, "refused": refused, "error": wrong, "mib": None}

    def mount(self, side, command, env):
        outside = os.stat(self.mnt).st_dev
        log = open(self.folder / "mount.log", "wb")
        process = subprocess.Popen([*side, *shlex.split(command)], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 60
        while os.stat(self.mnt).st_dev == outside:
            if time.monotonic() > until or process.poll() not in (None, 0):
                raise RuntimeError(f"cannot mount: {command}\n{(self.folder / 'mount.log').read_text()}")
            time.sleep(0.002)
        # Those that stay in the background end their first process when they are ready.
        process.wait(30)
        return [p.name for p in Path("/proc").glob("[0-9]*") if self.serves(p)]

    def serves(self, process):
        try:
            return str(self.mnt).encode() in (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    def memory(self, pids):
        peak = 0
        for pid in pids:
            try:
                peak += int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
            except OSError:
                pass
        return round(peak)

    def unmount(self):
        for _ in range(100):
            if not os.path.ismount(self.mnt):
                break
            if subprocess.run(["umount", self.mnt], capture_output=True).returncode:
                time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", self.mnt], check=True)
        until = time.monotonic() + 10
        while any(self.serves(p) for p in Path("/proc").glob("[0-9]*")) and time.monotonic() < until:
            time.sleep(0.02)


def figure(row, seconds):
    unit = ROWS[row][3]
    return {"ms": seconds * 1e3, "s": seconds, "MB/s": LARGE_SIZE / 1e6 / seconds}[unit]


def shown(row, value):
    return f"{value:.2f}" if ROWS[row][3] == "s" and value < 10 else f"{value:,.0f}"


def table(results, names, patience):
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    before = None
    for row in [r for r in ROWS if r in results]:
        _, server, what, unit = ROWS[row]
        if server != before:
            lines.append(f"| *{SERVERS[server]}* |" + " |" * len(names))
            before = server
        cells = []
        for name in names:
            runs = results[row].get(name, [])
            good = [r["s"] for r in runs if r["s"] is not None and not r["error"]]
            if not runs:
                cells.append("")
            elif any(r["error"] for r in runs):
                cells.append("failed")
            elif not good:
                cells.append(f"over {patience}")
            else:
                cells.append(shown(row, figure(row, statistics.median(good))))
        lines.append(f"| {what} ({unit}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def about(results):
    noise = requests = memory = 0
    for row, peers in results.items():
        runs = [r for r in peers.get("kvfs", []) if r["s"] and not r["error"]]
        if not runs:
            continue
        middle = statistics.median(r["s"] for r in runs)
        noise = max(noise, max(abs(r["s"] - middle) / middle for r in runs))
        memory = max(memory, max(r["mib"] or 0 for r in runs))
        if row in ("cat", "tar", "grep"):
            requests = max(requests, max(r["requests"] for r in runs) / STORES["small"][0])
    return f"kvfs: noise {noise:.0%}, at most {requests:.3f} requests a record in scans, peak memory {memory} MiB"


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvfs", default="target/release/kvfs", type=Path, help="the program to measure (default: %(default)s)")
    parser.add_argument("--rounds", default=3, type=int, help="runs of each row (default: %(default)s)")
    parser.add_argument("--patience", default=120, type=int, help="seconds after which a command is ended (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: %(default)s")
    parser.add_argument("--peers", default="|".join(PEERS), help="some of: %(default)s")
    parser.add_argument("--rtt", default=50, type=float, help="round trip of the line, in ms (default: %(default)s)")
    parser.add_argument("--mbit", default=1000, type=float, help="its width, in Mbit/s (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--chart", type=Path, help="draw the chart there, as SVG")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing; show what an earlier --out holds")
    options = parser.parse_args()
    names, rows = options.peers.split("|"), options.rows.split(",")
    unknown = [n for n in names if n not in PEERS] + [r for r in rows if r not in ROWS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.source:
        results = json.loads(options.source.read_text())
    else:
        if os.getuid() != 0:
            sys.exit("error: only root may make network namespaces and empty the page cache\nhint: sudo scripts/bench")
        if not options.kvfs.exists():
            sys.exit(f"error: there is no {options.kvfs}\nhint: cargo build --release")
        options.kvfs = options.kvfs.resolve()
        results = measure(options, names, rows)
    if options.out:
        options.out.write_text(json.dumps(results))
    print(table(results, names, options.patience))
    print("\n" + about(results))
    if options.chart:
        import chart

        chart.draw(results, names, ROWS, figure, options.patience, options.chart)


def measure(options, names, rows):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended"))
    results = {row: {} for row in rows}
    folder = Path(tempfile.mkdtemp(prefix="kvfs-bench-", dir="/var/tmp"))
    bench = None
    try:
        bench = Bench(options, folder)
        for n in range(options.rounds):
            turn = n % len(names)
            for row in rows:
                for name in names[turn:] + names[:turn]:
                    runs = results[row].setdefault(name, [])
                    if runs and (runs[0]["s"] is None or runs[0]["s"] > SLOW):
                        continue
                    result = bench.run(name, row)
                    if result is None:
                        continue
                    runs.append(result)
                    took = f"over {options.patience} s" if result["s"] is None else f"{result['s']:.3f} s"
                    print(f"{row:8} {name:14} {took}, {result['requests']} requests {result['error']}", file=sys.stderr, flush=True)
    finally:
        if bench:
            bench.unmount()
            bench.server.stop()
            bench.line.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return results


if __name__ == "__main__":
    main()
