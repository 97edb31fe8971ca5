"""A folder of a store as a store of its own, so that what works on an output works on a part of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from amg.storage.store import Entry, Store


class Within:
    """Paths are relative to `folder` of `outer`, which does the work and keeps the temporary files."""

    def __init__(self, outer: Store, folder: str) -> None:
        self.url = f"{outer.url}/{folder}"
        self._outer = outer
        self._folder = folder

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for entry in self._outer.list(f"{self._folder}/{prefix}".rstrip("/")):
            yield replace(entry, path=entry.path.removeprefix(f"{self._folder}/"))

    def read(self, path: str) -> bytes:
        return self._outer.read(self._at(path))

    def open(self, path: str) -> BinaryIO:
        return self._outer.open(self._at(path))

    def exists(self, path: str) -> bool:
        return self._outer.exists(self._at(path))

    def create_if_absent(self, path: str, data: bytes) -> bool:
        return self._outer.create_if_absent(self._at(path), data)

    def remove_folder(self, folder: str) -> None:
        self._outer.remove_folder(self._at(folder))

    def sweep(self) -> int:
        return self._outer.sweep()

    def _at(self, path: str) -> str:
        return f"{self._folder}/{path}"
