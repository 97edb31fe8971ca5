"""Triton kernels compiled for an H100 where there is none: whether they compile, and what memory they would take."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)

SHARED_MEMORY = 227 * 1024
"""Bytes that a program may have of a multiprocessor."""

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


class Compiled:
    """Stands where a kernel stood: a launch compiles it for what it was given, and runs nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.built: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        names = self.kernel.arg_names
        given = dict(zip(names, arguments, strict=False)) | named
        constants = {name: value for name, value in given.items() if name in named or value is None}
        types = {name: "constexpr" if name in constants else kind_of(given[name]) for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if is_aligned(given[name])}
        places = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(self.kernel, types, places, {k: v for k, v in aligned.items() if k not in places})
        self.built.append(triton.compile(source, target=TARGET, options=options))


def kind_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def is_aligned(value: Any) -> bool:
    """As Triton sees it, and makes another kernel for it."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
