"""The architectures of the published checkpoints, as plain numbers.

Sources: table 7 and appendix A of the Segment Anything paper, `build_sam.py` of segment-anything and of MobileSAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class VitConfig:
    """A plain vision transformer: attention in windows, but over the whole grid in `global_blocks`."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    patch: int = 16
    window: int = 14
    mlp_ratio: int = 4


@dataclass(frozen=True, slots=True)
class TinyVitConfig:
    """MobileSAM's encoder: one stage of convolutions, then stages of windowed attention.

    `strides` are those between the stages, after a stem of stride 4. `classes` is the size of the classifier left over
    from pretraining, which the checkpoint carries and nobody uses.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 1)
    mlp_ratio: int = 4
    classes: int = 1000


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The two-way transformer and the heads behind it; `masks` for one ambiguous prompt, beside the single mask.

    The last attention works in channels / `downsample`; those in the blocks in half of them, whatever it is, as in the
    transformers library.
    """

    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    downsample: int = 2
    masks: int = 3
    iou_depth: int = 3
    iou_width: int = 256


@dataclass(frozen=True, slots=True)
class Architecture:
    """What `build_sam` makes: `side` S of the model's square input, `grid` G of the embedding, its channels D.

    `pretrained_config.SamConfig` says the same in the words of the transformers library.
    """

    name: str
    encoder: VitConfig | TinyVitConfig
    decoder: DecoderConfig = DecoderConfig()
    channels: int = 256
    mask_channels: int = 16
    side: int = 1024
    grid: int = 64


VIT_B = Architecture("vit_b", VitConfig(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)))
VIT_L = Architecture("vit_l", VitConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)))
VIT_H = Architecture("vit_h", VitConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)))
VIT_T = Architecture(
    "vit_t",
    TinyVitConfig(widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(2, 4, 5, 10), windows=(7, 7, 14, 7)),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({c.name: c for c in (VIT_T, VIT_B, VIT_L, VIT_H)})
