"""`SamProcessor`: pictures and prompts to the model's inputs. Interface of the class of that name in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from amg.errors import ConfigError
from amg.sam.batch_feature import BatchFeature, tensor_kind
from amg.sam.image_options import longest_edge
from amg.sam.image_processor import SamImageProcessor
from amg.sam.mask_postprocess import read_sizes
from amg.sam.processor_folder import NEW, OLD, write_settings
from amg.sam.prompts import PADDING, Prompts, read_prompts


class SamProcessor:
    """An image processor, and what scales prompts to its images.

    >>> processor = SamProcessor.from_pretrained("facebook/sam-vit-huge")                     # doctest: +SKIP
    >>> inputs = processor(image, input_points=[[[450, 600]]], return_tensors="pt")           # doctest: +SKIP
    """

    point_pad_value = PADDING

    def __init__(self, image_processor: SamImageProcessor | None = None) -> None:
        if image_processor is not None and not isinstance(image_processor, SamImageProcessor):
            raise ConfigError(f"image_processor: a {type(image_processor).__name__}; wanted amg.SamImageProcessor")
        self.image_processor = image_processor or SamImageProcessor()
        self.target_size = longest_edge("size", self.image_processor.size)

    def __call__(
        self,
        images: Any = None,
        text: None = None,
        segmentation_maps: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        *,
        point_pad_value: int | None = None,
        images_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """What `SamImageProcessor` returns, with the prompts in pixels of the model's input.

        input_points: (images, points, 2) as [[[x, y]]], or (images, prompts, points, 2), in pixels of each picture, as
        nested lists, array or tensor; input_labels: one a point, 1 foreground, 0 background, -1 none; input_boxes:
        (images, boxes, 4) as [[[x0, y0, x1, y1]]]. Prompts with fewer points than others are filled up with
        `point_pad_value`. settings: those of the image processor, by name or as `images_kwargs`. Prompts are scaled to
        `target_size`, the processor's own size: a `size` for one call changes the pixels alone.
        Raises ConfigError with the argument's name, its shape and the shape wanted.
        """
        if text is not None:
            raise ConfigError(f"text: a {type(text).__name__}; SAM takes points, boxes and masks, no text")
        if images is None:
            raise ConfigError("images: None; wanted the pictures that the prompts are for")
        settings = (images_kwargs or {}) | settings
        kind = tensor_kind(settings.get("return_tensors"))
        batch = self.image_processor(images, segmentation_maps, **settings)
        prompts = read_prompts(
            input_points,
            input_labels,
            input_boxes,
            read_sizes("original_sizes", batch["original_sizes"]),
            edge=self.target_size,
            padding=self.point_pad_value if point_pad_value is None else point_pad_value,
        )
        batch.update(_as_inputs(prompts, kind))
        return batch

    def post_process_masks(self, *args: Any, **named: Any) -> list[Tensor]:
        """`SamImageProcessor.post_process_masks`."""
        return self.image_processor.post_process_masks(*args, **named)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, "original_sizes", "reshaped_input_sizes"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **named: Any) -> SamProcessor:
        """As `SamImageProcessor.from_pretrained`."""
        return cls(SamImageProcessor.from_pretrained(pretrained_model_name_or_path, **named))

    def save_pretrained(self, save_directory: str | Path, *, layout: Literal["new", "old"] = "new") -> list[str]:
        """Writes a folder that transformers reads: `processor_config.json`, or the older `preprocessor_config.json`."""
        if layout not in ("new", "old"):
            raise ConfigError(f"layout: {layout!r}; wanted 'new' ({NEW}) or 'old' ({OLD})")
        settings = (
            self.to_dict() if layout == "new" else self.image_processor.to_dict() | {"processor_class": "SamProcessor"}
        )
        return write_settings(save_directory, settings, file=NEW if layout == "new" else OLD)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, under the names that transformers gives them."""
        return {"image_processor": self.image_processor.to_dict(), "processor_class": "SamProcessor"}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True)}"


def _as_inputs(prompts: Prompts, kind: str | None) -> dict[str, NDArray[Any] | Tensor]:
    """Tensors always have the dimension of prompts; arrays only where it was given, as the source has it."""
    named = (
        ("input_boxes", prompts.boxes_BP4, False),
        ("input_points", prompts.points_BPK2, prompts.single_points),
        ("input_labels", prompts.labels_BPK, prompts.single_labels),
    )
    if kind == "pt":
        return {name: torch.from_numpy(array) for name, array, _ in named if array is not None}
    return {name: array[:, 0] if single else array for name, array, single in named if array is not None}
