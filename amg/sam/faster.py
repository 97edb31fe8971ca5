"""What makes a plain vision transformer faster on a GPU where it is asked for: a Triton kernel, compiled blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from amg.errors import ConfigError
from amg.sam.vit import Block, Vit


def use_triton(encoder: nn.Module) -> None:
    """Let `kernels/gpu/attention.py` do attention over the whole grid where no gradients are wanted.

    An encoder that is no `Vit` has no such blocks and stays as it is. Raises ConfigError as `check_triton`.
    """
    if not isinstance(encoder, Vit):
        return
    check_triton(encoder.pos_embed.device)
    from amg.kernels.gpu.attention import attend

    for block in _blocks(encoder):
        block.attn.kernel = attend


def check_triton(device: torch.device) -> None:
    """ConfigError where Triton is not installed, or for a device that is no GPU.

    Triton's interpreter (`TRITON_INTERPRET=1`) takes a CPU for one.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"Triton kernels run on CUDA devices, and the model is on {device}; use kernels 'torch'")
    if find_spec("triton") is None:
        raise ConfigError("Triton kernels need the package triton, and it is not installed; use kernels 'torch'")


def compile_blocks(encoder: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let PyTorch compile the blocks of a `Vit` when they are first called; other encoders stay as they are.

    Blocks of one kind share what is compiled, so that is two compilations, one of a block with windows and one of a
    block without; another number of images adds two more, which then serve for any number. Compiled code is kept in
    `TORCHINDUCTOR_CACHE_DIR` and found there by the next process.
    """
    if isinstance(encoder, Vit):
        for block in _blocks(encoder):
            block.compile(backend=backend)


def _blocks(encoder: Vit) -> list[Block]:
    return [block for block in encoder.blocks if isinstance(block, Block)]
