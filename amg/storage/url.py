"""A URL to a store: local folders and object stores."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from amg.errors import ConfigError
from amg.storage.local import LocalStore
from amg.storage.object_url import parse_object_url, scheme_of
from amg.storage.remote import RemoteStore
from amg.storage.store import Store


def open_store(url: str | os.PathLike[str], *, create: bool = False) -> Store:
    """The store at a local path, a `file://` URL or an address such as `s3://bucket/folder`.

    `create` makes the folder where it is missing; of an object store it finds out whether it can be written. Without
    it a missing folder is an error at the first write, so that a folder that vanishes during a job (an unmounted disk)
    is not silently made anew.
    """
    text = os.fspath(url)
    if is_remote(text):
        store = RemoteStore(parse_object_url(text))
    else:
        is_url = scheme_of(text) == "file"
        store = LocalStore(Path(os.fsdecode(unquote_to_bytes(urlsplit(text).path)) if is_url else text))
    if create:
        store.create_folder()
    return store


def is_remote(text: str) -> bool:
    """Whether a text is the address of anything but a local file or folder."""
    return scheme_of(text) not in ("", "file")


def local_target(path: str | os.PathLike[str], what: str) -> Path:
    """A place on this machine to write `what` to; ConfigError for an address, where it would become a folder `s3:`."""
    text = os.fspath(path)
    if is_remote(text):
        raise ConfigError(f"{what} cannot be written to {text}; give a folder of this machine with --out, then copy it")
    return Path(text)
