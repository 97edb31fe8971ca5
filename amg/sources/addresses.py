"""Columns of addresses, looked at all at once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from amg.sources.source import LISTING_SCHEMA
from amg.storage.object_url import SCHEMES

_ADDRESS = rf"^(?:{'|'.join(SCHEMES)})://[^/@:\x00-\x1f\x7f]+/"
_ODD = r"[\x00-\x1f\x7f]|(?:^|/)\.{0,2}(?:/|$)"
_ODD_AFTER_BUCKET = r"[\x00-\x1f\x7f]|^[a-z0-9]+://[^/]+(?:/.*)?/\.{0,2}(?:/|$)"
_ANY_SCHEME = "^[A-Za-z][A-Za-z0-9+.-]*://"


def plain_addresses(paths: pa.Array, extras: pa.Array, base: str | None) -> pa.RecordBatch | None:
    """Columns of LISTING_SCHEMA for paths that all need no second look; None where one does.

    Such are addresses of objects in their one form and, with a `base` such as `s3://bucket/folder/`, relative paths
    without `.` and `..`.
    """
    if paths.null_count:
        return None
    if _all(paths, _ADDRESS) and not _any(paths, _ODD_AFTER_BUCKET):
        uris = paths
    elif base is not None and not _any(paths, _ANY_SCHEME) and not _any(paths, _ODD):
        uris = pc.call_function("binary_join_element_wise", [pa.scalar(base), paths, pa.scalar("")])
    else:
        return None
    keys, uris = (_escaped(column) for column in (paths, uris))
    n = len(paths)
    columns = [keys, uris, pa.nulls(n, pa.string()), pa.nulls(n, pa.int64()), pa.nulls(n, pa.string()), extras]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)


def _escaped(texts: pa.Array) -> pa.Array:
    return pc.call_function("replace_substring", [texts], pc.ReplaceSubstringOptions("%", "%25"))


def _all(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.call_function("all", [_matches(texts, pattern)]).as_py())


def _any(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.call_function("any", [_matches(texts, pattern)]).as_py())


def _matches(texts: pa.Array, pattern: str) -> pa.Array:
    """Which of them match the regular expression anywhere."""
    return pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(pattern))
