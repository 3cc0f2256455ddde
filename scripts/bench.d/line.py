"""A client and a server in network namespaces of their own, joined by a long line (line.c)."""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVER = "10.98.0.2"


def run(*words, **more):
    subprocess.run([str(w) for w in words], check=True, capture_output=True, **more)


class Line:
    """Two namespaces and the line. `client` and `server` are words to put before a command."""

    def __init__(self, folder, rtt_ms, mbit):
        self.names = [f"kvfs-bench-{side}-{os.getpid()}" for side in ("client", "server")]
        self.process = None
        run("cc", "-O2", "-pthread", "-o", folder / "line", HERE / "line.c")
        for name in self.names:
            run("ip", "netns", "add", name)
        self.client, self.server = (["nsenter", f"--net=/var/run/netns/{name}"] for name in self.names)
        words = [folder / "line", *self.names, rtt_ms / 2, mbit]
        self.process = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "up\n":
            raise RuntimeError("the line does not come up: is there /dev/net/tun?")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def certificates(folder):
    """Makes an authority and a server's certificate that it has signed: ca.pem, server.pem, server.key."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("openssl", "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=kvfs bench", cwd=folder)
    run("openssl", "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={SERVER}", cwd=folder)
    (folder / "server.ext").write_text(f"subjectAltName=IP:{SERVER}\nbasicConstraints=CA:FALSE\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem", "-days", "30", "-extfile", "server.ext")
    run("openssl", "x509", "-req", "-in", "server.csr", *signed, cwd=folder)
