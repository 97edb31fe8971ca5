"""An object of a store as a file that can be read at any place."""

from __future__ import annotations

import io
from typing import BinaryIO

from amg.storage.bucket import Bucket

READ_AHEAD = 1 << 20
TAIL = 1 << 16  # where a Parquet file says what is in it; with a small object it is all of it


def open_object(bucket: Bucket, key: str) -> BinaryIO:
    """The object as a buffered file. One request finds its size and its end, then each run of bytes read is another."""
    return io.BufferedReader(_ObjectFile(bucket, key), READ_AHEAD)


class _ObjectFile(io.RawIOBase):
    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._tail, self._size = bucket.tail(key, TAIL)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}: wanted 0 or more")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(self._size)

    def _read(self, count: int) -> bytes:
        start, end = self._place, min(self._size, self._place + count)
        if end <= start:
            return b""
        tail_starts = self._size - len(self._tail)
        data = b"" if start >= tail_starts else self._bucket.read_range(self._key, start, min(end, tail_starts))
        data += self._tail[max(0, start - tail_starts) : max(0, end - tail_starts)]
        self._place += len(data)
        return data
