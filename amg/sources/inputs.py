"""What the user names as input, and the source that it is."""

from __future__ import annotations

import os

from amg.sources.files import FileSource
from amg.sources.source import Source


def open_source(*inputs: str | os.PathLike[str]) -> Source:
    """The source over one or several inputs, each a file, a folder (with all that is under it) or a glob (`**` too).

    Raises `SourceError` for an input that is not there; `refs` raises it when no input holds an image.
    """
    return FileSource(*inputs)
