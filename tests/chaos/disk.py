"""A disk that runs full: a small tmpfs, which root can mount and enlarge."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotMounted(OSError):
    """What `mount` said."""


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of `size` (as tmpfs takes it, such as 1m) at `folder`; NotMounted where none may be."""
    folder.mkdir()
    _mount(f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder: Path, size: str) -> None:
    _mount(f"remount,size={size}", str(folder))


def _mount(options: str, *arguments: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotMounted(f"no tmpfs may be mounted here: {done.stderr.strip()}")
