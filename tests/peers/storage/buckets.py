"""Buckets for tests: moto, made as strict as the storages that it stands for.

`s3`: one request after the other. Moto by itself looks at a write's conditions and then writes,
with room for other requests in between, so that two of them can both make one object.

`gs`: Google Cloud Storage as the object_store library asks it. No registry has a server of
Google's XML API, which is that of S3 but for the names of headers, for numbered versions as
conditions, and for gzip, which Google undoes for clients that do not ask for it unless the object
says `no-transform`. Those three are here, by its documentation; the rest is moto.

Usage: buckets.py s3|gs HOST PORT
"""

import gzip
import io
import itertools
import sys
import threading
from urllib.parse import quote

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

# By this moto knows which of its services is meant.
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Buckets:
    """S3, one request after the other."""

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        # Read before the lock is taken: clients may be slow, or gone.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        if len(body) < length:
            return self.error(start_response, "400 Bad Request", "IncompleteBody")
        environ["wsgi.input"] = io.BytesIO(body)
        with self.lock:
            return self.handle(environ, start_response)

    def handle(self, environ, start_response):
        status, headers, body = self.ask(environ)
        start_response(status, headers)
        return [body]

    def ask(self, environ):
        said = []
        body = b"".join(self.moto(environ, lambda *head: said.append(head)))
        (status, headers, *_) = said[0]
        return status, headers, body

    @staticmethod
    def error(start_response, status, code):
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message/></Error>".encode()
        start_response(
            status, [("content-type", "application/xml"), ("content-length", str(len(body)))]
        )
        return [body]


class Google(Buckets):
    """Google's names and versions."""

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count(1700000000000000)
        self.generations = {}

    def handle(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query = environ["QUERY_STRING"]
        if any(name.startswith("HTTP_X_AMZ") for name in environ):
            return self.error(start_response, "400 Bad Request", "InvalidArgument")
        environ["HTTP_AUTHORIZATION"] = AUTHORIZATION
        environ["RAW_URI"] = environ["REQUEST_URI"] = quote(path) + (f"?{query}" if query else "")
        for name in [name for name in environ if name.startswith("HTTP_X_GOOG_META_")]:
            environ[name.replace("X_GOOG_META", "X_AMZ_META", 1)] = environ.pop(name)
        wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        # An upload in parts makes a version when it is completed.
        in_parts = "uploadId=" in query
        makes = method == "POST" if in_parts else method == "PUT"
        deletes = method == "DELETE" and not in_parts
        if wanted is not None and int(wanted) != self.generations.get(path, 0):
            return self.error(start_response, "412 Precondition Failed", "PreconditionFailed")
        if deletes and path not in self.generations:
            return self.error(start_response, "404 Not Found", "NoSuchKey")
        status, headers, body = self.ask(environ)
        if status.startswith("2"):
            if deletes:
                del self.generations[path]
            elif makes:
                self.generations[path] = next(self.numbers)
        headers = [
            (name.lower().replace("x-amz-meta-", "x-goog-meta-"), value) for name, value in headers
        ]
        headers = [(name, value) for name, value in headers if not name.startswith("x-amz-")]
        if path in self.generations:
            headers.append(("x-goog-generation", str(self.generations[path])))
        described = dict(headers)
        if (
            described.get("content-encoding") == "gzip"
            and "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", "")
            and "no-transform" not in described.get("cache-control", "")
        ):
            dropped = ("content-encoding", "content-length")
            headers = [header for header in headers if header[0] not in dropped]
            body = gzip.decompress(body) if body else body
        start_response(status, headers)
        return [body]


if __name__ == "__main__":
    kind, host, port = sys.argv[1:]
    app = {"s3": Buckets, "gs": Google}[kind]()
    run_simple(host, int(port), app, threaded=True, request_handler=MotoRequestHandler)
