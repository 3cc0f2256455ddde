"""Mounts that are killed and come back, and the server with its faults."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time

TOKEN = "apify_api_SoakToken000000000000000000000000"
DEADLINE = 10

FAULTS = [
    "status=503,probability=0.01,seed=1",
    "status=500,probability=0.005,seed=2",
    "status=429,probability=0.0003,seed=3",
    "reset,probability=0.01,seed=4",
    "lose,method=GET,probability=0.005,seed=5",
    "lose,method=PUT,probability=0.02,seed=6",
    "lose,method=DELETE,probability=0.05,seed=7",
    "delay=800ms,probability=0.01,seed=8",
    "stall=1500ms,method=GET,probability=0.01,seed=9",
    "stall,method=GET,probability=0.003,seed=10",
    "truncate,method=GET,probability=0.02,seed=11",
    "truncate=100,method=GET,probability=0.01,seed=12",
    "truncate,method=LIST,probability=0.03,seed=13",
    "stall,method=LIST,probability=0.01,seed=14",
    # Only what has a checksum can be told from what it should be.
    "corrupt,method=GET,key=gz-*,probability=0.05,seed=15",
]


class Place:
    """A folder with everything, and how programs are run there."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        for name in ["run", "storage", "logs"]:
            os.makedirs(f"{folder}/{name}", exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "APIFY_TOKEN": TOKEN,
            "KVFS_SERVE_TOKEN": TOKEN,
            "APIFY_CLIENT_BASE_URL": f"http://127.0.0.1:{self.port}",
        }

    def run(self, *arguments, limit=90):
        return subprocess.run(
            [self.program, *arguments], env=self.environment, cwd=self.folder, timeout=limit,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )


class Server:
    """`kvfs serve`, ended and started again at times."""

    def __init__(self, place, faults):
        self.place, self.faults = place, faults
        self.process = None
        self.lives = 0
        self.store = None
        self.is_up = False

    def start(self):
        self.lives += 1
        rules = [part for rule in self.faults for part in ("--fault", rule)]
        log = open(f"{self.place.folder}/logs/serve", "a")
        self.process = subprocess.Popen(
            [self.place.program, "serve", "storage", "--listen", f"127.0.0.1:{self.place.port}",
             "--latency", "5ms", "--rate-limit", "150", *rules],
            env=self.place.environment, cwd=self.place.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                found = self.ask("POST", "/v2/key-value-stores?name=soak")
                self.store = json.loads(found[1])["data"]["id"]
                self.is_up = True
                return
            except (OSError, KeyError, ValueError, http.client.HTTPException):
                time.sleep(0.1)
        raise RuntimeError("the server does not answer; see logs/serve")

    def ask(self, method, path, body=None, headers=()):
        """Makes a request; returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port, timeout=8)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **dict(headers)})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def put(self, key, data, encoding=None):
        """Stores a record; tells whether the server has said so."""
        headers = {"Content-Type": "application/octet-stream"}
        if encoding:
            headers["Content-Encoding"] = encoding
        path = f"/v2/key-value-stores/{self.store}/records/{key}"
        for _ in range(20):
            try:
                if self.ask("PUT", path, data, headers)[0] in (200, 201):
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.2)
        return False

    def pause(self, seconds):
        """Falls silent: connections are accepted by the kernel, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def end(self, how=signal.SIGKILL):
        self.is_up = False
        self.process.send_signal(how)
        self.process.wait(40)


class Mount:
    """One mount point and the daemon behind it."""

    def __init__(self, place, name, cache, flags):
        self.place, self.name = place, name
        self.cache = f"{place.folder}/{cache}"
        self.path = f"{place.folder}/mnt-{name}"
        self.flags = flags
        self.life = 0
        self.is_up = False
        self.pid = None
        self.panics = 0
        os.makedirs(self.path, exist_ok=True)
        self.ground = os.stat(self.path).st_dev

    def start(self):
        """Mounts; tries again while the server is at fault."""
        for attempt in range(20):
            done = self.place.run(
                "mount", "~soak", self.path, "--ttl", "1s", "--timeout", "2s", "--deadline", f"{DEADLINE}s",
                "--cache-dir", self.cache, "--cache-size", "40MiB", "--memory-cache", "16MiB",
                "--log-file", f"{self.place.folder}/logs/{self.name}", *self.flags,
            )
            if done.returncode == 0:
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"{self.name} cannot be mounted: {done.stderr}")
        self.life += 1
        self.pid = self.status()["pid"]
        self.is_up = True

    def status(self):
        done = self.place.run("status", "--json", self.path)
        try:
            return json.loads(done.stdout)[0]
        except (ValueError, IndexError):
            return {}

    def note_panics(self):
        self.panics += self.status().get("stats", {}).get("panics_total", 0)

    def kill(self):
        """Ends the daemon at once and mounts again over what it left."""
        self.is_up = False
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_end()

    def storm(self):
        """Sends many signals that ask for an end."""
        self.is_up = False
        for _ in range(random.randrange(1, 12)):
            try:
                os.kill(self.pid, random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
            except ProcessLookupError:
                break
            time.sleep(random.random() * 0.2)
        try:
            # One hang-up alone ends nothing.
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        self.wait_for_end()

    def unmount(self, *how):
        self.is_up = False
        done = self.place.run("unmount", self.path, *how, limit=180)
        return done

    def wait_for_end(self, limit=120):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                with open(f"/proc/{self.pid}/stat") as stat:
                    if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                        return True
            except OSError:
                return True
            time.sleep(0.05)
        return False
