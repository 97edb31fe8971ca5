"""Files of this machine: how the user names them, and how one is read."""

from __future__ import annotations

import os
import stat
from urllib.parse import unquote_to_bytes, urlsplit

from amg.sources.paths import from_text
from amg.storage.object_url import scheme_of
from amg.values import Failure, ImageRef, Status

MAX_FILE_BYTES = 1 << 32


def local_path(text: str) -> bytes:
    """The path that the user's word names, as bytes: a path as it is, or a `file://` URL without its escapes."""
    return unquote_to_bytes(urlsplit(text).path) if scheme_of(text) == "file" else os.fsencode(text)


def read_file(ref: ImageRef) -> bytes | Failure:
    """The file at the path of a reference."""
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
