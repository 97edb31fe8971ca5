"""A prefix of an object store: a new file is one conditional PUT, which the store refuses when the key is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from amg.errors import StorageError
from amg.storage.bucket import Bucket, NoObject
from amg.storage.object_file import open_object
from amg.storage.object_url import ObjectUrl
from amg.storage.retries import Retries
from amg.storage.store import TRIAL, Entry


class RemoteStore:
    """What lies under a prefix of a bucket. May be pickled: connections are opened where it is used."""

    def __init__(self, url: ObjectUrl, retries: Retries | None = None) -> None:
        self.url = str(url)
        self._given = url
        self._bucket = Bucket(url.scheme, url.bucket, retries)
        self._bucket_seen = False

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self._given, self._bucket.retries)

    def create_folder(self) -> None:
        """Find out, before any work is done, that one may write here, and that the server knows conditional PUTs.

        One that ignores the condition would let two writers overwrite each other. There is nothing else to create.
        """
        if self.create_if_absent(TRIAL, b"") and self.create_if_absent(TRIAL, b""):
            raise StorageError(
                f"{self.url}: this server replaces objects that it was told to create only if they are absent (PUT "
                "with If-None-Match), so two workers could overwrite each other; update it, or write to another store"
            )

    def list(self, prefix: str = "") -> Iterator[Entry]:
        root = len(self._at(""))
        for found in self._bucket.list(self._at(prefix)):
            yield Entry(found.key[root:].lstrip("/"), found.size_bytes, found.modified)

    def read(self, path: str) -> bytes:
        return self._bucket.read(self._at(path))

    def open(self, path: str) -> BinaryIO:
        return open_object(self._bucket, self._at(path))

    def exists(self, path: str) -> bool:
        try:
            self._bucket.head(self._at(path))
            return True
        except NoObject:
            self._see_bucket()
            return False

    def create_if_absent(self, path: str, data: bytes) -> bool:
        return self._bucket.create(self._at(path), data)

    def remove_folder(self, folder: str) -> None:
        self._bucket.remove([found.key for found in self._bucket.list(self._at(folder))])

    def sweep(self) -> int:
        """Nothing: an upload that was interrupted leaves nothing that anybody sees."""
        return 0

    def _see_bucket(self) -> None:
        """StorageError where there is no bucket: unlike a listing, a look at an object does not tell."""
        if not self._bucket_seen:
            next(self._bucket.list(self._at("_plan")), None)
            self._bucket_seen = True

    def _at(self, path: str) -> str:
        stays_inside = not path.startswith("/") and ".." not in path.split("/")
        assert stays_inside, f"a path that leaves its store: {path}"
        return f"{self._given.key}/{path}".strip("/")
