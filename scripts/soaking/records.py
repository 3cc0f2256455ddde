"""Records with bytes that name key and version, and the state of each."""

import random
import re
import threading
import time
import zlib

HEADER = re.compile(rb"([a-z0-9-]+) (\d+) (\d+)\n")


def size_of(key, version):
    """Returns the size of a version's content: mostly small, at times large."""
    chance = random.Random(f"size {key} {version}")
    kind = chance.random()
    if kind < 0.70:
        return chance.randrange(40, 4_000)
    if kind < 0.93:
        return chance.randrange(4_000, 200_000)
    return chance.randrange(1_100_000, 5_000_000)


def content(key, version):
    """Returns a version's content."""
    size = size_of(key, version)
    head = f"{key} {version} {size}\n".encode()
    chance = random.Random(f"{key} {version}")
    if key.startswith("gz"):
        # What can be compressed.
        body = chance.randbytes(size // 2 + 1).hex().encode()
    else:
        body = chance.randbytes(size)
    return (head + body)[:max(size, len(head))]


def gzipped(data):
    """Returns what a client would upload with `Content-Encoding: gzip`."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


class Record:
    """One key: which versions may be seen. Each key has one writer."""

    def __init__(self, key):
        self.key = key
        self.lock = threading.Lock()
        self.begun = 0  # the newest version that a writer has begun
        self.stored = []  # (when, version) that is surely in the store from then on
        self.closed = None  # (mount, its life or None for any, version) that it shows from now on
        self.kept = 0  # the newest version that a mount has taken on to upload
        self.moves = 0  # odd while its mount's programs are writing it
        self.is_torn = False  # the last write of it failed
        self.may_be_gone = False
        self.history = []  # what was done to it lately

    def note(self, text):
        """Remembers the operations, to find the cause of a finding."""
        self.history.append(f"{time.strftime('%H:%M:%S')} {text}")
        del self.history[:-12]

    def begin(self):
        with self.lock:
            self.begun += 1
            return self.begun

    def is_stored(self, version):
        with self.lock:
            self.stored.append((time.monotonic(), version))
            del self.stored[:-50]

    def floor(self, now):
        """Returns the newest version that was in the store at `now`; 0 for none."""
        with self.lock:
            return max((version for when, version in self.stored if when <= now), default=0)


def fault_of(record, data, at=0, whole=True, version=None):
    """Returns what is wrong with bytes read from `at`; `None` if they are a version's bytes.

    Also returns the version. `version` is known when a part is looked at.
    """
    if version is None:
        head = HEADER.match(data)
        if not head:
            return f"{len(data)} bytes do not begin as a record does: {data[:60]!r}", 0
        if head[1].decode() != record.key:
            return f"bytes of {head[1].decode()}", 0
        version = int(head[2])
    if version > record.begun:
        return f"version {version} has never been written", version
    right = content(record.key, version)
    expected = right[at:] if whole else right[at : at + len(data)]
    if data == expected:
        return None, version
    if len(data) != len(expected):
        return f"{len(data)} bytes of version {version} instead of {len(expected)}", version
    first = next(i for i, (a, b) in enumerate(zip(data, expected)) if a != b)
    return f"version {version} is wrong from byte {at + first} on", version
