"""What a run has come to so far, and how fast, in as few words as fit on a line."""

from __future__ import annotations

from dataclasses import dataclass

from tqdm import tqdm

from amg.values import Failure, MaskSet, Receipt

COUNTS_BELOW = 100_000
"""Counts from here on are written as 123k or 1.23M."""


@dataclass(slots=True)
class Pace:
    """Counters of this run, fed with what an `Observer` hears. `up` and `lost`: workers, None where there are none."""

    images: int = 0
    failed: int = 0
    masks: int = 0
    written_bytes: int = 0
    up: int | None = None
    lost: int = 0

    def image(self, result: MaskSet | Failure) -> None:
        self.images += 1
        if isinstance(result, Failure):
            self.failed += 1
        else:
            self.masks += len(result)

    def shard(self, receipt: Receipt) -> None:
        if receipt.won:
            self.written_bytes += receipt.size_bytes

    def workers(self, up: int, lost: int) -> None:
        self.up, self.lost = up, lost

    def describe(self, done: int, total: int, images_per_second: float | None, *, columns: int | None = None) -> str:
        """`3/10 images, 2.5/s, 240 masks/s, 1 failed, 4 workers, 1 lost, 1.2 MB, 00:03 left`: what there is of it.

        Where it has more than `columns` characters the bytes go, then the masks.
        """
        rate = images_per_second or 0.0
        parts = {
            "images": f"{_count(done)}/{_count(total)} images",
            "speed": _speed(rate) if rate else "",
            "masks": f"{_short(rate * self.masks / self.images)} masks/s" if rate and self.images else "",
            "failed": f"{_count(self.failed)} failed" if self.failed else "",
            "workers": self._workers(),
            "bytes": f"{_short(self.written_bytes, ' ')}B" if self.written_bytes else "",
            "left": f"{tqdm.format_interval((total - done) / rate)} left" if rate and done < total else "",
        }
        for name in ("bytes", "masks"):
            if columns is not None and len(_joined(parts)) > columns:
                parts[name] = ""
        return _joined(parts)

    def _workers(self) -> str:
        if self.up is None:
            return ""
        lost = f", {_count(self.lost)} lost" if self.lost else ""
        return f"{_count(self.up)} worker{'' if self.up == 1 else 's'}{lost}"


def _joined(parts: dict[str, str]) -> str:
    return ", ".join(part for part in parts.values() if part)


def _speed(images_per_second: float) -> str:
    return f"{1 / images_per_second:.1f} s each" if images_per_second < 0.5 else f"{_short(images_per_second)}/s"


def _count(number: int) -> str:
    return str(number) if number < COUNTS_BELOW else _short(number)


def _short(value: float, gap: str = "") -> str:
    """Three digits and a letter for the thousands: 0.25, 12.3, 4.51M; `gap` goes before the letter."""
    letters = ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(letters) > 1:
        value /= 1000
        letters.pop(0)
    return f"{value:.3g}{gap}{letters[0]}"
