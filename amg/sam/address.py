"""Weights at an address: `s3://bucket/sam.pth#sha256=HEX`, in an object store or at http(s).

The digest makes the address mean the same bytes for ever and everywhere: a machine that has them does not ask again.
Without it they are loaded each time, because only the bytes can tell whether they are still the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from amg.errors import ConfigError, StorageError, WeightsError
from amg.sam.cache import bringing_in, cache_folder, keep, say
from amg.sam.places import PlaceFailed, digest, download
from amg.storage.url import open_store

CHUNK_BYTES = 1 << 25  # one request each
_DIGEST = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where weights lie; `sha256` in hex, None where the name does not say it."""

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        """The address for a person: without a password, a signature, or the digest."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def name(self) -> str:
        """What `model.weights` holds for it; `parse_address` reads it back."""
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url

    @property
    def file(self) -> str:
        """Its name in the cache."""
        last = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(self.url).path)).name)
        key = self.sha256 or hashlib.sha256(self.url.encode()).hexdigest()
        return f"{key[:16]}-{last or 'weights'}"


def parse_address(name: str) -> Address | None:
    """The address that a name is, None where it is none; ConfigError where what follows `#` is no digest."""
    if "://" not in name:
        return None
    url, hash_, fragment = name.partition("#")
    found = _DIGEST.fullmatch(fragment.lower())
    if not urlsplit(url).path.strip("/"):
        raise ConfigError(f"{Address(url)}: wanted the address of a file, such as s3://bucket/folder/sam.pth")
    if hash_ and not found:
        raise ConfigError(f"{Address(url)}: got #{fragment}, wanted #sha256= and 64 hex digits, or nothing")
    return Address(url, found[1] if found else None)


def bring(address: Address, *, cache: Path | None = None, progress: bool = True) -> tuple[Path, Address]:
    """The file in the cache, and the address with its digest. A second process waits for the first.

    WeightsError where the address does not give it, or gives other bytes.
    """
    folder = cache or cache_folder()
    path = folder / address.file
    if address.sha256 and path.is_file():
        return path, address
    with bringing_in(path, what=str(address), size_bytes=None, progress=progress) as partial:
        if address.sha256 and path.is_file():
            return path, address
        if address.sha256 is None:
            partial.unlink(missing_ok=True)  # it may be the beginning of other bytes
            say(f"{address} is loaded again each time; with #sha256=... behind it, only once", progress=progress)
        try:
            _deliver(address, partial, progress=progress)
        except PlaceFailed as failure:
            raise WeightsError(
                f"{address} cannot be used: {failure}; correct model.weights, or put the right file there"
            ) from failure
        pinned = replace(address, sha256=address.sha256 or digest(partial))
        keep(partial, folder / pinned.file)
    return folder / pinned.file, pinned


def _deliver(address: Address, partial: Path, *, progress: bool) -> None:
    """Fill `partial`, and see that its digest is the one wanted, if one is."""
    if urlsplit(address.url).scheme in ("http", "https"):
        download(address.url, partial, size_bytes=None, sha256=address.sha256, progress=progress)
        return
    say(f"loading {address}", progress=progress)
    try:
        found = _copy(address.url, partial)
    except StorageError as error:
        raise PlaceFailed(str(error)) from error
    if found != (address.sha256 or found):
        partial.unlink()
        raise PlaceFailed(f"it holds other bytes: sha256 {found}, wanted {address.sha256}")


def _copy(url: str, partial: Path) -> str:
    """The digest of what is written."""
    folder, _, file = url.rpartition("/")
    sha256 = hashlib.sha256()
    source: BinaryIO
    with open_store(folder).open(file) as source, partial.open("wb") as sink:
        while chunk := source.read(CHUNK_BYTES):
            sha256.update(chunk)
            sink.write(chunk)
    return sha256.hexdigest()
