"""A URL to a store: local folders so far."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from amg.errors import StorageError
from amg.storage.local import LocalStore
from amg.storage.store import Store


def open_store(url: str | os.PathLike[str], *, create: bool = False) -> Store:
    """The store at a local path or a `file://` URL; `create` makes the folder where it is missing.

    Without `create` a missing folder is an error at the first write, so that a folder that vanishes during a job
    (an unmounted disk) is not silently made anew.
    """
    text = os.fspath(url)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        text = os.fsdecode(unquote_to_bytes(urlsplit(text).path))
    elif scheme:
        raise StorageError(
            f"{text}: remote stores ({scheme}://) come in a later version, this one knows local folders and file://; "
            "write to a local folder and copy it"
        )
    store = LocalStore(Path(text))
    if create:
        store.create_folder()
    return store
