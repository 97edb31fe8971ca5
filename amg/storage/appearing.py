"""Results on this machine that take many writes: a file or a folder that appears under its name whole, or not at all.

Not for what several may write at once; that is a store's `create_if_absent`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amg.errors import StorageError
from amg.storage.store import IN_PROGRESS


@contextmanager
def appearing(target: Path, *, refuse: Callable[[Path], None], advice: str) -> Iterator[Path]:
    """A path to write a file or a folder to; it becomes `target` when all went well, and is removed otherwise.

    refuse: raises where `target`, its links followed, is not free; asked before, and again after the writing.
    Raises StorageError, ending in `advice`, where something cannot be written.
    """
    target = Path(os.path.realpath(target))
    refuse(target)
    making = target.with_name(f".{target.name[:100]}-{uuid.uuid4().hex[:12]}{IN_PROGRESS}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield making
        refuse(target)  # it may have come meanwhile
        _put_in_place(making, target)
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or target}: {error.strerror or error}; {advice}") from error
    finally:
        _remove(making)


def _put_in_place(made: Path, target: Path) -> None:
    """Over an earlier one, which comes back should that fail: a folder cannot be replaced in one step."""
    if not target.is_dir():
        os.replace(made, target)
        return
    old = made.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(made, target)
    except OSError:
        os.rename(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # not there, or its folder is not
            path.unlink()
