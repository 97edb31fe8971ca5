"""Addresses in object stores: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.

The key stands in the address as it is, as the tools of the stores print it: `%`, spaces and `?` mean themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from amg.errors import StorageError

SCHEMES = ("s3", "gs", "az")
"""In the words of obstore, by which buckets are reached: a bucket of S3 or of a server like it, of Google, of Azure."""

WEB = ("https", "http")
"""Where single files can be read, and nothing listed or written."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az"}
_UNREACHABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|(?:^|/)(?:\.{0,2})(?:/|$)")


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """One object or all that is under a prefix; `key` has no `/` at its ends and is empty for a whole bucket."""

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")


def scheme_of(text: str) -> str:
    """The scheme of an address in lower case; empty for a path."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


class UnreachableKey(StorageError):
    """A key that a store may hold, but that the library cannot ask for."""


def parse_object_url(text: str, *, read_only: bool = False) -> ObjectUrl:
    """The address that a text with one of SCHEMES is, or of WEB where it is `read_only`.

    StorageError where it names no bucket, UnreachableKey where it names what cannot be asked for.
    """
    scheme = scheme_of(text)
    if scheme not in (*SCHEMES, *(WEB if read_only else ())):
        raise StorageError(_refusal(text, scheme))
    bucket, _, key = text[len(scheme) + 3 :].partition("/")
    if "@" in bucket or (":" in bucket and scheme not in WEB):
        raise StorageError(
            f"{scheme}://...: wanted {scheme}://bucket/folder, this has a user, a password or a port in it; "
            "credentials and endpoint come from the environment (docs/storage.md)"
        )
    if not bucket:
        raise StorageError(f"{text!r} names no bucket; wanted {scheme}://bucket/folder")
    if scheme in WEB:
        if "?" in text or "#" in text:
            raise StorageError(
                f"{scheme}://{bucket.partition('?')[0]}/...?...: addresses with a query are not read, for they may be "
                "signed and would stand in the output; copy the images to a bucket or a folder"
            )
        key = unquote(key, errors="surrogateescape")
    key = key.strip("/")
    if key and _UNREACHABLE.search(key):
        raise UnreachableKey(
            f"{text!r} cannot be reached: no part between two / may be empty, . or .., and no character a control "
            "character; rename the object, or copy it to another key"
        )
    return ObjectUrl(scheme, bucket, key)


def _refusal(text: str, scheme: str) -> str:
    place = f"{scheme}://" if scheme else repr(text)
    guess = f"; write {_OTHER_NAMES[scheme]}://" if scheme in _OTHER_NAMES else ""
    if scheme in WEB:
        guess = "; list such addresses in a manifest, they can be read but not listed"
    known = ", ".join(f"{each}://" for each in SCHEMES)
    return f"{place} is no address of a store that this program knows{guess}; it knows {known}, file:// and local paths"
