"""What the user names as input, and the source that it is."""

from __future__ import annotations

import os
import re

from amg.errors import SourceError
from amg.sources.files import Files
from amg.sources.found import Listing
from amg.sources.listed import ListedSource
from amg.sources.local import local_path
from amg.sources.manifest import Manifest
from amg.sources.objects import Objects
from amg.sources.source import Source
from amg.storage.bucket import Bucket, NoObject
from amg.storage.object_url import UnreachableKey, parse_object_url, scheme_of
from amg.storage.url import is_remote

_MANIFEST = re.compile(r"(.+\.(?:txt|csv|jsonl|parquet))(?:#(.+))?", re.DOTALL | re.IGNORECASE)


def open_source(*inputs: str | os.PathLike[str]) -> Source:
    """The source over one or several inputs: files, folders (with all that is under them), globs (`**` too), manifests.

    Each may lie on this machine or in an object store: `s3://bucket/prefix`, `gs://...`, `az://...`. A manifest is a
    .txt, .csv, .jsonl or .parquet file that lists images; `list.csv#photo` says which column has the paths. Raises
    `SourceError` for an input that is not there; `refs` raises it when no input holds an image.
    """
    texts = [os.fspath(each) for each in inputs]
    if not texts:
        raise SourceError("no input was given, wanted a file, a folder, a glob in quotes or a manifest")
    return ListedSource(texts, [_listing(text) for text in texts])


def _listing(text: str) -> Listing:
    match = _MANIFEST.fullmatch(text)
    if match is None:
        return _images(text)
    if match[2] and not _is_file(text) and _is_file(match[1]):
        return Manifest(match[1], column=match[2])
    return Manifest(text) if _is_file(text) else _images(text)


def _images(text: str) -> Listing:
    return Objects(text) if is_remote(text) else Files(text)


def _is_file(text: str) -> bool:
    """Whether a file or an object has this name. A `file://` URL has no `#` in it."""
    if not is_remote(text):
        return not (scheme_of(text) == "file" and "#" in text) and os.path.isfile(local_path(text))
    url = parse_object_url(text)
    try:
        return bool(Bucket(url.scheme, url.bucket).head(url.key))
    except (NoObject, UnreachableKey):
        return False
