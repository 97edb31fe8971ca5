"""What the user names as input, and the source that it is."""

from __future__ import annotations

import os
import re

from amg.errors import SourceError
from amg.sources.files import Files
from amg.sources.local import Listing, LocalSource, local_path
from amg.sources.manifest import Manifest
from amg.sources.source import Source

_MANIFEST = re.compile(r"(.+\.(?:txt|csv|jsonl|parquet))(?:#(.+))?", re.DOTALL | re.IGNORECASE)


def open_source(*inputs: str | os.PathLike[str]) -> Source:
    """The source over one or several inputs: files, folders (with all that is under them), globs (`**` too), manifests.

    A manifest is a .txt, .csv, .jsonl or .parquet file that lists images; `list.csv#photo` says which column has the
    paths. Raises `SourceError` for an input that is not there; `refs` raises it when no input holds an image.
    """
    texts = [os.fspath(each) for each in inputs]
    if not texts:
        raise SourceError("no input was given, wanted a file, a folder, a glob in quotes or a manifest")
    return LocalSource(texts, [_listing(text) for text in texts])


def _listing(text: str) -> Listing:
    match = _MANIFEST.fullmatch(text)
    if match is None:
        return Files(text)
    is_url = "://" in text
    if match[2] and (is_url or not os.path.exists(text)) and os.path.isfile(local_path(match[1])):
        return Manifest(local_path(match[1]), column=match[2])
    return Manifest(local_path(text)) if os.path.isfile(local_path(text)) else Files(text)
