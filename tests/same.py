"""Equality of what two libraries return: nested, to the last bit, with dtypes and kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def assert_same(ours: Any, theirs: Any, where: str = "it") -> None:
    """Mappings by keys in order, sequences by their places, arrays and tensors by kind, dtype, shape and value."""
    if isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), f"{where}: {list(ours)}, wanted {list(theirs)}"
        for name, value in theirs.items():
            assert_same(ours[name], value, f"{where}[{name!r}]")
    elif isinstance(theirs, torch.Tensor | np.ndarray):
        _assert_same_array(ours, theirs, where)
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple) and len(ours) == len(theirs), f"{where}: {ours}, wanted {theirs}"
        for place, (mine, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, value, f"{where}[{place}]")
    else:
        assert ours == theirs, f"{where}: {ours!r}, wanted {theirs!r}"


def _assert_same_array(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), f"{where}: a {type(ours).__name__}, wanted a {type(theirs).__name__}"
    seen, wanted = (f"{array.dtype} of shape {tuple(array.shape)}" for array in (ours, theirs))
    assert seen == wanted, f"{where}: {seen}, wanted {wanted}"
    differs = int((ours != theirs).sum())
    assert not differs, (
        f"{where}: {differs} of {theirs.size if isinstance(theirs, np.ndarray) else theirs.numel()} differ"
    )
