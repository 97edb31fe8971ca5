"""Which names under an input are wanted."""

from __future__ import annotations

from amg.sources.kinds import IMAGE_SUFFIXES, OTHER_SUFFIXES
from amg.sources.paths import Pattern, to_text
from amg.sources.source import Report, Skipped

AN_OUTPUT = "an output of sam-amg"


def step(
    pattern: Pattern | None, state: frozenset[int] | None, name: bytes, relative: bytes, skipped: Report
) -> frozenset[int] | None:
    """The glob's state at `name`: empty when it is not wanted, None when everything below it is."""
    if pattern is not None and state is not None:
        return pattern.step(state, name)
    if name.startswith(b"."):
        skipped(Skipped(to_text(relative), "hidden: the name starts with a dot"))
        return frozenset()
    return None


def reason_in_suffix(ending: bytes) -> str | None:
    """Why a file with that suffix is no image; None where it is one, or the suffix does not tell."""
    known = ending in OTHER_SUFFIXES and ending not in IMAGE_SUFFIXES
    return f"not an image: a {ending.decode()} file" if known else None
