"""The fast measure of many strings against `amg.rle`, one string at a time."""

from __future__ import annotations

import numpy as np
import pytest

from amg import rle
from amg.errors import FormatError
from amg.shards.measure import measure


def slow(text: bytes, height: int) -> tuple[bool, int, int, tuple[int, ...]]:
    try:
        runs = rle.decode(text)
    except FormatError:
        return False, 0, 0, (0, 0, 0, 0)
    return True, int(runs.sum(dtype=np.int64)), rle.area(runs), rle.box(runs, height)


def fast(texts: list[bytes], heights: list[int]) -> list[tuple[bool, int, int, tuple[int, ...]]]:
    measured = measure(
        np.frombuffer(b"".join(texts), np.uint8),
        np.cumsum([0, *map(len, texts)]).astype(np.int64),
        np.array(heights, np.int64),
    )
    columns = (measured.valid_K, measured.pixels_K, measured.area_K, measured.box_K4)
    return [(bool(v), int(p), int(a), tuple(map(int, b))) for v, p, a, b in zip(*columns, strict=True)]


def random_string(rng: np.random.Generator) -> tuple[bytes, int]:
    """A mask's string, of any shape and density; one in four with a byte changed, cut off or left empty."""
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    mask = rng.random((height, width)) < rng.choice([0.0, 0.01, 0.5, 0.99, 1.0])
    text = bytearray(rle.encode(rle.from_mask(mask)).encode())
    kind = rng.integers(0, 12)
    if kind == 0:
        text[rng.integers(len(text))] = rng.integers(0, 256)
    elif kind == 1:
        del text[rng.integers(len(text)) :]
    elif kind == 2:
        text = bytearray(rng.integers(48, 112, rng.integers(0, 30)).astype(np.uint8).tobytes())
    return bytes(text), height


@pytest.mark.parametrize("seed", range(40))
def test_many_strings_measure_as_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("amg.shards.measure.CHARACTERS_AT_ONCE", int(rng.integers(1, 3000)))
    texts, heights = zip(*(random_string(rng) for _ in range(rng.integers(1, 200))), strict=True)
    assert fast(list(texts), list(heights)) == [slow(t, h) for t, h in zip(texts, heights, strict=True)]


def test_no_string_and_nothing_but_broken_ones() -> None:
    assert fast([], []) == []
    assert fast([b"", b"\xff", b"o", b"oooooooo0"], [3, 3, 3, 3]) == [(False, 0, 0, (0, 0, 0, 0))] * 4
    assert fast([b"", rle.encode(np.array([0, 12], np.uint32)).encode(), b""], [3, 3, 3])[1] == (
        True,
        12,
        12,
        (0, 0, 4, 3),
    )
