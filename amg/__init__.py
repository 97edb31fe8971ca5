"""Automatic mask generation with Segment Anything.

    import amg

    sam = amg.load_sam("mobile-sam")
    masks = amg.generate_masks(image, sam)          # HxWx3 uint8 RGB, a PIL image, or an iterator of them
    records = masks.to_dicts()                      # what the original package's generator returns

    for row in amg.read_shards("annotations/"):     # what `sam-amg run` wrote; needs no torch
        print(row["key"], row["num_masks"])

Names are imported when they are first used, so that `import amg` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amg.errors import AmgError
    from amg.generate import MaskGenerator, generate_masks
    from amg.mask_generation import MaskGeneration
    from amg.sam.image_processor import SamImageProcessor
    from amg.sam.load import load_sam
    from amg.sam.predictor import Predictor
    from amg.sam.pretrained_config import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
    from amg.sam.sam_model import SamModel
    from amg.sam.sam_processor import SamProcessor
    from amg.shards.reader import read_shards
    from amg.sources.inputs import open_source
    from amg.values import Failure, Image, ImageRef, MaskSet, Status

__version__ = "0.1.0"

__all__ = [
    "AmgError",
    "Failure",
    "Image",
    "ImageRef",
    "MaskGeneration",
    "MaskGenerator",
    "MaskSet",
    "Predictor",
    "SamConfig",
    "SamImageProcessor",
    "SamMaskDecoderConfig",
    "SamModel",
    "SamProcessor",
    "SamPromptEncoderConfig",
    "SamVisionConfig",
    "Status",
    "generate_masks",
    "load_sam",
    "open_source",
    "read_shards",
]

_HOMES = {
    "AmgError": "amg.errors",
    "Failure": "amg.values",
    "Image": "amg.values",
    "ImageRef": "amg.values",
    "MaskGeneration": "amg.mask_generation",
    "MaskGenerator": "amg.generate",
    "MaskSet": "amg.values",
    "Predictor": "amg.sam.predictor",
    "SamConfig": "amg.sam.pretrained_config",
    "SamImageProcessor": "amg.sam.image_processor",
    "SamMaskDecoderConfig": "amg.sam.pretrained_config",
    "SamModel": "amg.sam.sam_model",
    "SamProcessor": "amg.sam.sam_processor",
    "SamPromptEncoderConfig": "amg.sam.pretrained_config",
    "SamVisionConfig": "amg.sam.pretrained_config",
    "Status": "amg.values",
    "generate_masks": "amg.generate",
    "load_sam": "amg.sam.load",
    "open_source": "amg.sources.inputs",
    "read_shards": "amg.shards.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'amg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
