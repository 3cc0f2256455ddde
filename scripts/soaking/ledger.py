"""What happened: operations, errors by kind, findings, and what processes use."""

import errno
import os
import threading
import time
from collections import Counter


class Ledger:
    """Counts what all threads do."""

    def __init__(self):
        self.lock = threading.Lock()
        self.operations = Counter()
        self.errors = Counter()
        self.interrupted = Counter()
        self.findings = []
        self.kinds = Counter()
        self.slowest = {"reading": (0.0, "nothing"), "writing": (0.0, "nothing")}
        self.under_way = {}
        self.begun = time.monotonic()

    def operation(self, name, mount):
        return Operation(self, name, mount)

    def call(self, function, *arguments):
        """Makes one system call and takes its time."""
        begun = time.monotonic()
        try:
            return function(*arguments)
        finally:
            took = time.monotonic() - begun
            with self.lock:
                _, where = self.under_way.get(threading.get_ident(), (0, "?"))
                kind = "writing" if where.startswith("write") else "reading"
                if took > self.slowest[kind][0]:
                    self.slowest[kind] = (took, f"{function.__name__} of {where}")

    def finding(self, kind, text, history=()):
        """Notes what must never happen."""
        with self.lock:
            self.kinds[kind] += 1
            at = time.monotonic() - self.begun
            line = "\n      ".join([f"{time.strftime('%H:%M:%S')} {at:7.1f} s  {kind}: {text}", *history])
            is_new = self.kinds[kind] <= 20
            if is_new:
                self.findings.append(line)
        if is_new:
            print(line, flush=True)

    def hung(self, longest):
        """Returns operations that have gone on for too long, as `longest` says of their names."""
        now = time.monotonic()
        with self.lock:
            return [text for start, text in self.under_way.values() if now - start > longest(text)]


class Operation:
    """One operation on a mount. Errors are counted, not raised; `ok` tells."""

    def __init__(self, ledger, name, mount):
        self.ledger, self.name, self.mount = ledger, name, mount
        self.ok, self.errno = False, None

    def __enter__(self):
        self.life = self.mount.life
        self.start = time.monotonic()
        with self.ledger.lock:
            self.ledger.under_way[threading.get_ident()] = (self.start, f"{self.name} in {self.mount.name}")
        return self

    def undisturbed(self):
        """Tells whether the mount has been there all the time."""
        return self.life == self.mount.life and self.mount.is_up

    def __exit__(self, kind, error, trace):
        self.ok = kind is None
        with self.ledger.lock:
            self.ledger.under_way.pop(threading.get_ident(), None)
            self.ledger.operations[self.name] += 1
            if isinstance(error, OSError):
                self.errno = error.errno
                name = errno.errorcode.get(error.errno, str(error.errno))
                disturbed = not self.undisturbed()
                (self.ledger.interrupted if disturbed else self.ledger.errors)[f"{self.name} {name}"] += 1
        return isinstance(error, OSError)


def usage(pid):
    """Returns memory in MiB, descriptors and threads of a process; `None` if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return (
            int(fields["VmRSS"].split()[0]) / 1024,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(fields["Threads"]),
        )
    except (OSError, KeyError, ValueError):
        return None
