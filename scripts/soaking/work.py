"""What programs do in the mounts, all at once: read, write, list, and write behind their back."""

import errno
import mmap
import os
import random
import time

from .mounts import DEADLINE
from .records import content, fault_of, gzipped

# How long an old version may be seen: the TTL, a question that was under way when the new one was
# stored and that may take the deadline, and a busy machine.
STALE_AFTER = 1 + DEADLINE + 5


class Work:
    """Shared by all workers."""

    def __init__(self, ledger, server, mounts, records, stop):
        self.ledger, self.server, self.mounts, self.records, self.stop = ledger, server, mounts, records, stop

    def _judge(self, operation, mount, record, found, since):
        """Notes bytes that are wrong or too old."""
        problem, version = found
        if problem:
            self.ledger.finding("wrong bytes", f"{mount.name}/{record.key}: {problem}", record.history)
            return
        if not operation.undisturbed():
            return
        floor = record.floor(operation.start - STALE_AFTER)
        if since is not None:
            floor = max(floor, since)
        if version < floor:
            self.ledger.finding(
                "stale", f"{mount.name}/{record.key}: version {version} though {floor} was there",
                record.history,
            )

    def _own_floor(self, mount, record):
        """Returns the version that this mount has closed and must show at once."""
        closed = record.closed
        if closed and closed[0] is mount and closed[1] in (None, mount.life):
            return closed[2]
        return None

    def _absent(self, operation, mount, record):
        if operation.errno == errno.ENOENT and operation.undisturbed() and not record.may_be_gone:
            if record.floor(operation.start - STALE_AFTER):
                self.ledger.finding("denied", f"{mount.name}/{record.key} is said not to exist", record.history)

    def reader(self, mount, pause):
        while not self.stop.is_set():
            record = random.choice(self.records)
            way = random.choice([self._whole, self._whole, self._parts, self._mapped, self._stat])
            since, moves = self._own_floor(mount, record), record.moves
            with self.ledger.operation(way.__name__.strip("_"), mount) as operation:
                found = way(mount, record)
            # This mount's programs see what its writer has written so far.
            torn = record.closed and record.closed[0] is mount and (
                moves != record.moves or moves % 2 or record.is_torn
            )
            if operation.ok and found and not torn:
                self._judge(operation, mount, record, found, since)
            self._absent(operation, mount, record)
            time.sleep(pause * random.random() if mount.is_up else 0.1)

    def _open(self, mount, record):
        fd = self.ledger.call(os.open, f"{mount.path}/{record.key}", os.O_RDONLY)
        self._must_be_mounted(mount, fd)
        return os.fdopen(fd, "rb", buffering=0)

    def _must_be_mounted(self, mount, fd):
        """Between two mounts a path leads to the folder below."""
        if os.fstat(fd).st_dev == mount.ground:
            os.close(fd)
            raise OSError(errno.ENOTCONN, "not mounted")

    def _rest(self, file):
        read = lambda: self.ledger.call(os.read, file.fileno(), random.choice([4096, 131072, 1 << 20]))
        return b"".join(iter(read, b""))

    def _whole(self, mount, record):
        with self._open(mount, record) as file:
            size = os.fstat(file.fileno()).st_size
            data = self._rest(file)
        if size != len(data):
            problem, version = fault_of(record, data)
            again = os.stat(f"{mount.path}/{record.key}").st_size
            return (
                f"{len(data)} bytes of version {version} ({problem}), and fstat said {size}; stat says {again}",
                version,
            )
        problem, version = fault_of(record, data)
        if problem:
            problem += f"; fstat said {size} and says it again"
        return problem, version

    def _parts(self, mount, record):
        if record.closed and record.closed[0] is mount:
            return self._whole(mount, record)
        with self._open(mount, record) as file:
            size = os.fstat(file.fileno()).st_size
            problem, version = None, 0
            head = self.ledger.call(os.pread, file.fileno(), 60, 0)
            name = head.split(b" ")
            if len(name) < 3 or not name[1].isdigit():
                return f"does not begin as a record does: {head!r}", 0
            version = int(name[1])
            right = content(record.key, version)
            if len(right) != size:
                return f"fstat says {size} bytes, version {version} has {len(right)}", version
            for _ in range(4):
                at = random.randrange(size)
                part = self.ledger.call(os.pread, file.fileno(), random.choice([1, 4096, 70_000]), at)
                problem, _ = fault_of(record, part, at, whole=False, version=version)
                if problem:
                    break
            return problem, version

    def _mapped(self, mount, record):
        if record.closed and record.closed[0] is mount:
            return self._whole(mount, record)
        # Only small ones: what cannot be fetched is a SIGBUS, and those are whole after the open.
        with self._open(mount, record) as file:
            size = os.fstat(file.fileno()).st_size
            if size > 200_000 or not mount.is_up or mount.name != "steady":
                data = self._rest(file)
                problem, version = fault_of(record, data)
                if problem:
                    problem += f"; fstat said {size}, now {os.fstat(file.fileno()).st_size}"
                return problem, version
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                return fault_of(record, bytes(view))

    def _stat(self, mount, record):
        self.ledger.call(os.stat, f"{mount.path}/{record.key}")

    def lister(self, mount, pause):
        known = {record.key for record in self.records}
        while not self.stop.is_set():
            with self.ledger.operation("list", mount) as operation:
                names = self.ledger.call(os.listdir, mount.path)
                if os.stat(mount.path).st_dev == mount.ground:
                    raise OSError(errno.ENOTCONN, "not mounted")
            if operation.ok and operation.undisturbed():
                surely = {
                    record.key for record in self.records
                    if not record.may_be_gone and record.floor(operation.start - STALE_AFTER)
                }
                missing = surely - set(names)
                strange = {name for name in names if name not in known and not name.endswith(".tmp")}
                if operation.undisturbed() and (missing or strange or len(set(names)) != len(names)):
                    self.ledger.finding(
                        "wrong listing",
                        f"{mount.name}: {len(names)} names; without {sorted(missing)[:5]}, with {sorted(strange)[:5]}",
                    )
            time.sleep(pause * random.random())

    def writer(self, mount, records, pause):
        while not self.stop.is_set():
            record = random.choice(records)
            if record.may_be_gone and random.random() < 0.2:
                with self.ledger.operation("unlink", mount):
                    record.closed = (mount, -1, 0)
                    self.ledger.call(os.unlink, f"{mount.path}/{record.key}")
                continue
            version = record.begin()
            data = content(record.key, version)
            way = random.choice(["write", "write", "write+fsync", "write+rename"])
            path = f"{mount.path}/{record.key}"
            record.moves += 1
            record.closed = (mount, -1, 0)
            with self.ledger.operation(way, mount) as operation:
                self._write(mount, path + ".tmp" if way == "write+rename" else path, data, way == "write+fsync")
                if way == "write+rename" and os.stat(path + ".tmp").st_dev != mount.ground:
                    self.ledger.call(os.rename, path + ".tmp", path)
            # What could not be written whole goes on being shown until the kernel and kvfs let go of it.
            record.moves += 1
            record.is_torn = not operation.ok
            record.note(f"{way} {version}: {'ok' if operation.ok else errno.errorcode.get(operation.errno)}")
            if operation.ok and not record.may_be_gone:
                is_back = "--write-back" in mount.flags
                if way == "write+fsync" or (way == "write" and not is_back):
                    record.is_stored(version)
                if way != "write+rename" and is_back:
                    record.kept = version
                record.closed = (mount, operation.life if way == "write+rename" or not is_back else None, version)
            time.sleep(pause * random.random() if mount.is_up else 0.2)

    def _write(self, mount, path, data, sync):
        fd = self.ledger.call(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._must_be_mounted(mount, fd)
        try:
            at = 0
            while at < len(data):
                at += self.ledger.call(os.write, fd, data[at : at + random.choice([1000, 65_536, 1 << 20])])
            if sync:
                self.ledger.call(os.fsync, fd)
        except OSError:
            try:
                self.ledger.call(os.close, fd)
            except OSError:
                pass
            raise
        self.ledger.call(os.close, fd)

    def peer(self, records, pause):
        """Another writer of the store."""
        while not self.stop.is_set():
            if not self.server.is_up:
                time.sleep(0.2)
                continue
            record = random.choice(records)
            version = record.begin()
            data = content(record.key, version)
            encoding = "gzip" if record.key.startswith("gz") else None
            if self.server.put(record.key, gzipped(data) if encoding else data, encoding):
                record.is_stored(version)
                record.note(f"put {version}")
            time.sleep(pause * random.random())
