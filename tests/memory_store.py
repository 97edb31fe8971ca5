"""A store in memory that can be interrupted before any of its writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from amg.storage.store import Entry


@dataclass
class MemoryStore:
    """`before` is called before each write, with its path; what it raises leaves the file unwritten."""

    files: dict[str, bytes] = field(default_factory=dict)
    before: Callable[[str], object] = lambda _: None
    url: str = "memory"

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for path in sorted(self.files):
            if path.startswith(f"{prefix}/" if prefix else ""):
                yield Entry(path, len(self.files[path]), 0.0)

    def read(self, path: str) -> bytes:
        return self.files[path]

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.files[path])

    def exists(self, path: str) -> bool:
        return path in self.files

    def create_if_absent(self, path: str, data: bytes) -> bool:
        self.before(path)
        return self.files.setdefault(path, data) is data

    def sweep(self) -> int:
        return 0

    def remove_folder(self, folder: str) -> None:
        self.files = {path: data for path, data in self.files.items() if not path.startswith(f"{folder}/")}
