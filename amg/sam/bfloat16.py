"""Image encoders that multiply in bfloat16 and are float32 otherwise: the arithmetic of `model.precision: fast`.

In a TinyViT the linear layers do, on a CPU as on a GPU (`round_products`), and what runs from layer to layer keeps its
24 bits: rounded to 8 after every layer, its embedding is five to eight times further from float32's than with rounded
products alone, and F1 of the masks falls (docs/gpu.md). A ViT on a GPU does all its products so, attention too
(`round_vit`), as under autocast: norms are float32, and so is the sum of what the blocks add, which begins with float32
positions. On a CPU it is rounded as a TinyViT.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.sam.layers import LayerNorm2d
from amg.sam.vit import Attention, Vit


class RoundedLinear(nn.Module):
    """A linear layer's product of bfloat16 numbers. The bias is added as it is, and the input's type is given back."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x.bfloat16(), self.weight)
        return product.to(x.dtype) if self.bias is None else (product + self.bias).to(x.dtype)


def round_products(module: nn.Module) -> None:
    """Put a `RoundedLinear` in the place of every linear layer below `module`; the keys of its weights stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, RoundedLinear(child))
        else:
            round_products(child)


class BFloat16Linear(nn.Linear):
    """A linear layer that takes any type and gives bfloat16."""

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Linear's
        return F.linear(input.bfloat16(), self.weight, self.bias)


class BFloat16Conv2d(nn.Conv2d):
    """A convolution that takes any type and gives bfloat16."""

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Conv2d's
        return super().forward(input.bfloat16())


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm that takes any type and gives float32."""

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.LayerNorm's
        return super().forward(input.float())


class Float32LayerNorm2d(LayerNorm2d):
    """The same over channels."""

    def over_last(self, x: Tensor) -> Tensor:
        return super().over_last(x.float())


@torch.no_grad()
def round_vit(encoder: Vit) -> None:
    """Let all products of a finished encoder be bfloat16, its weights converted now; their keys stay.

    Norms, positions, the sum that runs from block to block and the embedding are float32.
    """
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.rel_pos_h.data, module.rel_pos_w.data = module.rel_pos_h.bfloat16(), module.rel_pos_w.bfloat16()
        kind = type(module)
        if kind in _ROUNDED:
            module.bfloat16()
        module.__class__ = cast(Any, _ROUNDED.get(kind) or _EXACT.get(kind) or kind)


_ROUNDED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: BFloat16Linear, nn.Conv2d: BFloat16Conv2d}
_EXACT: dict[type[nn.Module], type[nn.Module]] = {nn.LayerNorm: Float32LayerNorm, LayerNorm2d: Float32LayerNorm2d}
