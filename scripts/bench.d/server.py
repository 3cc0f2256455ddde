"""The neutral server of the benchmark: nginx over a folder of records, behind the line and on loopback."""

import re
import subprocess
import sys
import time
from pathlib import Path

import line

HERE = Path(__file__).resolve().parent
STORES = {"small": (1000, 4096), "many": (100_000, 100), "large": (1, 256 << 20), "out": (0, 0)}
LARGE_SIZE = STORES["large"][1]
PLATFORM, KIND, PORT = 8443, 8444, 8080


def content(n, size):
    text = f'{{"n":{n},"text":"{"NEEDLE " if n % 10 == 0 else ""}'.encode()
    return text + b"kvfs " * ((size - len(text)) // 5) + b"." * ((size - len(text)) % 5)


class Server:
    """nginx at the far end of a line; `urls` names its two kinds there, and the kinder one on loopback."""

    def __init__(self, folder, line_):
        self.folder, self.line = folder, line_
        line.certificates(folder)
        self.urls = {
            "platform": f"https://{line.SERVER}:{PLATFORM}",
            "kind": f"https://{line.SERVER}:{KIND}",
            "loopback": f"http://127.0.0.1:{PORT}",
        }
        words = {"DIR": folder, "HERE": HERE, "PORT": PORT, "PLATFORM": f"{line.SERVER}:{PLATFORM}", "KIND": f"{line.SERVER}:{KIND}"}
        words["USER"] = "user root;"
        text = re.sub(r"@([A-Z]+)@", lambda m: str(words.get(m[1], m[0])), (HERE / "nginx.conf").read_text())
        (folder / "nginx.conf").write_text(text)
        for store, (count, size) in STORES.items():
            (folder / "stores" / store).mkdir(parents=True)
            for n in range(count):
                (folder / "stores" / store / f"rec-{n:07}.json").write_bytes(content(n, size))
        command = [*line_.server, "nginx", "-c", folder / "nginx.conf", "-e", folder / "nginx.log"]
        self.process = subprocess.Popen([str(w) for w in command])
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
        """Sets what a store holds; returns the requests since the last call, and those refused."""
        query = "&".join(f"{k}={v}" for k, v in words.items())
        command = [*self.line.server, "curl", "-sf", f"{self.urls['loopback']}/__set?{query}"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if answer.returncode:
            raise OSError(f"nginx does not answer: curl ends with {answer.returncode}")
        return [int(count) for count in answer.stdout.split()]

    def empty(self):
        """Removes what was put into the store `out`."""
        for path in (self.folder / "stores/out").iterdir():
            path.unlink()
        self.set(empty=1)

    def stop(self):
        self.process.terminate()
        self.process.wait()
