"""A local folder: a new file is a temporary one and `os.link`.

Where links are not to be had it is a rename that refuses to replace, and where that is missing too, a rename under an
exclusive claim.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from amg.errors import StorageError
from amg.storage.store import CLAIM, IN_PROGRESS, TEMPORARY, Entry

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
_NO_EXCLUSIVE_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_ATTEMPTS = 3
_CLAIM_SECONDS = 60.0  # a claim is held for one rename; an older one lost its owner


class LocalStore:
    """A local folder. Temporary files lie in its `_tmp`, so that no reader of `data/` ever meets one."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = str(self.root)

    def create_folder(self) -> None:
        with _as_storage_error(self.root, "create"):
            self.root.mkdir(parents=True, exist_ok=True)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        with _as_storage_error(self._at(prefix), "list"), suppress(FileNotFoundError):
            yield from _walk(self._at(prefix), prefix)

    def read(self, path: str) -> bytes:
        with _as_storage_error(self._at(path), "read"):
            return self._at(path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        with _as_storage_error(self._at(path), "read"):
            return self._at(path).open("rb")

    def exists(self, path: str) -> bool:
        with _as_storage_error(self._at(path), "look at"):
            return os.path.lexists(self._at(path))

    def create_if_absent(self, path: str, data: bytes) -> bool:
        final = self._at(path)
        with _as_storage_error(final, "write"):
            for attempt in range(_ATTEMPTS):
                if os.path.lexists(final):
                    return False
                self._make_folders(final.parent)
                try:
                    return _create(final, data, self.root / TEMPORARY / f"{uuid.uuid4().hex}{IN_PROGRESS}")
                except FileNotFoundError:  # swept by another run in the instant before its lock was taken
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def remove_folder(self, folder: str) -> None:
        with _as_storage_error(self._at(folder), "remove"), suppress(FileNotFoundError):
            shutil.rmtree(self._at(folder))

    def sweep(self) -> int:
        swept = 0
        with _as_storage_error(self.root / TEMPORARY, "sweep"), suppress(FileNotFoundError):
            for entry in os.scandir(self.root / TEMPORARY):
                if entry.name.endswith((IN_PROGRESS, CLAIM)) and _is_abandoned(Path(entry.path)):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)
                        swept += 1
        return swept

    def _at(self, path: str) -> Path:
        stays_inside = not path.startswith("/") and ".." not in path.split("/")
        assert stays_inside, f"a path that leaves its store: {path}"
        return self.root / path

    def _make_folders(self, folder: Path) -> None:
        """`_tmp` first and without its parents: a store whose folder vanished must fail, not come back empty."""
        (self.root / TEMPORARY).mkdir(exist_ok=True)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(folder.parent)


def _walk(folder: Path, prefix: str) -> Iterator[Entry]:
    entries = [(entry.is_dir(follow_symlinks=False), entry) for entry in os.scandir(folder)]
    entries.sort(key=lambda pair: os.fsencode(pair[1].name + "/" * pair[0]))
    for is_folder, entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        with suppress(FileNotFoundError):  # a temporary file may be gone by now
            if is_folder:
                yield from _walk(Path(entry.path), path)
            else:
                status = entry.stat()
                yield Entry(path, status.st_size, status.st_mtime)


def _create(final: Path, data: bytes, temporary: Path) -> bool:
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # the lock tells a sweep that the writer lives; some file systems have none
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            won = _publish(temporary, final)
        _sync_folder(final.parent)
        return won
    finally:
        with suppress(OSError):
            temporary.unlink()


def _publish(temporary: Path, final: Path) -> bool:
    """Gives the finished file its name, by the first of three ways that the file system knows."""
    try:
        os.link(temporary, final)
        return True
    except FileExistsError:
        return temporary.stat().st_nlink > 1  # over NFS a link may succeed and its answer get lost
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        _rename_exclusively(temporary, final)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_EXCLUSIVE_RENAME:
            raise
    return _rename_under_claim(temporary, final)


def _rename_exclusively(temporary: Path, final: Path) -> None:
    """Renames unless the name is taken: `renameat2` with RENAME_NOREPLACE, or macOS's `renamex_np` with RENAME_EXCL."""
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(temporary), os.fsencode(final)
    at_cwd, no_replace, exclusive = -100, 1, 4
    if hasattr(libc, "renameat2"):
        result = libc.renameat2(at_cwd, old, at_cwd, new, no_replace)
    elif sys.platform == "darwin":
        result = libc.renamex_np(old, new, exclusive)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(final))


def _rename_under_claim(temporary: Path, final: Path) -> bool:
    """A plain rename by the one writer that could create the claim; the others wait for what comes of it."""
    claim = temporary.parent / f"{final.parent.name}-{final.name}{CLAIM}"
    while not os.path.lexists(final):
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - claim.stat().st_mtime > _CLAIM_SECONDS:
                    claim.unlink()
            time.sleep(0.01)
            continue
        try:
            if os.path.lexists(final):
                return False
            os.rename(temporary, final)
            return True
        finally:
            claim.unlink(missing_ok=True)
    return False


def _is_abandoned(path: Path) -> bool:
    """Whether no living writer holds the file. A claim, which is never locked, counts by its age."""
    try:
        with path.open("rb") as file:
            if path.name.endswith(CLAIM):
                return time.time() - os.fstat(file.fileno()).st_mtime > _CLAIM_SECONDS
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # no locks here: an hour is longer than any write
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > 3600
        return False


def _sync_folder(folder: Path) -> None:
    """Makes names in the folder survive a power cut; file systems that cannot sync a folder do it themselves."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_storage_error(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot {verb} {path}: {reason}; {_advice(error.errno, verb)}") from error


def _advice(number: int | None, verb: str) -> str:
    again = "then run the same command again, what is finished is kept"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"make room on that disk, {again}"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"make it {'readable' if verb in ('list', 'read', 'look at') else 'writable'} for this user, {again}"
    if number == errno.EEXIST:
        return "a file of that name is in the way: choose another folder"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"the folder is not there: bring it back (is its disk mounted?), {again}"
    return f"see to that disk, {again}"
