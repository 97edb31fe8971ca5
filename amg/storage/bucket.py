"""One bucket of an object store, asked patiently: what may pass is tried again, what does not is told in words."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from amg.errors import StorageError
from amg.storage.clients import connect
from amg.storage.interruptible import interruptibly
from amg.storage.retries import Retries
from amg.storage.trouble import EMPTY, MISSING, WHOLE, Trouble, understand

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PAGE = 1000
_WRITER = "writer"  # letters alone: Azure takes no others in names of metadata
_SLOWEST_UPLOAD = 1 << 18  # bytes a second
_DELETED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing says of an object; `modified` in seconds since 1970, `tag` its ETag where the store has them."""

    key: str
    size_bytes: int
    modified: float
    tag: str | None


class StoreTrouble(StorageError):
    """A request that failed for good, and what it came from."""

    def __init__(self, text: str, trouble: Trouble | None = None) -> None:
        super().__init__(text, trouble)
        self.trouble = trouble

    def __str__(self) -> str:
        return str(self.args[0])

    def is_from(self, kind: Trouble) -> bool:
        """Whether it came from trouble of this kind, whatever the store's word for it was."""
        return self.trouble is not None and self.trouble.what == kind.what


class NoObject(StorageError):
    """What was asked for is not there; the bucket is."""


class TooLarge(StorageError):
    """An object of more bytes than were wanted."""

    def __init__(self, text: str, size_bytes: int) -> None:
        super().__init__(text, size_bytes)
        self.size_bytes = size_bytes

    def __str__(self) -> str:
        return str(self.args[0])


