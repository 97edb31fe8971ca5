"""Images read and decoded in threads while the model works, as many as their bytes allow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial

from amg.decode import MAX_PIXELS, decode
from amg.values import Failure, Image, ImageRef


def decode_ahead(
    refs: Iterable[ImageRef],
    read: Callable[[ImageRef], bytes | Failure],
    *,
    threads: int = 2,
    ahead: int = 4,
    ahead_bytes: int = 768 * 2**20,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
) -> Iterator[Image | Failure]:
    """The images in the order of `refs`, read and decoded by `threads` while the consumer works.

    At most `ahead` images are under way or waiting beside the one handed out, and an image is decoded only when it fits
    into `ahead_bytes` with all that wait, or is the one that the consumer waits for. When the consumer stops early
    (`close`, an exception, garbage collection) nothing new is begun and the threads end. What `read` raises is raised
    here.
    """
    room = _Room(ahead_bytes)

    def load(number: int, ref: ImageRef) -> Image | Failure:
        data = read(ref)
        if isinstance(data, Failure):
            return data
        result = decode(ref, data, max_pixels=max_pixels, value_range=value_range, admit=partial(room.enter, number))
        room.settle(number, result.pixels_HWC.nbytes if isinstance(result, Image) else 0)
        return result

    def next_result() -> Image | Failure:
        number, future = waiting.popleft()
        room.wait_for(number)
        result = future.result()
        room.settle(number, 0)
        return result

    pool = ThreadPoolExecutor(threads, thread_name_prefix="amg-decode")
    waiting: deque[tuple[int, Future[Image | Failure]]] = deque()
    try:
        for number, ref in enumerate(refs):
            waiting.append((number, pool.submit(load, number, ref)))
            if len(waiting) > ahead:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        room.close()
        pool.shutdown(wait=True, cancel_futures=True)


class _Room:
    """Bytes that numbered images may take together. The one that is waited for enters even when it does not fit."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._held: dict[int, int] = {}
        self._wanted = -1
        self._is_open = True
        self._changed = threading.Condition()

    def enter(self, number: int, size_bytes: int) -> None:
        """Hold so many bytes, when they are there; CancelledError once the room is closed."""

        def may_enter() -> bool:
            fits = sum(self._held.values()) + size_bytes <= self._size_bytes
            return fits or number == self._wanted or not self._is_open

        with self._changed:
            self._changed.wait_for(may_enter)
            if not self._is_open:
                raise CancelledError("nobody takes the images any more")
            self._held[number] = size_bytes

    def settle(self, number: int, size_bytes: int) -> None:
        """From now on the image holds so many bytes."""
        with self._changed:
            self._held[number] = size_bytes
            if not size_bytes:
                del self._held[number]
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self._changed:
            self._wanted = number
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
