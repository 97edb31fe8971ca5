"""What a processor returns: a mapping that goes into the model with `**`, its values also reachable as attributes."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amg.errors import ConfigError
from amg.tensors import to_host

TENSOR_KINDS = (None, "np", "pt")


class BatchFeature(UserDict[str, Any]):
    """Named tensors, arrays or lists. Source of the interface: `BatchFeature` of transformers.

    >>> inputs = processor(image, return_tensors="pt").to("cuda", torch.float16)              # doctest: +SKIP
    >>> outputs = model(**inputs)                                                             # doctest: +SKIP
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self._names())}") from None

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self._names()])

    def to(self, *where: Any, **named: Any) -> BatchFeature:
        """Moves every tensor as `Tensor.to` does and returns itself; a dtype is for floating tensors alone."""
        device = named.get("device", next((arg for arg in where if not isinstance(arg, torch.dtype)), None))
        if isinstance(device, Tensor):
            raise ConfigError(
                "to() got a tensor; wanted a device such as 'cuda:0', a dtype such as torch.float16, or both"
            )

        def moved(value: Any) -> Any:
            if isinstance(value, list | tuple) and any(isinstance(inner, Tensor) for inner in value):
                return type(value)(moved(inner) for inner in value)
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return value.to(*where, **named)
            return value if device is None else value.to(device, non_blocking=named.get("non_blocking", False))

        self.data = {name: moved(value) for name, value in self.data.items()}
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Turns lists into arrays (`np`) or tensors (`pt`), in place; None leaves them."""
        kind = tensor_kind(tensor_type)
        if kind is not None:
            self.data = {name: _stacked(name, value, kind) for name, value in self.data.items()}
        return self

    def _names(self) -> list[str]:
        return [*self.__dict__.get("data", {})]


def tensor_kind(return_tensors: Any) -> str | None:
    """`return_tensors` as None, "np" or "pt"; an enumeration member counts by its value."""
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in TENSOR_KINDS:
        raise ConfigError(f"return_tensors: {return_tensors!r}; wanted 'pt' (PyTorch), 'np' (NumPy) or None (lists)")
    return kind


def _stacked(name: str, value: Any, kind: str) -> Any:
    if isinstance(value, Sequence) and len(value) and isinstance(value[0], Tensor):
        value = _stack_tensors(name, value)
    if isinstance(value, Tensor):
        return value if kind == "pt" else to_host(value)
    array = np.asarray(value)
    return torch.from_numpy(array) if kind == "pt" else array


def _stack_tensors(name: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        seen = ", ".join(map(str, sorted(shapes)))
        raise ConfigError(
            f"{name}: shapes {seen} do not stack into one tensor; leave do_pad on, or take lists: return_tensors=None"
        )
    return torch.stack(list(tensors))
