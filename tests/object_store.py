"""An S3 server on loopback and, between it and the code under test, a proxy that fails on demand.

As a fixture, `object_store` is a fresh bucket to which the environment of the test leads:

    def test_x(object_store):
        store = open_store(f"{object_store.url}/out")
        object_store.faults.add("throttle", 3, method="PUT", key="data/")
        ...
        assert object_store.count(method="PUT") == 4

For processes: `env=os.environ | object_store.env`. Outside of pytest: `with serving() as store:`. As a program,
`python -m tests.object_store`, it prints the exports that lead to it and serves until it is interrupted.
"""

from __future__ import annotations

import http.client
import random
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

ACCESS_KEY, SECRET_KEY = "AKIATESTACCESSKEY", "test-secret-key-that-must-never-be-printed"
REFUSALS = {
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "forbid": (403, "AccessDenied", "Access Denied"),
    "unknown_key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "wrong_secret": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "elsewhere": (301, "PermanentRedirect", "The bucket must be addressed using the specified endpoint."),
    "unsupported": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
}
KINDS = (*REFUSALS, "cut_upload", "lose_answer", "error_after", "cut_answer", "hang")
TRANSIENT = ("throttle", "error", "cut_upload", "lose_answer", "error_after", "cut_answer")


@dataclass(frozen=True, slots=True)
class Request:
    """What came: `key` without the bucket, `query` as the client sent it; `status` is 0 where no answer was given."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int = 0
    fault: str = ""

    @property
    def is_listing(self) -> bool:
        return "list-type" in self.query


@dataclass(slots=True)
class Fault:
    """The next `count` requests with that method (any, if empty) whose key contains `key` go wrong."""

    kind: str
    count: int
    method: str = ""
    key: str = ""
    seconds: float = 0.0


class Faults:
    """What the proxy does to requests, from any thread.

    A refusal of `REFUSALS` is answered without asking the store; `cut_upload` closes the connection in the middle of
    the body; `lose_answer` and `error_after` let the store act, then close the connection or answer 500; `cut_answer`
    closes it in the middle of the answer; `hang` waits `seconds` and then goes on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[Fault] = []
        self._rate, self._kinds, self._random = 0.0, TRANSIENT, random.Random(0)

    def add(self, kind: str, count: int = 1, *, method: str = "", key: str = "", seconds: float = 0.0) -> None:
        assert kind in KINDS, f"{kind!r}, wanted one of {', '.join(KINDS)}"
        with self._lock:
            self._planned.append(Fault(kind, count, method, key, seconds))

    def at_random(self, rate: float, *, kinds: Sequence[str] = TRANSIENT, seed: int = 0) -> None:
        """From now on one in `1 / rate` requests goes wrong."""
        with self._lock:
            self._rate, self._kinds, self._random = rate, tuple(kinds), random.Random(seed)

    def clear(self) -> None:
        with self._lock:
            self._planned.clear()
            self._rate = 0.0

    def take(self, request: Request) -> Fault | None:
        """The fault for this request, which is thereby used up."""
        with self._lock:
            for fault in self._planned:
                if fault.count and fault.method in ("", request.method) and fault.key in request.key:
                    fault.count -= 1
                    return fault
            if self._random.random() < self._rate:
                return Fault(self._random.choice(self._kinds), 1)
        return None


@dataclass(slots=True)
class ObjectStore:
    """One bucket behind the faulty proxy. `url` is the bucket's, `env` what leads a process there.

    `stored` counts the PUTs of a key that were obeyed. With `ignores_conditions` it is an old server, which does
    not know If-None-Match. `page` is how many keys it lists at once.
    """

    url: str
    bucket: str
    env: Mapping[str, str]
    faults: Faults
    requests: list[Request] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)
    backend: str = ""
    ignores_conditions: bool = False
    page: int = 1000

    def count(self, *, method: str = "", key: str = "", listing: bool | None = None) -> int:
        """How many requests of that kind came so far, those that failed too."""
        return sum(
            method in ("", each.method) and key in each.key and listing in (None, each.is_listing)
            for each in list(self.requests)
        )

    def put(self, key: str, data: bytes) -> None:
        """Store an object past the proxy, under any key that S3 takes."""
        self._ask("PUT", key, data)

    def get(self, key: str) -> bytes:
        return self._ask("GET", key)

    def delete(self, key: str) -> None:
        self._ask("DELETE", key)

    def _ask(self, method: str, key: str, data: bytes | None = None) -> bytes:
        url = f"http://{self.backend}/{self.bucket}/{quote(key, safe='')}"
        headers = {"Authorization": _SIGNED, "Content-Type": "application/octet-stream"}
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:
            return answer.read()


