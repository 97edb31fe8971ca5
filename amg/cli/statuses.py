"""The option `--status`, which some commands share."""

from __future__ import annotations

from collections.abc import Sequence


def statuses_named(texts: Sequence[str]) -> list[str]:
    """The words between the commas of all that was given."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
