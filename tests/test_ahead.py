"""Images decoded ahead of their use: their order, how many there are at a time, and how it ends."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

from amg.decode import decode
from amg.run.ahead import decode_ahead
from amg.values import Failure, Image, ImageRef, Status
from tests.test_decode import saved


def refs(n: int) -> list[ImageRef]:
    return [ImageRef(row, f"{row}.png", str(row)) for row in range(n)]


def numbered(ref: ImageRef) -> bytes:
    return saved(PIL.Image.new("RGB", (2, 2), (ref.row, 0, 0)), "PNG")


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (1, 1), (2, 4), (8, 3), (4, 100)])
def test_images_come_in_order_with_failures_in_their_places(threads, ahead):
    def read(ref: ImageRef) -> bytes | Failure:
        time.sleep(random.random() * 0.003)
        if ref.row % 5 == 3:
            return Failure(ref, Status.MISSING, "gone")
        return b"junk" if ref.row % 5 == 4 else numbered(ref)

    results = list(decode_ahead(refs(30), read, threads=threads, ahead=ahead))
    assert [result.ref.row for result in results] == list(range(30))
    for result in results:
        if isinstance(result, Image):
            assert result.pixels_HWC[0, 0, 0] == result.ref.row
            assert result.decode_seconds > 0
        else:
            assert result.status is (Status.MISSING if result.ref.row % 5 == 3 else Status.DECODE_ERROR)
    assert sum(isinstance(result, Failure) for result in results) == 12


def test_decoding_runs_ahead_but_not_further_than_said():
    started: list[int] = []

    def read(ref: ImageRef) -> bytes:
        started.append(ref.row)
        return numbered(ref)

    images = decode_ahead(iter(refs(50)), read, threads=3, ahead=4)
    for n in range(10):
        next(images)
        wait_until(lambda n=n: len(started) == n + 5)
        time.sleep(0.005)
        assert len(started) == n + 5
    images.close()


def test_images_are_decoded_only_while_their_bytes_fit(monkeypatch):
    """Each of 100 x 100 takes 70,000 bytes while it is decoded and 30,000 after: three fit into 130,000."""
    begun = tell_of_pixels(monkeypatch)
    images = decode_ahead(refs(20), blank, threads=3, ahead=10, ahead_bytes=130_000)
    for n in range(15):
        next(images)
        wait_until(lambda n=n: len(begun) == n + 4)
        time.sleep(0.005)
        assert len(begun) == n + 4
    assert len(list(images)) == 5


def test_an_image_above_the_bound_is_decoded_when_it_is_waited_for(monkeypatch):
    begun = tell_of_pixels(monkeypatch)
    images = decode_ahead(refs(5), blank, threads=2, ahead=4, ahead_bytes=1)
    for n in range(5):
        image = next(images)
        assert isinstance(image, Image)
        time.sleep(0.005)
        assert begun == list(range(n + 1))
    assert next(images, None) is None


def test_failures_take_no_room(monkeypatch):
    begun = tell_of_pixels(monkeypatch)
    wreck = blank(refs(1)[0])[:-30]
    images = decode_ahead(
        refs(8), lambda ref: wreck if ref.row % 2 else blank(ref), threads=2, ahead=7, ahead_bytes=160_000
    )
    next(images)
    wait_until(lambda: len(begun) == 8)
    assert [isinstance(image, Failure) for image in images] == [True, False] * 3 + [True]


def test_threads_that_wait_for_room_end_when_the_consumer_stops():
    before = threading.active_count()
    images = decode_ahead(refs(100), blank, threads=4, ahead=8, ahead_bytes=70_000)
    next(images)
    images.close()
    wait_until(lambda: threading.active_count() == before)
    assert threading.active_count() == before


def blank(_: ImageRef) -> bytes:
    return saved(PIL.Image.new("RGB", (100, 100)), "PNG")


def tell_of_pixels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of the images whose pixels are made, as they are begun."""
    begun: list[int] = []

    def decode_and_tell(
        ref: ImageRef, data: bytes, *, admit: Callable[[int], object], **settings: Any
    ) -> Image | Failure:
        def tell(size_bytes: int) -> None:
            admit(size_bytes)
            begun.append(ref.row)

        return decode(ref, data, admit=tell, **settings)

    monkeypatch.setattr("amg.run.ahead.decode", decode_and_tell)
    return begun


def test_threads_end_when_the_consumer_stops():
    before = threading.active_count()
    images = decode_ahead(refs(1000), numbered, threads=4, ahead=8)
    next(images)
    assert threading.active_count() > before
    images.close()
    wait_until(lambda: threading.active_count() == before)
    assert threading.active_count() == before


def test_nothing_new_is_begun_after_the_consumer_stopped():
    release, started = threading.Event(), []

    def read(ref: ImageRef) -> bytes:
        started.append(ref.row)
        if ref.row:
            release.wait(5)
        return numbered(ref)

    images = decode_ahead(refs(50), read, threads=1, ahead=20)
    next(images)
    wait_until(lambda: len(started) == 2)
    threading.Timer(0.05, release.set).start()
    images.close()
    assert started == [0, 1]


def test_an_error_of_the_job_ends_it():
    def read(ref: ImageRef) -> bytes:
        if ref.row == 3:
            raise RuntimeError("the store is gone")
        return numbered(ref)

    before, seen = threading.active_count(), []
    with pytest.raises(RuntimeError, match="the store is gone"):
        seen.extend(image.ref.row for image in decode_ahead(refs(10), read))
    assert seen == [0, 1, 2]
    assert threading.active_count() == before


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