class Bucket:
    """The bucket at `s3://NAME`, `gs://NAME` or `az://NAME`. May be pickled, and used by several threads.

    Every method raises StorageError when the bucket is not there, refuses, or does not answer in the time that
    `retries` allows; NoObject for an object that is not there.
    """

    def __init__(self, scheme: str, name: str, retries: Retries | None = None) -> None:
        self.scheme, self.name = scheme, name
        self.retries = retries or Retries()
        self.url = f"{scheme}://{name}"
        self._clients: dict[float | None, ObjectStore] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.scheme, self.name, self.retries)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects in the folder `prefix`, and in those below it, streamed, by the bytes of their keys.

        A request gives a thousand. A listing that breaks off is begun again, and what was told is passed over.
        """
        began, tries, last = time.monotonic(), 0, None
        while True:
            before = last
            try:
                for found in self._listed(prefix, after=last):
                    self._check_order(last, found.key)
                    last = found.key
                    yield found
                return
            except _errors() as error:
                trouble = understand(error)
            if last != before:
                began, tries = time.monotonic(), 0
            tries += 1
            if not trouble.passes or not self.retries.pause(tries, time.monotonic() - began):
                raise self._given_up("list", prefix, trouble, tries, time.monotonic() - began)

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        """The whole object; TooLarge, before it is loaded, where it has more bytes than `at_most`."""
        import obstore

        def get() -> bytes | int:
            answer = obstore.get(self._client(), key)
            size = int(answer.meta["size"])
            return size if at_most is not None and size > at_most else bytes(answer.bytes())

        data = self._ask("read", key, get)
        if isinstance(data, int):
            raise TooLarge(f"{self.url}/{key} has {data:,} bytes, at most {at_most:,} were wanted", data)
        return data

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`; as many as there are of them, at least one."""
        import obstore

        return self._ask("read", key, lambda: bytes(obstore.get_range(self._client(), key, start=start, end=end)))

    def tail(self, key: str, count: int) -> tuple[bytes, int]:
        """The last bytes of the object, at most so many, and its size; no bytes where it cannot be read from behind."""
        import obstore

        def get() -> tuple[bytes, int]:
            answer = obstore.get(self._client(), key, options={"range": {"suffix": count}})
            return bytes(answer.bytes()), int(answer.meta["size"])

        if self.scheme != "az":
            try:
                return self._ask("read", key, get)
            except StoreTrouble as error:
                if not (error.is_from(EMPTY) or error.is_from(WHOLE)):
                    raise
        return b"", self.head(key).size_bytes

    def head(self, key: str) -> StoredObject:
        """What a listing would say of it."""
        import obstore

        found = self._ask("look at", key, lambda: obstore.head(self._client(), key))
        return _stored(found)

    def create(self, key: str, data: bytes) -> bool:
        """Store the object if the key is free; whether this call did it.

        One PUT that the store itself refuses when the key is taken. Where its answer was lost, a later try finds the
        key taken, perhaps by ourselves: each call leaves a mark of its own with the object, and looks whose it is.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        mark = uuid.uuid4().hex
        client = self._client(upload_bytes=len(data))

        def put() -> bool:
            try:
                obstore.put(client, key, data, mode="create", attributes={_WRITER: mark}, use_multipart=False)
                return True
            except AlreadyExistsError:
                return self._mark(key) == mark

        return self._ask("write", key, put)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete these objects, those that are there."""
        import obstore

        for start in range(0, len(keys), _DELETED_AT_ONCE):
            part = list(keys[start : start + _DELETED_AT_ONCE])
            self._ask("remove", part[0], lambda part=part: obstore.delete(self._client(), part))

    def _mark(self, key: str) -> str | None:
        import obstore

        try:
            return obstore.get(self._client(), key, options={"head": True}).attributes.get(_WRITER)
        except FileNotFoundError:  # removed since
            return None

    def _listed(self, prefix: str, *, after: str | None) -> Iterator[StoredObject]:
        import obstore

        passed = after is None
        pages = obstore.list(self._client(), prefix or None, chunk_size=PAGE)
        while page := interruptibly(lambda: next(pages, ())):
            for found in page:
                if passed:
                    yield _stored(found)
                passed = passed or found["path"] == after
        if not passed:
            raise StorageError(
                f"{self.url}/{prefix} was interrupted while it was listed, and {after} is gone since; run the same "
                "command again"
            )

    def _check_order(self, last: str | None, key: str) -> None:
        """Plans depend on the order: that of the bytes, or with Azure's hierarchical namespace folder by folder."""
        if last is not None and last.encode() > key.encode() and last.split("/") > key.split("/"):
            raise StorageError(
                f"{self.url} lists its objects in no order ({key} after {last}), as directory buckets do; use a "
                "general purpose bucket"
            )

    def _ask(self, verb: str, key: str, call: Callable[[], T]) -> T:
        began, tries = time.monotonic(), 0
        while True:
            try:
                return interruptibly(call)
            except _errors() as error:
                trouble = understand(error)
            tries += 1
            if trouble.what == MISSING.what:
                raise NoObject(f"cannot {verb} {self.url}/{key}: {trouble}; {trouble.advice}")
            if not trouble.passes or not self.retries.pause(tries, time.monotonic() - began):
                raise self._given_up(verb, key, trouble, tries, time.monotonic() - began)

    def _given_up(self, verb: str, key: str, trouble: Trouble, tries: int, seconds: float) -> StoreTrouble:
        """An error that says nothing but what `trouble` does; the library's own may hold keys and signatures."""
        spent = f" after {seconds:.0f} s of tries" if trouble.passes else ""
        return StoreTrouble(f"cannot {verb} {self.url}/{key}: {trouble}{spent}; {trouble.advice}", trouble)

    def _client(self, upload_bytes: int | None = None) -> ObjectStore:
        """The client for reading, or one that is patient enough for an upload of so many bytes."""
        seconds = None
        if upload_bytes is not None:
            doublings = (upload_bytes / _SLOWEST_UPLOAD / self.retries.answer_seconds).__ceil__().bit_length()
            seconds = self.retries.answer_seconds * 2**doublings
        if seconds not in self._clients:
            self._clients[seconds] = connect(self.scheme, self.name, self.retries, upload_seconds=seconds)
        return self._clients[seconds]


def _stored(found: Any) -> StoredObject:
    tag = found["e_tag"]
    return StoredObject(
        found["path"], found["size"], found["last_modified"].timestamp(), tag.strip('"') if tag else None
    )


def _errors() -> tuple[type[Exception], ...]:
    """What the library raises for a request that failed."""
    from obstore.exceptions import BaseError

    return BaseError, FileNotFoundError, ValueError, OSError
