"""The prompt encoder: points, boxes and masks to embeddings (paper, section 3 and appendix A).

State-dict keys are those of segment-anything's `PromptEncoder`. Coordinates are in the model frame, x before y; the
centre of a pixel lies half a pixel right of and below its index, which is added here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amg.sam.layers import LayerNorm2d

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(4)
NOT_A_POINT = -1
PADDING = -10  # of the transformers library: makes prompts of few points as long as those of many


class PromptEncoder(nn.Module):
    def __init__(self, *, channels: int, mask_channels: int, side: int, grid: int) -> None:
        super().__init__()
        self.side, self.grid = side, grid
        self.pe_layer = RandomFourier(channels // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    def forward(
        self,
        xy_PK2: Tensor | None = None,
        labels_PK: Tensor | None = None,
        boxes_P4: Tensor | None = None,
        masks_P1LL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (P, K', D) of points, then box corners; and what a mask adds to the image, (P or 1, D, G, G).

        Points without a box get a closing 'not a point', as in training. Labels are the constants above.
        """
        parts = []
        if xy_PK2 is not None and labels_PK is not None:
            if boxes_P4 is None:
                xy_PK2, labels_PK = close(xy_PK2, labels_PK)
            parts.append(self.embed_points(self.to_unit(xy_PK2), labels_PK))
        if boxes_P4 is not None:
            corners_P2 = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes_P4.device).expand(len(boxes_P4), 2)
            parts.append(self.embed_points(self.to_unit(boxes_P4.view(-1, 2, 2)), corners_P2))
        no_mask_11D = self.no_mask_embed.weight[None]
        if not parts:
            parts.append(no_mask_11D.new_empty(1 if masks_P1LL is None else len(masks_P1LL), 0, no_mask_11D.shape[2]))
        dense_PDGG = no_mask_11D.view(1, -1, 1, 1) if masks_P1LL is None else self.mask_downscaling(masks_P1LL)
        return torch.cat(parts, dim=1), dense_PDGG.expand(-1, -1, self.grid, self.grid)

    def to_unit(self, xy: Tensor) -> Tensor:
        """Pixel centres over the model's square, 0 to 1; rounded to the weights' precision only here."""
        return ((xy + 0.5) / self.side).to(self.no_mask_embed.weight.dtype)

    def embed_points(self, unit_PK2: Tensor, labels_PK: Tensor) -> Tensor:
        """(P, K, D): where a point is plus what it means; for 'not a point' only the latter, for padding nothing."""
        where_PKD = self.pe_layer(unit_PK2)
        kinds_4D = torch.cat([embedding.weight for embedding in self.point_embeddings])  # pyright: ignore
        points_PKD = where_PKD + kinds_4D[labels_PK.clamp(min=0)]
        points_PKD = torch.where(labels_PK[..., None] == NOT_A_POINT, self.not_a_point_embed.weight, points_PKD)
        return torch.where(labels_PK[..., None] == PADDING, 0.0, points_PKD)

    def grid_encoding(self) -> Tensor:
        """The position of every image token, (1, D, G, G)."""
        weight = self.no_mask_embed.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        at_G = (torch.arange(self.grid, device=weight.device, dtype=exact) + 0.5) / self.grid
        x_GG, y_GG = at_G.expand(self.grid, -1), at_G[:, None].expand(-1, self.grid)
        return self.pe_layer(torch.stack([x_GG, y_GG], dim=-1).to(weight.dtype)).permute(2, 0, 1)[None]


class RandomFourier(nn.Module):
    """Positions as sines and cosines of random frequencies (Tancik et al. 2020), which the checkpoint holds."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", nn.init.normal_(torch.empty(2, frequencies)))

    def forward(self, xy_unit: Tensor) -> Tensor:
        """(..., 2) from 0 to 1 over the model's square -> (..., 2 * frequencies)."""
        angle = 2 * math.pi * ((2 * xy_unit - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def close(xy_PK2: Tensor, labels_PK: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts with one 'not a point' behind their points."""
    p = len(xy_PK2)
    xy = torch.cat([xy_PK2, xy_PK2.new_zeros(p, 1, 2)], dim=1)
    return xy, torch.cat([labels_PK, labels_PK.new_full((p, 1), NOT_A_POINT)], dim=1)
