"""The layers that more than one part of the model is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nobody else holds: in its own memory unless gradients are wanted."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def is_recorded(x: Tensor) -> bool:
    """Whether PyTorch writes down what is done to `x`, to compile, export or replay it, rather than just do it."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or type(x) is not Tensor:
        return True
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (N, C, H, W), every pixel on its own."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # Contiguous, because oneDNN's 3x3 convolution of a channels-last map rounds three times worse, and the neck's
        # convolution is the last of the encoder.
        return self.over_last(x_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def over_last(self, x: Tensor) -> Tensor:
        """The same where the channels are the last dimension."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


def neck(width: int, channels: int) -> nn.Sequential:
    """From the encoder's width to the embedding's channels; every image encoder ends in it."""
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def to_windows(x_NHWC: Tensor, side: int) -> Tensor:
    """Square windows of (N, H, W, C) as (windows, side, side, C), zeros beyond the right and bottom edge."""
    n, h, w, c = x_NHWC.shape
    x_NHWC = F.pad(x_NHWC, (0, 0, 0, -w % side, 0, -h % side))
    rows, columns = x_NHWC.shape[1] // side, x_NHWC.shape[2] // side
    return x_NHWC.view(n, rows, side, columns, side, c).transpose(2, 3).reshape(-1, side, side, c)


def from_windows(x_BssC: Tensor, n: int, h: int, w: int) -> Tensor:
    """The inverse of `to_windows`: (n, h, w, C). What lies behind the windows' sides is laid out as C."""
    side = x_BssC.shape[2]
    rows, columns = -(-h // side), -(-w // side)
    x_NRyLxC = x_BssC.unflatten(0, (n, rows, columns)).transpose(2, 3)
    return x_NRyLxC.reshape(n, rows * side, columns * side, -1)[:, :h, :w]
