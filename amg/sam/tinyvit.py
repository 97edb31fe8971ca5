"""The image encoder of MobileSAM: TinyViT at 1024 pixels, distilled from ViT-H (arXiv 2306.14289).

State-dict keys are those of MobileSAM's `TinyViT`. Inside, maps are (N, C, H, W) tensors in channels-last memory, so
that a map and its tokens (N, H, W, C) are two views of the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.geometry import Size
from amg.sam.config import TinyVitConfig
from amg.sam.layers import from_windows, gelu, neck, to_windows


class TinyVit(nn.Module):
    def __init__(self, config: TinyVitConfig, *, channels: int) -> None:
        super().__init__()
        widths = config.widths
        merges = [PatchMerging(*step) for step in zip(widths, widths[1:], config.strides, strict=False)]
        self.patch_embed = Stem(widths[0])
        self.layers = nn.ModuleList([ConvStage(widths[0], config.depths[0], merges[0])])
        for i in range(1, len(widths)):
            blocks = [Block(widths[i], config.heads[i], config.windows[i], config) for _ in range(config.depths[i])]
            self.layers.append(Stage(blocks, merges[i] if i < len(merges) else None))
        # The classifier of the pretraining: unused, kept so that published files load and save key for key.
        self.norm_head = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], config.classes)
        self.neck = neck(widths[-1], channels)

        self.config = config

    def forward(self, pixels_N3SS: Tensor, covered: Size | None = None) -> Tensor:
        """Features (N, D, G, G) of normalised pixels.

        `covered`: beyond these rows and columns all pixels are zero, which saves work and changes nothing.
        """
        pixels_N3SS = pixels_N3SS.contiguous(memory_format=torch.channels_last)
        x_NCHW = self._convolve(pixels_N3SS) if covered is None else self._convolve_covered(pixels_N3SS, covered)
        for stage in self.layers[1:]:
            x_NCHW = stage(x_NCHW)
        return self.neck(x_NCHW)

    def _convolve(self, pixels_N3HW: Tensor) -> Tensor:
        return self.layers[0](self.patch_embed(pixels_N3HW))

    def _convolve_covered(self, pixels_N3SS: Tensor, covered: Size) -> Tensor:
        """The same, with most of the padding left out and put in again behind the convolutions."""
        side, blocks, stride = pixels_N3SS.shape[-1], self.config.depths[0], self.config.strides[0]
        rows, columns = (
            Shortened.of(pixels, side, blocks=blocks, stride=stride) for pixels in (covered.height, covered.width)
        )
        pixels_N3HW = pixels_N3SS[:, :, : rows.pixels, : columns.pixels]
        x_NHWC = self._convolve(pixels_N3HW).permute(0, 2, 3, 1)
        return columns.stretch(rows.stretch(x_NHWC, 1), 2).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Shortened:
    """One axis of the picture without most of its padding, and of the map that the convolutions make of it.

    Of the map's `cells`, the first `near` depend on what is in the picture, the last `last` on the map's edge. All
    between them are equal: one is computed, the others are copied.
    """

    pixels: int
    cells: int
    near: int
    last: int

    @classmethod
    def of(cls, covered: int, side: int, *, blocks: int, stride: int) -> Shortened:
        """For a stem that halves twice, so many blocks with a 3x3 convolution each, and one with a stride of 1 or 2."""
        near = (covered // 2 + 1) // 2 + 1 + blocks
        near, last = (near // 2 + 1, (blocks + 1) // 2) if stride == 2 else (near + 1, blocks + 1)
        cell, cells = 4 * stride, side // (4 * stride)
        if side % cell or stride > 2 or near + 1 + last >= cells:
            return cls(side, cells, cells, 0)
        return cls((near + 1 + last) * cell, cells, near, last)

    def stretch(self, x_NHWC: Tensor, dim: int) -> Tensor:
        """The whole map from the one of the shortened picture, along this dimension."""
        if self.near == self.cells:
            return x_NHWC
        near, between, last = x_NHWC.split([self.near, 1, self.last], dim)
        sizes = [*x_NHWC.shape]
        sizes[dim] = self.cells - self.near - self.last
        return torch.cat([near, between.expand(sizes), last], dim)


class ConvNorm(nn.Module):
    """A convolution without bias and a batch norm; outside of training one convolution does the work of both."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.training:
            return self.bn(self.c(x_NCHW))
        conv = self.c
        weight, bias_C = self.folded()
        return F.conv2d(x_NCHW, weight, bias_C, conv.stride, conv.padding, conv.dilation, conv.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the work of both."""
        conv, norm = self.c, self.bn
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return conv.weight * gain_C[:, None, None, None], norm.bias - norm.running_mean * gain_C


class Stem(nn.Module):
    """Two strided convolutions: a quarter of the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2), nn.GELU(), ConvNorm(width // 2, width, 3, stride=2)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        first, _, second = self.seq
        return second(gelu(first(x_NCHW)))


class PatchMerging(nn.Module):
    """To the next stage's width, through a depthwise convolution that may halve the side."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out)
        self.conv2 = ConvNorm(c_out, c_out, 3, stride=stride, groups=c_out)
        self.conv3 = ConvNorm(c_out, c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x_NCHW)))))


class ConvStage(nn.Module):
    def __init__(self, width: int, depth: int, downsample: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MbConv(width) for _ in range(depth))
        self.downsample = downsample

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        return self.downsample(x_NCHW)


class MbConv(nn.Module):
    """An inverted bottleneck: widen fourfold, mix each channel over its neighbours, narrow, add.

    Without gradients it goes over the map in bands of rows, each with the one row above and below that the mixing looks
    at: the widened map would be the encoder's largest by far.
    """

    BAND = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, 4 * width)
        self.conv2 = ConvNorm(4 * width, 4 * width, 3, groups=4 * width)
        self.conv3 = ConvNorm(4 * width, width)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        height = x_NCHW.shape[2]
        if torch.is_grad_enabled() or height <= self.BAND:
            return gelu(x_NCHW + self.conv3(self.widened(x_NCHW)))
        out_NCHW = torch.empty_like(x_NCHW)
        for top in range(0, height, self.BAND):
            bottom = min(top + self.BAND, height)
            above, below = max(top - 1, 0), min(bottom + 1, height)
            wide_NChW = self.widened(x_NCHW[:, :, above:below])[:, :, top - above : bottom - above]
            out_NCHW[:, :, top:bottom] = gelu(x_NCHW[:, :, top:bottom] + self.conv3(wide_NChW))
        return out_NCHW

    def widened(self, x_NCHW: Tensor) -> Tensor:
        return gelu(self.conv2(gelu(self.conv1(x_NCHW))))


class Stage(nn.Module):
    def __init__(self, blocks: list[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        return x_NCHW if self.downsample is None else self.downsample(x_NCHW)


class Block(nn.Module):
    """Attention in windows, a depthwise convolution (no residual), an MLP."""

    def __init__(self, width: int, heads: int, window: int, config: TinyVitConfig) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = TinyMlp(width, width * config.mlp_ratio)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        n, h, w, _ = x_NHWC.shape
        x_NHWC = x_NHWC + from_windows(self.attn(to_windows(x_NHWC, self.window)), n, h, w)
        x_NHWC = self.local_conv(x_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x_NHWC + self.mlp(x_NHWC)).permute(0, 3, 1, 2)


class TinyMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(self.norm(x))))


class Attention(nn.Module):
    """Attention in one window, with a learned bias for each head and each pair of row and column distance.

    The layer norm comes after the padding of the windows: padded places hold its bias and are attended to.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x_BssC: Tensor) -> Tensor:
        b, s, _, width = x_BssC.shape
        qkv_BThc3 = self.qkv(self.norm(x_BssC)).view(b, s * s, self.heads, -1)
        q_BhTc, k_BhTc, v_BhTc = qkv_BThc3.transpose(1, 2).chunk(3, dim=-1)
        bias_1hTT = self.attention_biases[None, :, pair_index(s, x_BssC.device)]
        y_BhTc = F.scaled_dot_product_attention(q_BhTc, k_BhTc, v_BhTc, attn_mask=bias_1hTT)
        return self.proj(y_BhTc.transpose(1, 2).reshape(b, s, s, width))


def pair_index(side: int, device: torch.device) -> Tensor:
    """Where the bias of two places of a window is stored: |row distance| * side + |column distance|, (T, T) int64."""
    at = torch.arange(side, device=device)
    distance_ss = (at[:, None] - at[None, :]).abs()
    rows, columns = distance_ss[:, None, :, None], distance_ss[None, :, None, :]
    return (rows * side + columns).reshape(side * side, side * side)
