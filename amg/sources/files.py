"""Images in files: one file, a folder with all that is under it, a glob, or several of these.

Order: the inputs as given, under each the bytes of the POSIX paths. Key: the path relative to its input (a single
file's name; under a glob the path from the last folder before the wildcards). With several inputs a path that comes
twice is one image, and a key that is taken gets parent folders in front until it is not (`x.jpg`, then `b/x.jpg`).

Not entered or taken, and told as skipped: names that start with a dot (unless a glob or the input itself names them),
other outputs of this program, links back to a folder they lie in, pipes and devices, folders that cannot be listed.
Other links are followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from amg.errors import SourceError
from amg.sources.kinds import FIRST_BYTES, IMAGE_SUFFIXES, OTHER_SUFFIXES, is_image, suffix
from amg.sources.paths import Pattern, from_text, is_glob, split_glob, to_text
from amg.sources.source import Skipped, ignore
from amg.values import Failure, ImageRef, Status

MAX_FILE_BYTES = 1 << 32

Report = Callable[[Skipped], object]


@dataclass(frozen=True, slots=True)
class _Found:
    relative: bytes
    size_bytes: int | None
    tag: str | None


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder on the way down. `state` is the glob's; None where everything below is wanted."""

    path: bytes
    relative: bytes
    state: frozenset[int] | None
    above: frozenset[tuple[int, int]]  # device and inode of this folder and all it lies in


class FileSource:
    """A `Source` over local files; the inputs are checked at birth and listed anew by each `refs`."""

    def __init__(self, *inputs: str | os.PathLike[str]) -> None:
        if not inputs:
            raise SourceError("no input was given, wanted a file, a folder or a glob in quotes")
        self.inputs = tuple(os.fspath(each) for each in inputs)
        self._roots = [_root(text) for text in self.inputs]

    def refs(self, *, skipped: Report = ignore) -> Iterator[ImageRef]:
        row, passed = 0, _Counter(skipped)
        keys = _Keys() if len(self._roots) > 1 else None
        for folder, found in self._found(passed):
            path = os.path.join(folder, found.relative)
            key = to_text(found.relative) if keys is None else keys.take(path, found.relative)
            if key is not None:
                yield ImageRef(row, key, to_text(path), size_bytes=found.size_bytes, tag=found.tag)
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
                return Failure(ref, Status.MISSING, "the path is no longer a regular file")
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

    def _found(self, skipped: Report) -> Iterator[tuple[bytes, _Found]]:
        for path, pattern in self._roots:
            if pattern is None and not os.path.isdir(path):
                folder, name = os.path.split(path)
                found = _look_at(path, name, skipped)
                if found is not None:
                    yield folder, found
            else:
                for found in _walk(path, pattern, skipped):
                    yield path, found


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
    """Hands out each path once, under a key that no other path has."""

    def __init__(self) -> None:
        self._paths: set[bytes] = set()
        self._keys: set[str] = set()

    def take(self, path: bytes, relative: bytes) -> str | None:
        if path in self._paths:
            return None
        parts = path.split(b"/")
        n, key = relative.count(b"/") + 1, to_text(relative)
        while key in self._keys:
            n += 1
            key = to_text(b"/".join(parts[-n:]))
        self._paths.add(path)
        self._keys.add(key)
        return key


def _root(text: str) -> tuple[bytes, Pattern | None]:
    """An input as an absolute path, with the pattern that a glob lays over what is under it."""
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme and scheme != "file":
        raise SourceError(f"{text}: remote inputs ({scheme}://) come in a later version; copy the images to a folder")
    given = unquote_to_bytes(urlsplit(text).path) if scheme else os.fsencode(text)
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


def _walk(root: bytes, pattern: Pattern | None, skipped: Report) -> Iterator[_Found]:
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
        state = _step(pattern, folder.state, entry.name, relative, skipped)
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


def _step(
    pattern: Pattern | None, state: frozenset[int] | None, name: bytes, relative: bytes, skipped: Report
) -> frozenset[int] | None:
    """The glob's state at `name`: empty when it is not wanted, None when everything below it is."""
    if pattern is not None and state is not None:
        return pattern.step(state, name)
    if name.startswith(b"."):
        skipped(Skipped(to_text(relative), "hidden: the name starts with a dot"))
        return frozenset()
    return None


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
        skipped(Skipped(to_text(folder.relative), "an output of sam-amg"))
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


def _look_at(path: bytes, relative: bytes, skipped: Report) -> _Found | None:
    """The file if it has an image's suffix or first bytes; with neither it is told as skipped."""
    ending = suffix(os.path.basename(relative))
    try:
        status = os.stat(path)
    except OSError as error:
        if ending in IMAGE_SUFFIXES:  # its row will say that it is missing
            return _Found(relative, None, None)
        skipped(Skipped(to_text(relative), f"a link to nothing, or gone: {error.strerror or error}"))
        return None
    reason = None
    if not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif ending not in IMAGE_SUFFIXES:
        reason = f"not an image: a {ending.decode()} file" if ending in OTHER_SUFFIXES else _reason_in(path)
    if reason is None:
        return _Found(relative, status.st_size, str(status.st_mtime_ns))
    skipped(Skipped(to_text(relative), reason))
    return None


def _reason_in(path: bytes) -> str | None:
    """Why a file with a strange suffix or none is not an image; None when its first bytes are an image's."""
    try:
        with open(path, "rb", buffering=0) as file:
            return None if is_image(file.read(FIRST_BYTES)) else "not an image by its first bytes"
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
