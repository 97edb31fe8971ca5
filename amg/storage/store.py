"""What every place for files can do; paths are relative to it.

`create_if_absent` is what the whole job stands on: of any number of writers exactly one gets True, and nobody ever
sees half a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

TEMPORARY = "_tmp"
IN_PROGRESS = ".inprogress"
CLAIM = ".claim"
TRIAL = "_state/create-if-absent"
"""What a remote store creates to see whether it can."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file; `path` is relative to the store, with `/`; `modified` in seconds since 1970."""

    path: str
    size_bytes: int
    modified: float


class Store(Protocol):
    """One folder of files, local or remote; paths are relative to it, with `/`; every failure is a `StorageError`."""

    url: str

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files under the folder `prefix`, streamed, sorted by the bytes of their paths; none if it is missing."""
        ...

    def read(self, path: str) -> bytes: ...

    def open(self, path: str) -> BinaryIO:
        """The file for reading at any place; the caller closes it."""
        ...

    def exists(self, path: str) -> bool: ...

    def create_if_absent(self, path: str, data: bytes) -> bool:
        """Whether this call made the file; False when it was there. It is whole and on the disk, or not there."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Removes the folder with all that is in it, if it is there."""
        ...

    def sweep(self) -> int:
        """Removes what interrupted writers left behind and nobody is writing any more; how many files that were."""
        ...
