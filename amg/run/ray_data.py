"""Mask generation as a step of a Ray Data pipeline: a callable class for `Dataset.map_batches`.

Here Ray Data reads, writes and repeats. What `sam-amg run` promises (a plan, one row for each image whatever dies,
going on where it stopped) is not promised here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data.block import BlockAccessor

from amg.config import load_config
from amg.errors import ConfigError
from amg.geometry import Size
from amg.run import machine
from amg.run.local import open_label, pin
from amg.run.shard import Result, decoded
from amg.sam import weights as checkpoints
from amg.shards import schema, writer
from amg.sources.local import local_path
from amg.sources.paths import to_text
from amg.sources.read import Reader
from amg.storage.url import is_remote
from amg.values import Failure, Image, ImageRef, Status

if TYPE_CHECKING:
    from pandas import DataFrame

IMAGE_COLUMNS = ("bytes", "image", "path")
"""Where images are looked for: what `read_binary_files`, `read_images` and their `include_paths` call them."""
COLUMNS = tuple(name for name in schema.COLUMNS.names if name not in ("image_id", "key", "uri", "extra"))
"""What is added to a batch: the columns of a shard without those that only a plan can fill."""


class MaskGenerator:
    """Adds `status`, `error`, `num_masks`, `annotations` and the other columns of a shard to every row of a batch.

    Images are encoded files (bytes), local paths or addresses (str), or pixels (HxW, HxWx1, HxWx3 or HxWx4, uint8), in
    the column `image`, else in the first one of `bytes`, `image` and `path`. That column goes unless `keep_image`; all
    others stay. An image that cannot be labeled is a row with a status and an error. Where there is a column `image_id`
    of whole numbers the ids of annotations are made of it, as in a shard; else they count from 0 in each image.
    """

    def __init__(
        self,
        *,
        image: str | None = None,
        keep_image: bool = False,
        weights: str | None = None,
        preset: str = "default",
        config: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        """Loads the model.

        `weights`, `preset`, `config` (a YAML file) and `settings` (such as `{"generate.points_per_side": 16}`) are
        those of `sam-amg run`. `device`: `auto` takes the GPU that Ray reserved for this actor, else the CPU; else as
        `run.device`. Raises ConfigError and WeightsError.
        """
        warnings.filterwarnings("ignore", module="PIL")  # what is odd in a file becomes its row, or does not matter
        named = {"run.device": _reserved() if device == "auto" else device}
        if weights is not None:
            named["model.weights"] = weights
        chosen = load_config(preset=preset, file=config, overrides={**(settings or {}), **named})
        where = machine.pick_devices(chosen.run)[0]
        checkpoint, _ = checkpoints.checked_file(chosen.model.weights)
        self._config = pin(chosen, None, [where])
        self._label = open_label(checkpoint, self._config, where)
        self._reader = Reader()
        self._image, self._keep_image = image, keep_image

    def __call__(self, batch: dict[str, Any] | DataFrame | pa.Table) -> pa.Table:
        """A row for each row, in the same order. ConfigError for a batch without images, and for names that clash."""
        table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        column = self._image_column(table)
        kept = table if self._keep_image else table.drop_columns([column])
        _refuse_clashes(kept)
        refs = _refs(table, column)
        images = self._images(refs, _values(table, column))
        results = [_without_row(result) for result in self._label(images)]
        if "image_id" in table.column_names:
            results = _with_rows(results, table.column("image_id"))
        made = writer.to_table(results, bbox_style=self._config.output.bbox_style).select(COLUMNS)
        return pa.Table.from_arrays([*kept.columns, *made.columns], schema=pa.schema([*kept.schema, *made.schema]))

    def _images(self, refs: Sequence[ImageRef], values: Sequence[Any]) -> Iterator[Image | Failure]:
        """Pixels as they are; what has to be read and decoded, ahead of the model."""

        def read(ref: ImageRef) -> bytes | Failure:
            value = values[ref.row]
            return value if isinstance(value, bytes) else self._reader.read(ref)

        images = decoded([ref for ref in refs if isinstance(values[ref.row], bytes | str)], read, self._config)
        for ref in refs:
            value = values[ref.row]
            is_file = isinstance(value, bytes | str)
            yield next(images) if is_file else _from_pixels(ref, value, self._config.decode.max_pixels)

    def _image_column(self, table: pa.Table) -> str:
        wanted = IMAGE_COLUMNS if self._image is None else (self._image,)
        for name in wanted:
            if name in table.column_names:
                return name
        raise ConfigError(
            f"a batch has the columns {', '.join(table.column_names)} and no {' or '.join(wanted)}; "
            'say which one has the images, for example fn_constructor_kwargs={"image": "jpg"}'
        )


def _reserved() -> str:
    """What Ray reserved for this actor: `cuda` or `cpu`. Without Ray, `auto`.

    CUDA may show more than that: Ray hides no GPU from actors that reserve none.
    """
    if not ray.is_initialized():
        return "auto"
    return "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"


def _refuse_clashes(kept: pa.Table) -> None:
    clashing = [name for name in kept.column_names if name in COLUMNS]
    if clashing:
        raise ConfigError(
            f"a batch has columns that the masks need for themselves: {', '.join(clashing)}; rename them before "
            "(Dataset.rename_columns) or leave them out (Dataset.drop_columns)"
        )


def _refs(table: pa.Table, column: str) -> list[ImageRef]:
    """`row` counts in the batch; key and uri are the path, if there is one: its suffix helps to tell formats apart."""
    paths: list[str | None] = [None] * table.num_rows
    for name in (column, "path"):
        if name in table.column_names and _is_text(table.schema.field(name).type):
            paths = table.column(name).to_pylist()
            break
    texts = ["" if path is None else _as_uri(path) for path in paths]
    return [ImageRef(row, text, text) for row, text in enumerate(texts)]


def _as_uri(path: str) -> str:
    return to_text(path.encode() if is_remote(path) else local_path(path))


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _values(table: pa.Table, column: str) -> Sequence[Any]:
    """bytes, str, arrays or None."""
    if isinstance(table.schema.field(column).type, pa.ExtensionType):
        arrays = BlockAccessor.for_block(table.select([column])).to_numpy([column])
        assert isinstance(arrays, dict)
        return list(arrays[column])
    return table.column(column).to_pylist()


def _from_pixels(ref: ImageRef, value: Any, max_pixels: int) -> Image | Failure:
    if not isinstance(value, np.ndarray):
        return Failure(ref, Status.MISSING, "there is no image in this row")
    fits = (
        value.dtype == np.uint8
        and value.size
        and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4)))
    )
    if not fits:
        return Failure(
            ref, Status.UNSUPPORTED, f"pixels of shape {value.shape} and type {value.dtype}; wanted HxWx3 or HxW, uint8"
        )
    if value.shape[0] * value.shape[1] > max_pixels:
        return Failure(
            ref, Status.TOO_LARGE, f"{value.shape[1]} x {value.shape[0]} pixels, more than decode.max_pixels"
        )
    pixels_HWC = _rgb(value)
    return Image(ref, pixels_HWC, Size(*pixels_HWC.shape[:2]))


def _rgb(value: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """HxWx3 of its own memory, since what lies in Ray's cannot be written; without alpha."""
    colour = value[..., None] if value.ndim == 2 else value
    return np.array(np.broadcast_to(colour[..., :3], (*colour.shape[:2], 3)))


def _without_row(result: Result) -> Result:
    return replace(result, ref=replace(result.ref, row=0))


def _with_rows(results: Sequence[Result], image_ids: pa.ChunkedArray) -> list[Result]:
    if not pa.types.is_integer(image_ids.type) or image_ids.null_count:
        return list(results)
    return [replace(r, ref=replace(r.ref, row=row)) for r, row in zip(results, image_ids.to_pylist(), strict=True)]
