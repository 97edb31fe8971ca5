"""The image encoder of SAM: a plain vision transformer with windows and decomposed relative positions (ViTDet).

State-dict keys are those of segment-anything's `ImageEncoderViT`. Letters: N images, G the grid side, C the encoder's
width, h heads, c channels of a head, T tokens of an attention (G*G, or the window's).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.sam.config import VitConfig
from amg.sam.layers import Mlp, from_windows, neck, to_windows


class Vit(nn.Module):
    def __init__(self, config: VitConfig, *, side: int, channels: int) -> None:
        super().__init__()
        grid = side // config.patch
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.width))
        self.blocks = nn.ModuleList(
            Block(config, grid, window=0 if i in config.global_blocks else config.window) for i in range(config.depth)
        )
        self.neck = neck(config.width, channels)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        """Features (N, D, G, G) of normalised pixels."""
        x_NGGC = self.patch_embed(pixels_N3SS) + self.pos_embed
        for block in self.blocks:
            x_NGGC = block(x_NGGC)
        return self.neck(x_NGGC.permute(0, 3, 1, 2))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        return self.proj(pixels_N3SS).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a residual; `window` 0 attends to the whole grid."""

    def __init__(self, config: VitConfig, grid: int, *, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads, side=window or grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.width * config.mlp_ratio, nn.GELU())

    def forward(self, x_NGGC: Tensor) -> Tensor:
        y_NGGC = self.norm1(x_NGGC)
        if self.window:
            n, g = y_NGGC.shape[:2]
            y_NGGC = from_windows(self.attn(to_windows(y_NGGC, self.window)), n, g, g)
        else:
            y_NGGC = self.attn(y_NGGC)
        x_NGGC = x_NGGC + y_NGGC
        return x_NGGC + self.mlp(self.norm2(x_NGGC))


class Attention(nn.Module):
    """Multi-head attention over a square, with a learned bias for the row distance and one for the column distance."""

    def __init__(self, width: int, heads: int, *, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x_BssC: Tensor) -> Tensor:
        b, s, _, width = x_BssC.shape
        q_BhTc, k_BhTc, v_BhTc = self.qkv(x_BssC).view(b, s * s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias_BhTT = relative_position_bias(q_BhTc, self.rel_pos_h, self.rel_pos_w)
        y_BhTc = F.scaled_dot_product_attention(q_BhTc, k_BhTc, v_BhTc, attn_mask=bias_BhTT)
        return self.proj(y_BhTc.transpose(1, 2).reshape(b, s, s, width))


def relative_position_bias(q_BhTc: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """What a query adds to its score with each key: q . (row vector of their distance + column vector) as (B, h, T, T).

    T = s*s, row by row; `rel_pos_*` (2s-1, c) start at the distance -(s-1). The query is not scaled here.
    Source: `add_decomposed_rel_pos` of segment-anything, after MViTv2.
    """
    b, heads, t, c = q_BhTc.shape
    s = (len(rel_pos_h) + 1) // 2
    at = torch.arange(s, device=q_BhTc.device)
    distance_ss = at[:, None] - at[None, :] + s - 1
    q_Bhyxc = q_BhTc.reshape(b, heads, s, s, c)
    rows_Bhyxs = q_Bhyxc @ rel_pos_h[distance_ss].transpose(1, 2)
    columns_Bhxys = q_Bhyxc.transpose(2, 3) @ rel_pos_w[distance_ss].transpose(1, 2)
    columns_Bhyxs = columns_Bhxys.transpose(2, 3)
    return (rows_Bhyxs[..., :, None] + columns_Bhyxs[..., None, :]).view(b, heads, t, t)
