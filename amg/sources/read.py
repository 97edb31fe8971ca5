"""The bytes of an image, wherever it lies.

What is wrong with one image is its `Failure`. A store that cannot be reached, or lets nobody in, is an error that ends
the job: a million rows `missing` would be a lie, and the same command goes on when the store is back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from amg.errors import StorageError
from amg.sources.local import MAX_FILE_BYTES, read_file
from amg.sources.paths import from_text
from amg.storage import trouble
from amg.storage.bucket import Bucket, NoObject, StoreTrouble, TooLarge
from amg.storage.object_url import WEB, parse_object_url
from amg.storage.retries import Retries
from amg.storage.url import is_remote
from amg.values import Failure, ImageRef, Status

_ON_THE_WEB = Retries(answer_seconds=30.0, total_seconds=20.0)
_BUCKETS_KEPT = 64
_NEIGHBOURS = 4


class Reader:
    """Reads what references point to; keeps connections to the buckets it met. Travels without them."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._readable: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, ()

    def read(self, ref: ImageRef) -> bytes | Failure:
        """The whole file, or the reason why it cannot be had.

        StorageError where a bucket cannot be reached, is not there, or gives nothing to these credentials.
        """
        if not is_remote(ref.uri):
            return read_file(ref)
        if (ref.size_bytes or 0) > MAX_FILE_BYTES:
            return _too_large(ref, ref.size_bytes or 0)
        try:
            url = parse_object_url(from_text(ref.uri).decode("utf-8", "surrogateescape"), read_only=True)
        except StorageError as error:
            return Failure(ref, Status.MISSING, str(error))
        bucket = self._bucket(url.scheme, url.bucket)
        try:
            data = bucket.read(url.key, at_most=MAX_FILE_BYTES)
        except NoObject:
            return Failure(ref, Status.MISSING, "the object is gone")
        except TooLarge as error:
            return _too_large(ref, error.size_bytes)
        except MemoryError:
            return Failure(ref, Status.OUT_OF_MEMORY, "there was not enough memory to read the object")
        except StoreTrouble as error:
            if url.scheme in WEB or self._concerns_one(error, bucket, url.key):
                return Failure(ref, Status.MISSING, f"the object cannot be read: {error.trouble}")
            raise
        self._readable.add(bucket.url)
        return data

    def _concerns_one(self, error: StoreTrouble, bucket: Bucket, key: str) -> bool:
        """Whether other objects can be read: one that is archived or withheld must not end the job."""
        if error.is_from(trouble.ARCHIVED):
            return True
        return error.is_from(trouble.FORBIDDEN) and (bucket.url in self._readable or _any_readable(bucket, key))

    def _bucket(self, scheme: str, name: str) -> Bucket:
        url = f"{scheme}://{name}"
        bucket = self._buckets.get(url)
        if bucket is None:
            bucket = self._buckets[url] = Bucket(scheme, name, _ON_THE_WEB if scheme in WEB else None)
            while len(self._buckets) > _BUCKETS_KEPT:
                self._buckets.popitem(last=False)
        return bucket


def _any_readable(bucket: Bucket, key: str) -> bool:
    """Whether one of a few objects beside this one can be read."""
    tried = 0
    try:
        for stored in bucket.list(key.rpartition("/")[0]):
            if stored.key == key or not stored.size_bytes:
                continue
            try:
                bucket.read_range(stored.key, 0, 1)
                return True
            except StorageError:
                tried += 1
            if tried == _NEIGHBOURS:
                break
    except StorageError:
        return False
    return False


def _too_large(ref: ImageRef, size_bytes: int) -> Failure:
    return Failure(ref, Status.TOO_LARGE, f"the object has {size_bytes:,} bytes, at most 4 GiB are read")
