"""Tables of pages, and how numbers are written in them."""

from __future__ import annotations


def table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def megabytes(value: float) -> str:
    """From units of 2^20 bytes."""
    return f"{value * 2**20 / 1e9:.2f} GB"