# The server looks into the header to tell a stranger from an account; it checks no signature.
_SIGNED = (
    f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)


_BACKEND = """
import sys, threading
from moto.server import main
threading.Thread(target=main, args=(["-p", sys.argv[1]],), daemon=True).start()
sys.stdin.read()
"""


@contextmanager
def backend() -> Iterator[str]:
    """moto's S3 server in a process of its own; yields `host:port`. It ends with this process, however that ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", _BACKEND, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def bucket_behind_proxy(server: str) -> Iterator[ObjectStore]:
    """A fresh bucket of that server, behind a proxy of its own."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    store = ObjectStore(f"s3://{bucket}", bucket, {}, Faults(), backend=server)
    store._ask("PUT", "")
    proxy = _Proxy(("127.0.0.1", 0), store)
    store.env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """Server, proxy and bucket, for one block."""
    with backend() as server, bucket_behind_proxy(server) as store:
        yield store


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with backend() as server:
        yield server


@pytest.fixture
def object_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A fresh bucket, to which the environment of this test leads."""
    with bucket_behind_proxy(s3_server) as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        yield store


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: ObjectStore) -> None:
        self.store = store
        # S3 decides between two conditional creations of one key; moto looks first and stores then, without a lock.
        self.locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Proxy
    _to_backend: http.client.HTTPConnection | None = None

    def do_GET(self) -> None:
        store, request = self.server.store, self._request()
        fault = store.faults.take(request)
        kind = fault.kind if fault else ""
        request = replace(request, fault=kind)
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "cut_upload":
            self.rfile.read(length // 2)
            return self._cut(request)
        body = self.rfile.read(length)
        if fault and kind == "hang" and select.select([self.connection], [], [], fault.seconds)[0]:
            return self._cut(request)  # the client gave up
        if kind in REFUSALS:
            return self._refuse(request, *REFUSALS[kind])
        status, headers, answer = self._forward(request, body)
        if kind == "lose_answer":
            return self._cut(request)
        if kind == "error_after":
            return self._refuse(request, *REFUSALS["error"])
        self._answer(request, status, headers, answer, cut=kind == "cut_answer")

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Requests are in `ObjectStore.requests`."""

    def finish(self) -> None:
        if self._to_backend is not None:
            self._to_backend.close()
        with suppress(OSError):
            super().finish()

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path.lstrip("/").partition("/")[2])
        return Request(self.command, key, query, dict(self.headers.items()))

    def _forward(self, request: Request, body: bytes) -> tuple[int, Sequence[tuple[str, str]], bytes]:
        if self._to_backend is None:
            self._to_backend = http.client.HTTPConnection(self.server.store.backend, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "expect")}
        if self.server.store.ignores_conditions:
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        is_conditional = request.method == "PUT" and "if-none-match" in map(str.lower, headers)
        with self.server.locks[request.key] if is_conditional else threading.Lock():
            path = f"{self.path}&max-keys={self.server.store.page}" if request.is_listing else self.path
            self._to_backend.request(request.method, path, body or None, headers)
            answer = self._to_backend.getresponse()
            content = answer.read()
        if request.method == "PUT" and answer.status == 200:
            self.server.store.stored[request.key] += 1
        return answer.status, answer.getheaders(), content

    def _answer(
        self, request: Request, status: int, headers: Sequence[tuple[str, str]], body: bytes, *, cut: bool = False
    ) -> None:
        self.server.store.requests.append(replace(request, status=status))
        self.send_response_only(status)
        dropped = ("connection", "transfer-encoding", "content-length" if request.method != "HEAD" else "")
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if request.method != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._close()

    def _refuse(self, request: Request, status: int, code: str, message: str) -> None:
        xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        self._answer(request, status, [("Content-Type", "application/xml")], xml.encode())

    def _cut(self, request: Request) -> None:
        self.server.store.requests.append(request)
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    with serving() as store:
        for name, value in store.env.items():
            print(f"export {name}={value}")
        print(f"# {store.url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
