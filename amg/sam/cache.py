"""The folder where weights are kept on this machine: whole files only, and one process at a time brings one in."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amg.errors import WeightsError


def cache_folder() -> Path:
    """`SAM_AMG_CACHE`, else the platform's cache folder for sam-amg. It need not exist."""
    import platformdirs

    named = os.environ.get("SAM_AMG_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("sam-amg"))


@contextmanager
def bringing_in(path: Path, *, what: str, size_bytes: int | None, progress: bool) -> Iterator[Path]:
    """Hold the lock of `path` in its folder, made if need be; gives the path of the part to fill, then to `keep`.

    A second process waits here for the first, so it looks again whether the file is there. WeightsError where the
    folder cannot be written.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_process(folder / f".{path.name}.lock", progress=progress):
            yield path.with_name(f"{path.name}.inprogress")
    except OSError as error:
        free = f"{size_bytes / 1e6:,.0f} MB free" if size_bytes else "room for it"
        raise WeightsError(
            f"{what} cannot be kept in {folder}: {error}; set SAM_AMG_CACHE to a folder that can be written and has"
            f" {free}, or give a local file with --weights PATH"
        ) from error


def keep(partial: Path, path: Path) -> None:
    """Give the file its final name. On disk before that, because from then on its name and size are believed."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    for stale in path.parent.glob(f"{path.name}.*inprogress"):
        stale.unlink(missing_ok=True)


def say(text: str, *, progress: bool) -> None:
    if progress:
        print(text, file=sys.stderr)


@contextmanager
def _one_process(lock: Path, *, progress: bool) -> Iterator[None]:
    """Hold the lock file. It stays when done: a removed one could be locked by two at once."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {lock}", progress=progress)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
