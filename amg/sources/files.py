"""Images in a folder with all that is under it, in what a glob matches, or in one file.

Order: the bytes of the POSIX paths. Key: the path relative to the folder (a single file's name; under a glob the path
from the last folder before the wildcards).

Not entered or taken, and told as skipped: names that start with a dot (unless the glob or the input itself names them),
other outputs of this program, links back to a folder they lie in, pipes and devices, folders that cannot be listed.
Other links are followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from amg.errors import SourceError
from amg.sources.found import Found, tabulate
from amg.sources.kinds import FIRST_BYTES, IMAGE_SUFFIXES, is_image, suffix
from amg.sources.local import local_path
from amg.sources.paths import Pattern, is_glob, split_glob, to_text
from amg.sources.source import Report, Skipped
from amg.sources.wanted import AN_OUTPUT, reason_in_suffix, step


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder on the way down. `state` is the glob's; None where everything below is wanted."""

    path: bytes
    relative: bytes
    state: frozenset[int] | None
    above: frozenset[tuple[int, int]]  # device and inode of this folder and all it lies in


class Files:
    """The `Listing` of a file, a folder or a glob; SourceError at birth when it is not there."""

    may_repeat = False

    def __init__(self, text: str) -> None:
        self._root, self._pattern = _root(text)

    def found(self, skipped: Report) -> Iterator[Found]:
        if self._pattern is not None or os.path.isdir(self._root):
            yield from _walk(self._root, self._pattern, skipped)
        elif found := _look_at(self._root, os.path.basename(self._root), skipped):
            yield found

    def columns(self, skipped: Report) -> Iterator[pa.RecordBatch]:
        yield from tabulate(self.found(skipped))

    def digest(self) -> None:
        """Only a listing can tell what is there."""


def _root(text: str) -> tuple[bytes, Pattern | None]:
    """An input as an absolute path, with the pattern that a glob lays over what is under it."""
    given = local_path(text)
    if given and os.path.exists(given):
        return os.path.abspath(given), None
    if os.path.islink(given):
        raise SourceError(f"{text} is a link to nothing; wanted a file, a folder or a glob")
    if not is_glob(given):
        raise SourceError(
            f"there is no file or folder {text!r} (seen from {os.getcwd()}); wanted a file, a folder or a glob"
        )
    folder, pattern = split_glob(os.path.abspath(given))
    if not os.path.isdir(folder):
        raise SourceError(f"{text}: the folder {to_text(folder)} before the wildcards is not there")
    return folder, pattern


def _walk(root: bytes, pattern: Pattern | None, skipped: Report) -> Iterator[Found]:
    """What is under `root`, depth first with a stack of our own: folders may be nested deeper than Python recurses."""
    status = os.stat(root)
    top = _Folder(root, b"", pattern.start if pattern else None, frozenset([(status.st_dev, status.st_ino)]))
    stack = [iter(_entries(top, skipped))]
    folders = [top]
    while stack:
        is_folder, entry = next(stack[-1], (False, None))
        if entry is None:
            stack.pop()
            folders.pop()
            continue
        folder = folders[-1]
        relative = folder.relative + b"/" + entry.name if folder.relative else entry.name
        state = step(pattern, folder.state, entry.name, relative, skipped)
        if state is not None and not state:
            continue
        wanted = state is None or (pattern is not None and pattern.is_match(state))
        if is_folder:
            below = _enter(entry, relative, None if wanted else state, folder, skipped)
            if below is not None:
                folders.append(below)
                stack.append(iter(_entries(below, skipped)))
        elif wanted:
            found = _look_at(entry.path, relative, skipped)
            if found is not None:
                yield found


def _entries(folder: _Folder, skipped: Report) -> list[tuple[bool, os.DirEntry[bytes]]]:
    """The folder's entries in the order of the paths under it, each with whether it is a folder."""
    try:
        with os.scandir(folder.path) as scan:
            entries = [(_is_folder(entry), entry) for entry in scan]
    except OSError as error:
        reason = f"the folder cannot be listed: {error.strerror or error}"
        if not folder.relative:
            raise SourceError(f"{to_text(folder.path)}: {reason}; see to its permissions") from error
        skipped(Skipped(to_text(folder.relative), reason))
        return []
    if folder.relative and os.path.isfile(os.path.join(folder.path, b"_plan", b"plan.json")):
        skipped(Skipped(to_text(folder.relative), AN_OUTPUT))
        return []
    return sorted(entries, key=lambda pair: pair[1].name + b"/" if pair[0] else pair[1].name)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round in a circle
        return False


def _enter(
    entry: os.DirEntry[bytes], relative: bytes, state: frozenset[int] | None, folder: _Folder, skipped: Report
) -> _Folder | None:
    try:
        status = os.stat(entry.path)
    except OSError as error:
        skipped(Skipped(to_text(relative), f"the folder cannot be entered: {error.strerror or error}"))
        return None
    here = (status.st_dev, status.st_ino)
    if here in folder.above:
        skipped(Skipped(to_text(relative), "a link to a folder that it lies in"))
        return None
    return _Folder(entry.path, relative, state, folder.above | {here})


def _look_at(path: bytes, relative: bytes, skipped: Report) -> Found | None:
    """The file if it has an image's suffix or first bytes; with neither it is told as skipped."""
    ending = suffix(os.path.basename(relative))
    try:
        status = os.stat(path)
    except OSError as error:
        if ending in IMAGE_SUFFIXES:  # its row will say that it is missing
            return Found(path, relative, None, None)
        skipped(Skipped(to_text(relative), f"a link to nothing, or gone: {error.strerror or error}"))
        return None
    reason = None
    if not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif ending not in IMAGE_SUFFIXES:
        reason = reason_in_suffix(ending) or _reason_in(path)
    if reason is None:
        return Found(path, relative, status.st_size, str(status.st_mtime_ns))
    skipped(Skipped(to_text(relative), reason))
    return None


def _reason_in(path: bytes) -> str | None:
    """Why a file with a strange suffix or none is not an image; None when its first bytes are an image's."""
    try:
        with open(path, "rb", buffering=0) as file:
            return None if is_image(file.read(FIRST_BYTES)) else "not an image by its first bytes"
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
