"""Images of one or several listings under one numbering, wherever they lie.

With several listings, or one that may repeat itself, a path that comes twice is one image (the first counts, the later
one is told as skipped), and a key that is taken gets parent folders in front until it is not (`x.jpg`, then `b/x.jpg`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from amg.errors import SourceError
from amg.sources.found import Found, Listing
from amg.sources.paths import to_text
from amg.sources.read import Reader
from amg.sources.source import Report, Skipped, ignore
from amg.values import Failure, ImageRef


class ListedSource:
    """A `Source` over listings; `inputs` are the words of the user, for messages. Each `refs` lists anew."""

    def __init__(self, inputs: Sequence[str], listings: Sequence[Listing]) -> None:
        self.inputs = tuple(inputs)
        self._listings = tuple(listings)
        self._reader = Reader()

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
            raise self._nothing(passed)

    def columns(self, *, skipped: Report = ignore) -> Iterator[pa.RecordBatch]:
        """What `refs` lists as columns of LISTING_SCHEMA; paths may come again, and keys."""
        rows, passed = 0, _Counter(skipped)
        for listing in self._listings:
            for batch in listing.columns(passed):
                rows += batch.num_rows
                yield batch
        if not rows:
            raise self._nothing(passed)

    def digest(self) -> str | None:
        """A digest of what the inputs say; None where one is a folder, a prefix or a glob."""
        digests = [listing.digest() for listing in self._listings]
        said = [each for each in digests if each is not None]
        return hashlib.sha256("\n".join(said).encode()).hexdigest() if len(said) == len(digests) else None

    def read(self, ref: ImageRef) -> bytes | Failure:
        return self._reader.read(ref)

    def _nothing(self, passed: _Counter) -> SourceError:
        return SourceError(
            f"no images in {', '.join(self.inputs)}: {passed.count} entries were skipped"
            + (f", the first is {passed.first.path} ({passed.first.reason})" if passed.first else "")
            + "; give a folder that holds images"
        )


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
