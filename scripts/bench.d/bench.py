"""Measures kvfs beside other mounts and curl against one neutral server; started by scripts/bench.

Each run starts with a fresh mount, an empty cache and an empty page cache; what was read is
checked. A command that takes longer than --patience is ended and shown as "over"; one that took
longer than 20 s is not repeated. The order of the peers changes with each round. Figures are
medians; "noise" is the largest distance from the median among kvfs's own runs.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SLOW = 20
STORES = {"small": (1000, 4096), "many": (100_000, 100), "large": (1, 256 << 20)}
FIRST, LARGE = "rec-0000777.json", "rec-0000000.json"

# name: (store, latency in ms, what it is, unit)
ROWS = {
    "one": ("small", 50, "one 4 KiB record of 1,000", "ms"),
    "cat": ("small", 50, "`cat *`, 1,000 x 4 KiB", "s"),
    "tar": ("small", 50, "`tar`, 1,000 x 4 KiB", "s"),
    "grep": ("small", 50, "`grep -r`, 1,000 x 4 KiB", "s"),
    "cp": ("small", 50, "`cp -r`, 1,000 x 4 KiB", "s"),
    "fast": ("small", 0, "`cat *`, 1,000 x 4 KiB", "s"),
    "ls": ("many", 50, "`ls -l`, 100,000 records", "s"),
    "large": ("large", 0, "256 MiB front to back", "MB/s"),
    "large50": ("large", 50, "256 MiB front to back", "MB/s"),
}

S3 = "--s3-provider Other --s3-endpoint {url} --s3-access-key-id x --s3-secret-access-key y --s3-region us-east-1"
S3FS = {"AWSACCESSKEYID": "x", "AWSSECRETACCESSKEY": "y"}
RECORDS = "{url}/v2/key-value-stores/{store}/records"
# A mount, or for curl a command for each row that it can do.
PEERS = {
    "kvfs": {
        "mount": "{kvfs} mount {store} {mnt}",
        "env": {"APIFY_CLIENT_BASE_URL": "{url}", "APIFY_TOKEN": "for-measuring", "XDG_CACHE_HOME": "{cache}"},
    },
    "rclone": {"mount": "rclone mount :s3:{store} {mnt} --daemon --cache-dir {cache} " + S3},
    "rclone, tuned": {
        "mount": "rclone mount :s3:{store} {mnt} --daemon --cache-dir {cache} " + S3
        + " --vfs-cache-mode full --use-server-modtime --dir-cache-time 1h --attr-timeout 1h --vfs-fast-fingerprint --vfs-read-ahead 64M --buffer-size 0"
    },
    "s3fs": {"mount": "s3fs {store} {mnt} -o url={url} -o use_path_request_style", "env": S3FS},
    "curl": {
        "one": f"curl -sf {RECORDS}/{FIRST} | md5sum",
        "cat": f"curl -sf -Z --parallel-immediate --parallel-max 50 '{RECORDS}/rec-[0000000-0000999].json' -o '{{cache}}/#1' && cat {{cache}}/* | md5sum",
        "fast": f"curl -sf -Z --parallel-immediate --parallel-max 50 '{RECORDS}/rec-[0000000-0000999].json' -o '{{cache}}/#1' && cat {{cache}}/* | md5sum",
        "large": f"curl -sf {RECORDS}/{LARGE} -o /dev/null",
        "large50": f"curl -sf {RECORDS}/{LARGE} -o /dev/null",
    },
}


def content(n, size):
    text = f'{{"n":{n},"text":"{"NEEDLE " if n % 10 == 0 else ""}'.encode()
    return text + b"kvfs " * ((size - len(text)) // 5) + b"." * ((size - len(text)) % 5)


class Server:
    """nginx with its folder; requests are counted and delayed by it."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = {"DIR": folder, "HERE": HERE, "PORT": self.port, "USER": "user root;" if os.getuid() == 0 else ""}
        conf = re.sub(r"@([A-Z]+)@", lambda m: str(words.get(m[1], m[0])), (HERE / "nginx.conf").read_text())
        (folder / "nginx.conf").write_text(conf)
        for store, (count, size) in STORES.items():
            (folder / "stores" / store).mkdir(parents=True)
            for n in range(count):
                (folder / "stores" / store / f"rec-{n:07}.json").write_bytes(content(n, size))
        self.process = subprocess.Popen(["nginx", "-c", folder / "nginx.conf", "-e", folder / "nginx.log"])
        until = time.monotonic() + 10
        while True:
            try:
                self.set()
                break
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    sys.exit(f"error: nginx did not start\n{(folder / 'nginx.log').read_text()}")
                time.sleep(0.05)
        for store, (count, size) in STORES.items():
            self.set(store=store, count=count, size=size)

    def set(self, **words):
        """Sets the latency (seconds); returns the requests since the last call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/__set?" + "&".join(f"{k}={v}" for k, v in words.items()))
        count = int(connection.getresponse().read())
        connection.close()
        return count

    def stop(self):
        self.process.terminate()
        self.process.wait()


def timed(command, env, patience):
    """Returns (seconds or None, output, what went wrong or '')."""
    begun = time.monotonic()
    process = subprocess.Popen(["bash", "-c", command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
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
        self.mnt, self.cache = folder / "mnt", folder / "cache"
        self.server = Server(folder)
        small = [content(n, 4096) for n in range(1000)]
        self.wanted = {"one": hashlib.md5(small[777]).hexdigest(), "all": hashlib.md5(b"".join(small)).hexdigest()}
        self.wanted["large"] = hashlib.md5(content(0, 256 << 20)).hexdigest()

    def fill(self, text, store):
        words = {"url": self.server.url, "mnt": self.mnt, "cache": self.cache, "store": store, "kvfs": self.options.kvfs}
        for word, value in words.items():
            text = text.replace("{" + word + "}", str(value))
        return text

    def command(self, row):
        """Returns what runs inside a mount, and what its output must be."""
        m = self.mnt
        return {
            "one": (f"cat {m}/{FIRST} | md5sum | head -c 32", self.wanted["one"]),
            "cat": (f"cd {m} && cat * | md5sum | head -c 32", self.wanted["all"]),
            "fast": (f"cd {m} && cat * | md5sum | head -c 32", self.wanted["all"]),
            "tar": (f"tar cf - -C {m} --sort=name . | tar xOf - | md5sum | head -c 32", self.wanted["all"]),
            "grep": (f"grep -r NEEDLE {m} | wc -l", "100"),
            "cp": (f"cp -r {m} {self.cache}/copy && cat {self.cache}/copy/* | md5sum | head -c 32", self.wanted["all"]),
            "ls": (f"ls -l {m} | wc -l", "100001"),
            "large": (f"cat {m}/{LARGE} >/dev/null", ""),
            "large50": (f"cat {m}/{LARGE} >/dev/null", ""),
        }[row]

    def run(self, name, row):
        peer, (store, latency, _, _) = PEERS[name], ROWS[row]
        if "mount" not in peer and row not in peer:
            return None
        for folder in (self.cache, self.mnt):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C", "RCLONE_CONFIG": "/dev/null"}
        env |= {k: self.fill(v, store) for k, v in peer.get("env", {}).items()}
        drop_caches(self.folder / "stores" / store)
        self.server.set(latency=latency / 1000)
        if "mount" not in peer:
            command = self.fill(peer[row], store)
            took, out, wrong = timed(command, env, self.options.patience)
            wanted = self.command(row)[1]
            right = took is None or out.strip().split(" ")[0] == wanted
            return self.result(took, wrong or ("" if right else f"wrong output: {out[:80]}"))
        try:
            mounted = self.mount(self.fill(peer["mount"], store), env)
            self.server.set()
            command, wanted = self.command(row)
            took, out, wrong = timed(command, env, self.options.patience)
            result = self.result(took, wrong)
            if took is not None and not wrong and out.strip() != wanted:
                result["error"] = f"wrong output: {out[:80]}"
            result["mib"] = self.memory(mounted)
            if row.startswith("large") and took is not None:
                self.server.set(latency=0)
                if self.wanted["large"] != timed(f"md5sum < {self.mnt}/{LARGE} | head -c 32", env, 60)[1]:
                    result["error"] = "wrong bytes"
            return result
        finally:
            self.server.set(latency=0)
            self.unmount()

    def result(self, took, wrong):
        return {"s": took, "requests": self.server.set(), "error": wrong, "mib": None}

    def mount(self, command, env):
        outside = os.stat(self.mnt).st_dev
        log = open(self.folder / "mount.log", "wb")
        process = subprocess.Popen(shlex.split(command), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
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
    return {"ms": seconds * 1e3, "s": seconds, "MB/s": (256 << 20) / 1e6 / seconds}[unit]


def shown(row, value):
    return f"{value:.2f}" if ROWS[row][3] == "s" and value < 10 else f"{value:,.0f}"


def table(results, names, patience):
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for row in [r for r in ROWS if r in results]:
        _, latency, what, unit = ROWS[row]
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
        lines.append(f"| {what}, {latency} ms ({unit}) | " + " | ".join(cells) + " |")
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
        if row in ("cat", "tar", "grep", "cp"):
            requests = max(requests, max(r["requests"] for r in runs) / STORES["small"][0])
    return f"kvfs: noise {noise:.0%}, at most {requests:.3f} requests a record in scans, peak memory {memory} MiB"


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvfs", default="target/release/kvfs", type=Path, help="the program to measure (default: %(default)s)")
    parser.add_argument("--rounds", default=3, type=int, help="runs of each row (default: %(default)s)")
    parser.add_argument("--patience", default=120, type=int, help="seconds after which a command is ended (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: %(default)s")
    parser.add_argument("--peers", default="|".join(PEERS), help="some of: %(default)s")
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
            sys.exit("error: only root may empty the page cache\nhint: sudo scripts/bench")
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
        shutil.rmtree(folder, ignore_errors=True)
    return results


if __name__ == "__main__":
    main()
