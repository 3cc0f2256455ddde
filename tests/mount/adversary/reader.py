# Reads files as programs do, one order a line, and tells what it saw.
import errno, hashlib, json, mmap, os, sys, time

slowest = 0.0

def timed(call, *args):
    global slowest
    begun = time.monotonic()
    try:
        return call(*args)
    finally:
        slowest = max(slowest, time.monotonic() - begun)

def whole(fd):
    parts = []
    while True:
        part = timed(os.read, fd, 1 << 17)
        if not part:
            return b''.join(parts)
        parts.append(part)

def told(fd, data, mixed=False):
    info = timed(os.fstat, fd)
    return {'len': len(data), 'sha': hashlib.sha256(data).hexdigest(), 'size': info.st_size,
            'mtime': info.st_mtime_ns, 'mixed': mixed}

def cat(path):
    fd = timed(os.open, path, os.O_RDONLY)
    try:
        return [told(fd, whole(fd))]
    finally:
        os.close(fd)

def pread(path):
    fd = timed(os.open, path, os.O_RDONLY)
    try:
        size = timed(os.fstat, fd).st_size
        places = [max(0, size - 200), 0, size // 2, size // 3]
        pieces = [timed(os.pread, fd, 100, at) for at in places]
        data = whole(fd)
        return [told(fd, data, any(data[at:at + 100] != piece for at, piece in zip(places, pieces)))]
    finally:
        os.close(fd)

def mapped(path):
    fd = timed(os.open, path, os.O_RDONLY)
    try:
        size = timed(os.fstat, fd).st_size
        if size == 0:
            return [told(fd, b'')]
        # A page that cannot be had ends the program that touches it.
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(out)
                data = mmap.mmap(fd, size, prot=mmap.PROT_READ)[:]
                os.write(into, hashlib.sha256(data).hexdigest().encode())
            finally:
                os._exit(0)
        os.close(into)
        begun = time.monotonic()
        sha = os.read(out, 64)
        os.close(out)
        status = os.waitpid(child, 0)[1]
        global slowest
        slowest = max(slowest, time.monotonic() - begun)
        if status or len(sha) != 64:
            raise OSError(errno.EFAULT, 'the mapping ended')
        info = timed(os.fstat, fd)
        return [{'len': size, 'sha': sha.decode(), 'size': info.st_size, 'mtime': info.st_mtime_ns,
                 'mixed': False}]
    finally:
        os.close(fd)

def sendfile(path):
    fd = timed(os.open, path, os.O_RDONLY)
    to = os.memfd_create('copy')
    try:
        at = 0
        while True:
            more = timed(os.sendfile, to, fd, at, 1 << 20)
            if not more:
                break
            at += more
        return [told(fd, os.pread(to, at + 1, 0) if at else b'')]
    finally:
        os.close(fd)
        os.close(to)

def two(path):
    first = timed(os.open, path, os.O_RDONLY)
    second = None
    try:
        begin = timed(os.read, first, 5000)
        second = timed(os.open, path, os.O_RDONLY)
        one, other = [begin], []
        while True:
            a, b = timed(os.read, first, 1 << 16), timed(os.read, second, 1 << 16)
            one.append(a)
            other.append(b)
            if not a and not b:
                return [told(first, b''.join(one)), told(second, b''.join(other))]
    finally:
        os.close(first)
        if second is not None:
            os.close(second)

ways = {'cat': cat, 'pread': pread, 'mmap': mapped, 'sendfile': sendfile, 'two': two}
for line in sys.stdin:
    order = json.loads(line)
    slowest = 0.0
    answer = {}
    try:
        before = timed(os.stat, order['path'])
        answer['mtime'] = before.st_mtime_ns
        answer['reads'] = ways[order['way']](order['path'])
        answer['after'] = timed(os.stat, order['path']).st_size
    except OSError as error:
        answer['errno'] = errno.errorcode.get(error.errno, str(error.errno))
    answer['slowest'] = slowest
    print(json.dumps(answer), flush=True)
