"""Keys that no two images share: one that is taken gets parent folders of its path in front until it is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Taken = Callable[[Sequence[str]], NDArray[np.bool_]]
"""Which of some keys are taken; a key that is free may be called taken, not the other way round."""


def free_keys(
    keys: Sequence[str], paths: Sequence[str], taken_N: NDArray[np.bool_], taken: Taken, used: set[str]
) -> list[str]:
    """The keys, longer where they are taken or in `used`, which takes in what is given out: first come, first served.

    `taken_N` is what `taken` says of `keys`. A key that is the whole path stays as it is.
    """
    longer = [_with_parents(paths[n], keys[n].count("/") + 2) for n in np.flatnonzero(taken_N).tolist()]
    known = dict(zip(longer, taken(longer).tolist(), strict=True))  # all at once, which is cheaper than one by one
    given = []
    for key, path, is_taken in zip(keys, paths, taken_N.tolist(), strict=True):
        if is_taken or key in used:
            key = _free_key(key, path, taken, known, used)
        used.add(key)
        given.append(key)
    return given


def _free_key(key: str, path: str, taken: Taken, known: dict[str, bool], used: set[str]) -> str:
    for parts in range(key.count("/") + 2, path.count("/") + 2):
        key = _with_parents(path, parts)
        if key not in known:
            known[key] = bool(taken([key])[0])
        if key not in used and not known[key]:
            break
    return key


def _with_parents(path: str, parts: int) -> str:
    return "/".join(path.split("/")[-parts:])
