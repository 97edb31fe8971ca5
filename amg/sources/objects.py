"""Images in an object store: all under a prefix, what a glob matches, or one object.

Order: the bytes of the keys, as the store lists them. Key: the object's key relative to the prefix (a single object's
name; under a glob from the last folder before the wildcards). Tag: the ETag.

The rules are those of folders, but one: to look into an object costs a request, so one whose suffix tells nothing is
skipped, unless it is named itself. An object that is both there and a prefix of others counts as itself; with a `/`
behind it, it is a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import pyarrow as pa

from amg.errors import SourceError
from amg.sources.found import Found, tabulate
from amg.sources.kinds import FIRST_BYTES, IMAGE_SUFFIXES, is_image, suffix
from amg.sources.paths import Pattern, is_glob, split_glob, to_text
from amg.sources.source import Report, Skipped
from amg.sources.wanted import AN_OUTPUT, reason_in_suffix, step
from amg.storage.bucket import Bucket, NoObject, StoredObject
from amg.storage.object_url import ObjectUrl, parse_object_url

_PLAN = [b"_plan", b"plan.json"]


@dataclass(slots=True)
class _Folder:
    """A folder on the way to the object at hand. `state` is the glob's; None where everything below is wanted."""

    name: bytes
    state: frozenset[int] | None
    is_left_out: bool = False


class Objects:
    """The `Listing` of an object, a prefix or a glob in an object store; SourceError at birth when nothing is there."""

    may_repeat = False

    def __init__(self, text: str) -> None:
        url = parse_object_url(text)
        self._bucket = Bucket(url.scheme, url.bucket)
        self._folder, self._pattern, self._object = self._settle(url, is_folder=text.endswith("/"))

    def found(self, skipped: Report) -> Iterator[Found]:
        if self._object is not None:
            reason = self._reason_in(self._object)
            name = self._object.key.rpartition("/")[2].encode()
            if reason is None:
                yield self._found(self._object, name)
            else:
                skipped(Skipped(to_text(name), reason))
            return
        walk = _Walk(self._pattern, skipped)
        for stored in self._bucket.list(self._folder):
            relative = stored.key.encode()[len(self._folder.encode()) :].lstrip(b"/")
            if walk.wants(relative):
                yield self._found(stored, relative)

    def columns(self, skipped: Report) -> Iterator[pa.RecordBatch]:
        yield from tabulate(self.found(skipped))

    def digest(self) -> None:
        """Only a listing can tell what is there."""

    def _settle(self, url: ObjectUrl, *, is_folder: bool) -> tuple[str, Pattern | None, StoredObject | None]:
        """The prefix to list, the pattern laid over it, or the one object."""
        if url.key and not is_folder:
            try:
                return "", None, self._bucket.head(url.key)
            except NoObject:
                pass
        if self._has_any(url.key):
            return url.key, None, None
        if not is_glob(url.key.encode()):
            raise SourceError(f"there is nothing under {url}; wanted an object, a prefix of some, or a glob")
        folder, pattern = split_glob(url.key.encode())
        prefix = folder.decode().strip("/")
        if not self._has_any(prefix):
            raise SourceError(f"{url}: there is nothing under {self._bucket.url}/{prefix}, before the wildcards")
        return prefix, pattern, None

    def _has_any(self, prefix: str) -> bool:
        return next(self._bucket.list(prefix), None) is not None

    def _found(self, stored: StoredObject, name: bytes) -> Found:
        return Found(f"{self._bucket.url}/{stored.key}".encode(), name, stored.size_bytes, stored.tag)

    def _reason_in(self, named: StoredObject) -> str | None:
        """Why an object that the user named is no image; None when its suffix or its first bytes are an image's."""
        ending = suffix(named.key.rpartition("/")[2].encode())
        if ending in IMAGE_SUFFIXES:
            return None
        if reason := reason_in_suffix(ending):
            return reason
        begin = self._bucket.read_range(named.key, 0, FIRST_BYTES) if named.size_bytes else b""
        return None if is_image(begin) else "not an image by its first bytes"


class _Walk:
    """Goes through keys in their order and says which are wanted; tells what is skipped, a hidden folder once."""

    def __init__(self, pattern: Pattern | None, skipped: Report) -> None:
        self._pattern = pattern
        self._skipped = skipped
        self._folders = [_Folder(b"", pattern.start if pattern else None)]

    def wants(self, relative: bytes) -> bool:
        *above, name = relative.split(b"/")
        folder = self._enter(above)
        if [*above, name][-2:] == _PLAN and len(above) > 1 and not folder.is_left_out:
            self._folders[-2].is_left_out = folder.is_left_out = True
            self._skipped(Skipped(to_text(b"/".join(above[:-1])), AN_OUTPUT))
        if folder.is_left_out or not name:
            return False
        state = step(self._pattern, folder.state, name, relative, self._skipped)
        if state is not None and not (self._pattern and self._pattern.is_match(state)):
            return False
        ending = suffix(name)
        if ending not in IMAGE_SUFFIXES:
            self._skipped(
                Skipped(to_text(relative), reason_in_suffix(ending) or "no suffix of an image; name it itself")
            )
        return ending in IMAGE_SUFFIXES

    def _enter(self, above: list[bytes]) -> _Folder:
        """The folder of these parts; what it shares with the one before is known."""
        pairs = zip(above, self._folders[1:], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1].name, pairs))
        del self._folders[shared + 1 :]
        for depth in range(shared, len(above)):
            self._folders.append(self._below(self._folders[-1], above[: depth + 1]))
        return self._folders[-1]

    def _below(self, folder: _Folder, parts: list[bytes]) -> _Folder:
        if folder.is_left_out:
            return _Folder(parts[-1], None, True)
        state = step(self._pattern, folder.state, parts[-1], b"/".join(parts), self._skipped)
        if state is not None and self._pattern is not None and self._pattern.is_match(state):
            state = None
        return _Folder(parts[-1], state, state is not None and not state)
