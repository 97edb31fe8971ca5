"""Paths as text: every name a file system allows as valid, reversible UTF-8, and globs over such names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

_UNDECODABLE = re.compile("[\udc80-\udcff]")
_ESCAPED = re.compile(rb"%([0-9A-F]{2})")


def to_text(path: bytes) -> str:
    """The path as text: `%` becomes `%25`, each byte that is not UTF-8 its `%XX`; all else stays as it is."""
    text = path.decode("utf-8", "surrogateescape").replace("%", "%25")
    if text.isascii():
        return text
    return _UNDECODABLE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def from_text(text: str) -> bytes:
    """The path that `to_text` was given."""
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8"))


class Pattern:
    """A glob, part by part: `*` `?` `[...]` inside a name, `**` for any number of folders, none too.

    Its state is the set of parts that may come next, so that a walk can leave out folders that cannot match. A folder
    that matches stands for all that is under it, as when a shell expands the glob. Names that start with a dot match
    only parts that do.
    """

    def __init__(self, parts: Iterable[bytes]) -> None:
        self.parts = tuple(parts)
        self.start = self._with_skips({0})

    def step(self, state: frozenset[int], name: bytes) -> frozenset[int]:
        """The state after entering `name`; empty when nothing below can match."""
        after = set()
        for n in state - {len(self.parts)}:
            part = self.parts[n]
            if part == b"**":
                if not name.startswith(b"."):
                    after.add(n)
            elif fnmatch.fnmatchcase(name, part) and (part.startswith(b".") or not name.startswith(b".")):
                after.add(n + 1)
        return self._with_skips(after)

    def is_match(self, state: frozenset[int]) -> bool:
        return len(self.parts) in state

    def _with_skips(self, state: set[int]) -> frozenset[int]:
        for n in range(len(self.parts)):
            if n in state and self.parts[n] == b"**":
                state.add(n + 1)
        return frozenset(state)


def split_glob(path: bytes) -> tuple[bytes, Pattern]:
    """The folder before the first part with a wildcard, and the pattern of what lies under it."""
    parts = path.split(b"/")
    first = next((n for n, part in enumerate(parts) if is_glob(part)), len(parts))
    return b"/".join(parts[:first]) or b"/", Pattern(part for part in parts[first:] if part)


def is_glob(path: bytes) -> bool:
    return re.search(rb"[*?\[]", path) is not None
