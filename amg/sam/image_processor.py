"""`SamImageProcessor`: from pictures to the model's input, and from its logits to masks of the pictures.

Arguments and numbers are those of the class of the same name in transformers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.config import nearest
from amg.errors import ConfigError
from amg.geometry import Size
from amg.sam import crop_prompts, mask_postprocess, preprocess
from amg.sam.batch_feature import BatchFeature, tensor_kind
from amg.sam.image_options import NAMES, ImageOptions, filter_number, height_width
from amg.sam.pictures import flatten, to_pixels
from amg.sam.processor_folder import OLD, WHERE, read_settings, write_settings

CALL_ONLY = ("return_tensors", "input_data_format", "device", "disable_grouping", "data_format")
"""Arguments of a call beside the settings. The last two change nothing and are taken for scripts that give them."""


class SamImageProcessor:
    """The settings are attributes (`size`, `image_mean`, ...; see `ImageOptions`); each can be given anew in a call.

    >>> processor = SamImageProcessor.from_pretrained("facebook/sam-vit-base")                # doctest: +SKIP
    >>> inputs = processor(image, return_tensors="pt")                                        # doctest: +SKIP
    """

    do_convert_rgb: bool
    do_resize: bool
    size: dict[str, int]
    resample: Any
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Any
    image_std: Any
    do_pad: bool
    pad_size: dict[str, int]
    mask_size: dict[str, int]
    mask_pad_size: dict[str, int]

    def __init__(self, **settings: Any) -> None:
        """Settings by name; None stands for the default. Names unknown here are kept and written back by `to_dict`."""
        defaults = ImageOptions()
        for name in NAMES:
            value = settings.pop(name, None)
            setattr(self, name, copy.deepcopy(getattr(defaults, name) if value is None else value))
        self.extra = {
            name: value for name, value in settings.items() if name not in ("processor_class", "image_processor_type")
        }
        self._options({})

    def __call__(self, images: Any, segmentation_maps: Any = None, **settings: Any) -> BatchFeature:
        return self.preprocess(images, segmentation_maps, **settings)

    def preprocess(self, images: Any, segmentation_maps: Any = None, **settings: Any) -> BatchFeature:
        """`pixel_values` (B, 3, S, S), `original_sizes` (B, 2), `reshaped_input_sizes` (B, 2), `labels` (B, L, L).

        images: PIL images, uint8 or float arrays or tensors (height, width, channels) or (channels, height, width), a
        batch of them, paths, or nested lists. segmentation_maps: for each image one (height, width) of classes.
        settings: any of this processor's settings, `return_tensors` ("pt", "np", None for lists),
        `input_data_format` ("channels_first", "channels_last"), `device` to work on.
        Raises ConfigError with the argument's name, its shape and the shape wanted.
        """
        named = {name: settings.pop(name, None) for name in CALL_ONLY}
        options, kind = self._options(settings), tensor_kind(named["return_tensors"])
        where = {"layout": named["input_data_format"], "device": named["device"]}
        rgb = bool(options.do_convert_rgb)
        pictures = [
            to_pixels(f"images[{n}]", picture, rgb=rgb, **where)
            for n, picture in enumerate(flatten("images", images, ndim=3))
        ]
        originals = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
        pixel_values, resized = preprocess.preprocess(pictures, options)
        data = {"pixel_values": pixel_values, "original_sizes": originals, "reshaped_input_sizes": resized}
        if segmentation_maps is not None:
            data["labels"] = _labels(segmentation_maps, options, len(pictures))
        return BatchFeature(data).convert_to_tensors(kind)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values"]

    def post_process_masks(
        self,
        masks: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: Any = None,
    ) -> list[Tensor]:
        """For every image its masks (prompts, masks, height, width) in the picture: bool, or logits without `binarize`.

        masks: `outputs.pred_masks` (images, prompts, masks, 256, 256), or a list with one entry an image; the sizes as
        the processor returned them. pad_size: the model's square, this processor's where None.
        """
        padded = height_width("pad_size", self.pad_size if pad_size is None else pad_size)
        return mask_postprocess.post_process_masks(
            masks, original_sizes, reshaped_input_sizes, threshold=mask_threshold, binarize=binarize, padded=padded
        )

    def pad(self, images: Sequence[Tensor], pad_size: Any = None) -> list[Tensor]:
        """Zeros at the right and the bottom of tensors (..., height, width), up to `pad_size` or the largest."""
        return preprocess.pad(images, pad_size=pad_size)

    def resize(self, image: Tensor, size: Mapping[str, int], resample: Any = None) -> Tensor:
        """A tensor (channels, height, width) with its longest side at `size["longest_edge"]`."""
        edge = ImageOptions(size=size).edge
        return preprocess.resize(image, edge, resample=filter_number(resample))

    def generate_crop_boxes(
        self,
        image: Any,
        target_size: int,
        crop_n_layers: int = 0,
        overlap_ratio: float = 512 / 1500,
        points_per_crop: int = 32,
        crop_n_points_downscale_factor: float = 1,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Boxes (N, 4) of the crops, points (1, P, N, 2) in the model frame, the cropped pixels, labels (1, P, N).

        image: one picture. target_size: the model's longest side. Layer i has 4**i crops.
        """
        pictures = flatten("image", image, ndim=3)
        if len(pictures) != 1:
            raise ConfigError(f"image: {len(pictures)} pictures; wanted one")
        made = crop_prompts.crop_prompts(
            to_pixels("image", pictures[0], rgb=False),
            target_size,
            n_layers=crop_n_layers,
            overlap_ratio=overlap_ratio,
            points_per_side=points_per_crop,
            downscale=crop_n_points_downscale_factor,
        )
        device = torch.device("cpu") if device is None else device
        return made.boxes_N4.to(device), made.points_1PN2.to(device), made.crops_CHW, made.labels_1PN.to(device)

    def filter_masks(
        self,
        masks: Tensor,
        iou_scores: Tensor,
        original_size: Sequence[int],
        cropped_box_image: Sequence[float] | Tensor,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        mask_threshold: float = 0.0,
        stability_score_offset: float = 1.0,
    ) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
        """Run lengths, scores (K,) and boxes (K, 4) of the masks of one crop that pass; see `mask_postprocess`.

        masks: logits (prompts, masks, height, width) of the crop's size; original_size: (height, width) of the picture.
        """
        return mask_postprocess.filter_masks(
            masks,
            iou_scores,
            Size(*(int(length) for length in original_size)),
            cropped_box_image,
            min_iou=pred_iou_thresh,
            min_stability=stability_score_thresh,
            threshold=mask_threshold,
            offset=stability_score_offset,
        )

    def post_process_for_mask_generation(
        self, all_masks: Sequence[dict[str, Any]], all_scores: Tensor, all_boxes: Tensor, crops_nms_thresh: float = 0.7
    ) -> tuple[list[Tensor], Tensor, list[dict[str, Any]], Tensor]:
        """Masks (height, width), scores, run lengths and boxes after non-maximum suppression over all crops."""
        return mask_postprocess.post_process_for_mask_generation(
            all_masks, all_scores, all_boxes, max_iou=crops_nms_thresh
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **named: Any) -> SamImageProcessor:
        """The processor of a folder, a hub name, a `preprocessor_config.json`, or the defaults for one of our weights.

        named: settings that win over the folder's, and `cache_dir`, `revision`, `token`, `local_files_only`,
        `force_download`, `subfolder`.
        """
        where = {name: named.pop(name) for name in (*WHERE, "subfolder") if name in named}
        return cls.from_dict(read_settings(pretrained_model_name_or_path, **where), **named)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **named: Any) -> SamImageProcessor:
        """From what `to_dict` gave; `named` settings win. Raises ConfigError for a name that is no setting."""
        _check_names(named, NAMES)
        return cls(**(dict(settings) | named))

    def save_pretrained(self, save_directory: str | Path) -> list[str]:
        """Writes `preprocessor_config.json`, which transformers reads too. Returns its path, in a list."""
        return write_settings(save_directory, self.to_dict(), file=OLD)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, under the names that transformers gives them."""
        settings = {name: copy.deepcopy(getattr(self, name)) for name in NAMES}
        settings["resample"] = filter_number(self.resample)
        for name in ("image_mean", "image_std"):
            settings[name] = list(settings[name]) if isinstance(settings[name], tuple) else settings[name]
        return {**copy.deepcopy(self.extra), **settings, "image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def _options(self, settings: Mapping[str, Any]) -> ImageOptions:
        """The settings of one call; what is given wins over the attributes."""
        _check_names(settings, (*NAMES, *CALL_ONLY))
        return ImageOptions(**({name: getattr(self, name) for name in NAMES} | dict(settings)))


def _check_names(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}{nearest(name, known)}; settings: {', '.join(known)}")


def _labels(segmentation_maps: Any, options: ImageOptions, n_images: int) -> list[Tensor]:
    name = "segmentation_maps"
    maps = [
        to_pixels(f"{name}[{n}]", each, rgb=False, layout="channels_first")
        for n, each in enumerate(flatten(name, segmentation_maps, ndim=2))
    ]
    if len(maps) != n_images:
        raise ConfigError(f"{name}: {len(maps)} maps for {n_images} images; wanted one (height, width) for each image")
    return preprocess.preprocess_maps(maps, options)
