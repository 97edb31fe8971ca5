"""The columns and footer keys of a shard, version 1. `docs/format.md` says what each means."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pyarrow as pa

from amg.values import Funnel

SCHEMA_VERSION = 1

VERSION_KEY = "sam_amg.schema_version"
FOOTER_KEYS = (
    VERSION_KEY,
    "sam_amg.plan",
    "sam_amg.config",
    "sam_amg.model_sha256",
    "sam_amg.shard",
    "sam_amg.stats",
    "sam_amg.code_version",
    "sam_amg.created",
)
HUGGINGFACE_KEY = "huggingface"

TIMINGS = ("decode", "encode", "prompt", "post", "total")
FUNNEL = tuple(each.name for each in fields(Funnel))
MASKS_PER_IMAGE_BITS = 20  # a mask's id is image_id << 20 | its place in the image


def _required(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, type_, nullable=False)


def _several(type_: pa.DataType, length: int = -1) -> pa.DataType:
    """A list of that many (-1: any number) of what is never null."""
    return pa.list_(pa.field("element", type_, nullable=False), length)


SEGMENTATION = pa.struct([_required("size", _several(pa.int32(), 2)), _required("counts", pa.string())])
ANNOTATION = pa.struct(
    [
        _required("id", pa.int64()),
        _required("segmentation", SEGMENTATION),
        _required("bbox", _several(pa.float32(), 4)),
        _required("area", pa.int64()),
        _required("predicted_iou", pa.float32()),
        _required("stability_score", pa.float32()),
        _required("crop_box", _several(pa.float32(), 4)),
        _required("point_coords", _several(_several(pa.float32(), 2))),
        _required("layer", pa.int8()),
        _required("crop_index", pa.int32()),
        _required("point_index", pa.int32()),
        _required("mask_index", pa.int8()),
        _required("changed_by_cleanup", pa.bool_()),
    ]
)
COLUMNS = pa.schema(
    [
        _required("image_id", pa.int64()),
        _required("key", pa.string()),
        _required("uri", pa.string()),
        pa.field("extra", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orig_width", pa.int32()),
        pa.field("orig_height", pa.int32()),
        pa.field("exif_orientation", pa.int8()),
        _required("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("num_masks", pa.int32()),
        pa.field("timings_ms", pa.struct([_required(name, pa.float32()) for name in TIMINGS])),
        pa.field("funnel", pa.struct([_required(name, pa.int32()) for name in FUNNEL])),
        pa.field("annotations", _several(ANNOTATION)),
    ]
)
IMAGE = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))


def huggingface_features(schema: pa.Schema) -> str:
    """The footer value by which `datasets` shows the columns: `image` opens as a picture, the rest as it is stored."""
    features = {each.name: {"_type": "Image"} if each == IMAGE else _feature(each.type) for each in schema}
    return json.dumps({"info": {"features": features}})


def _feature(type_: pa.DataType) -> Any:
    if pa.types.is_struct(type_):
        return {each.name: _feature(each.type) for each in type_.fields}
    if pa.types.is_fixed_size_list(type_):
        return {"feature": _feature(type_.value_type), "length": type_.list_size, "_type": "Sequence"}
    if pa.types.is_list(type_):
        return [_feature(type_.value_type)]  # a list of structs stays one in every version of `datasets`
    name = {"float": "float32", "double": "float64"}.get(str(type_), str(type_))
    return {"dtype": name, "_type": "Value"}
