"""Float32 products that are float32: PyTorch lets cuDNN's convolutions keep 11 bits of 24 (TF32) unless it is told.

The switches are the process's, and somebody else's: they are set around our own calls alone and put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch

_SWITCHES: tuple[Any, ...] = (torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv)
"""Of the interface that names what it switches: the older `allow_tf32` would also change recurrent layers."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


class OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


Self = TypeVar("Self", bound=OnDevice)

_lock = threading.Lock()
_inside = 0
_before: list[str] = []


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Within it no product on a GPU is TF32, whatever the process allows; on any other device it does nothing.

    Threads may be within it side by side: the first sets the switches, the last puts them back. What other threads do
    on the GPU meanwhile is float32 too.
    """
    if device.type != "cuda":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def in_exact_float32(method: Callable[Concatenate[Self, Given], Result]) -> Callable[Concatenate[Self, Given], Result]:
    """A method that is `exact_float32` for the device of what it belongs to."""

    @wraps(method)
    def exact(self: Self, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with exact_float32(self.device):
            return method(self, *args, **kwargs)

    return exact


def _enter() -> None:
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = [switch.fp32_precision for switch in _SWITCHES]
            _set([said if said in ("none", "ieee") else "ieee" for said in _before])
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set(_before)


def _set(wanted: list[str]) -> None:
    for switch, value in zip(_SWITCHES, wanted, strict=True):
        if switch.fp32_precision != value:
            switch.fp32_precision = value
