"""The mask decoder: image embedding and prompt embeddings to masks and their predicted IoU (paper, figure 14).

State-dict keys are those of segment-anything's `MaskDecoder`. This is the plain form; `shared.py` is its fast twin.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.sam.config import DecoderConfig
from amg.sam.layers import LayerNorm2d
from amg.sam.transformer import TwoWayTransformer


class MaskDecoder(nn.Module):
    """Mask 0 is the single mask, for clear prompts; masks 1 to `config.masks` are the answers to an ambiguous one."""

    def __init__(self, config: DecoderConfig, *, channels: int) -> None:
        super().__init__()
        n_masks = config.masks + 1
        self.transformer = TwoWayTransformer(
            depth=config.depth,
            width=channels,
            heads=config.heads,
            mlp_width=config.mlp_width,
            downsample=config.downsample,
        )
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(n_masks, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Head([channels, channels, channels, channels // 8]) for _ in range(n_masks)
        )
        hidden = [config.iou_width] * (config.iou_depth - 1)
        self.iou_prediction_head = Head([channels, *hidden, n_masks])

    def forward(
        self,
        features_1DGG: Tensor,
        position_1DGG: Tensor,
        sparse_PKD: Tensor,
        dense_PDGG: Tensor,
        *,
        multimask: bool | None,
        similarity: Tensor | None = None,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (P, M, L, L) with L = 4G and IoU (P, M): the three masks of `multimask`, or the single one.

        With `multimask` None all four, the single one first. `features` may also have P images, one a prompt; `dense`
        may be one for all prompts. `similarity` and `target` are the transformer's.
        """
        tokens_PTD = self.tokens(sparse_PKD)
        p, g = len(tokens_PTD), features_1DGG.shape[-1]
        image_PID = (features_1DGG + dense_PDGG).flatten(2).transpose(1, 2).expand(p, -1, -1)
        position_PID = position_1DGG.flatten(2).transpose(1, 2)
        queries_PTD, keys_PID = self.transformer(
            tokens_PTD, image_PID, position_PID, similarity=similarity, target=target
        )
        upscaled_PULL = self.output_upscaling(keys_PID.transpose(1, 2).unflatten(2, (g, g)))
        weights_PMU, iou_PM = self.read(queries_PTD, multimask=multimask)
        return torch.einsum("pmu,puyx->pmyx", weights_PMU, upscaled_PULL), iou_PM

    def tokens(self, sparse_PKD: Tensor) -> Tensor:
        """The output tokens (IoU, single mask, three masks) before the prompt's own."""
        outputs_OD = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([outputs_OD.expand(len(sparse_PKD), -1, -1), sparse_PKD], dim=1)

    def read(self, queries_PTD: Tensor, *, multimask: bool | None) -> tuple[Tensor, Tensor]:
        """From the finished tokens: the weights (P, M, U) that make masks of the upscaled image, and the IoU (P, M)."""
        n_masks = len(self.output_hypernetworks_mlps)
        wanted = range(1 if multimask else 0, 1 if multimask is False else n_masks)
        weights = [self.output_hypernetworks_mlps[m](queries_PTD[:, 1 + m]) for m in wanted]
        iou_PM = self.iou_prediction_head(queries_PTD[:, 0])[:, wanted.start : wanted.stop]
        return torch.stack(weights, dim=1), iou_PM


class Head(nn.Module):
    """Linear layers of these widths with ReLU between them."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
