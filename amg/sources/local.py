"""Images on local disks: one or several listings under one numbering, and how a file is read.

With several listings, or one that may repeat itself, a path that comes twice is one image (the first counts, the later
one is told as skipped), and a key that is taken gets parent folders in front until it is not (`x.jpg`, then `b/x.jpg`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit

from amg.errors import SourceError
from amg.sources.paths import from_text, to_text
from amg.sources.source import Skipped, ignore
from amg.values import Failure, ImageRef, Status

MAX_FILE_BYTES = 1 << 32

Report = Callable[[Skipped], object]


@dataclass(frozen=True, slots=True)
class Found:
    """A file that gets a row: its absolute path, the name that becomes its key, and what the listing says of it."""

    path: bytes
    name: bytes
    size_bytes: int | None
    tag: str | None
    extra: str | None = None


class Listing(Protocol):
    """One input. `may_repeat` tells whether one path can come twice."""

    may_repeat: bool

    def found(self, skipped: Report) -> Iterator[Found]: ...


class LocalSource:
    """A `Source` over local files; `inputs` are the words of the user, for messages. Each `refs` lists anew."""

    def __init__(self, inputs: Sequence[str], listings: Sequence[Listing]) -> None:
        self.inputs = tuple(inputs)
        self._listings = tuple(listings)

    def refs(self, *, skipped: Report = ignore) -> Iterator[ImageRef]:
        row, passed = 0, _Counter(skipped)
        shared = len(self._listings) > 1 or any(each.may_repeat for each in self._listings)
        keys = _Keys(passed) if shared else None
        for listing in self._listings:
            for found in listing.found(passed):
                key = to_text(found.name) if keys is None else keys.take(found)
                if key is not None:
                    uri = to_text(found.path)
                    yield ImageRef(row, key, uri, size_bytes=found.size_bytes, tag=found.tag, extra=found.extra)
                    row += 1
        if not row:
            raise SourceError(
                f"no images in {', '.join(self.inputs)}: {passed.count} entries were skipped"
                + (f", the first is {passed.first.path} ({passed.first.reason})" if passed.first else "")
                + "; give a folder that holds images"
            )

    def read(self, ref: ImageRef) -> bytes | Failure:
        path = from_text(ref.uri)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                return Failure(ref, Status.MISSING, "the path is not a regular file but a folder, a pipe or a device")
            if status.st_size > MAX_FILE_BYTES:
                return Failure(ref, Status.TOO_LARGE, f"the file has {status.st_size:,} bytes, at most 4 GiB are read")
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return Failure(ref, Status.MISSING, "the file is gone (or is a link to nothing)")
        except MemoryError:
            return Failure(ref, Status.OUT_OF_MEMORY, "there was not enough memory to read the file")
        except OSError as error:
            return Failure(ref, Status.MISSING, f"the file cannot be read: {error.strerror or error}")


def local_path(text: str) -> bytes:
    """The path that the user's word names, as bytes: a path as it is, or a `file://` URL without its escapes."""
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme and scheme != "file":
        raise SourceError(f"{text}: remote inputs ({scheme}://) come in a later version; copy the images to a folder")
    return unquote_to_bytes(urlsplit(text).path) if scheme else os.fsencode(text)


class _Counter:
    """Counts what is skipped and keeps the first, for the message when nothing else is there."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.count = 0
        self.first: Skipped | None = None

    def __call__(self, skipped: Skipped) -> None:
        self.count, self.first = self.count + 1, self.first or skipped
        self.report(skipped)


class _Keys:
    """Hands out each path once, under a key that no other path has.

    The whole path is always free: a name is either relative, or absolute and then the path itself.
    """

    def __init__(self, skipped: Report) -> None:
        self._skipped = skipped
        self._paths: set[bytes] = set()
        self._keys: set[str] = set()

    def take(self, found: Found) -> str | None:
        key = to_text(found.name)
        if found.path in self._paths:
            self._skipped(Skipped(key, "listed twice; the first one counts"))
            return None
        parts, n = found.path.split(b"/"), found.name.count(b"/") + 1
        while key in self._keys:
            n += 1
            key = to_text(b"/".join(parts[-n:]))
        self._paths.add(found.path)
        self._keys.add(key)
        return key
