"""Results of a shard to an Arrow table, and the table to the bytes of one Parquet file, all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg import rle
from amg.shards import schema
from amg.values import Failure, MaskSet, Status

ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 20_000_000


def to_table(
    results: Sequence[MaskSet | Failure], bbox_style: str = "exact", *, images: Mapping[int, bytes] | None = None
) -> pa.Table:
    """One row per result, in the order given, in chunks of at most 100 rows.

    `images` adds the column `image` with the file of each `image_id` that it holds, so that `datasets` opens images
    and annotations together; it stays null for failures, whose bytes would stop a reader.
    `bbox_style` is `exact` (COCO's boxes) or `sa1b` (one short in width and height).
    """
    columns = schema.COLUMNS if images is None else schema.COLUMNS.append(schema.IMAGE)
    groups = [results[n : n + ROWS_PER_GROUP] for n in range(0, len(results), ROWS_PER_GROUP)]
    return pa.Table.from_batches([_batch(group, bbox_style, images, columns) for group in groups], columns)


def to_bytes(table: pa.Table, footer: Mapping[str, str]) -> bytes:
    """The Parquet file of a shard; the same table and footer give the same bytes. `footer` as in `encode`."""
    return encode(table.to_batches(), table.schema, footer)


def encode(batches: Iterable[pa.RecordBatch], columns: pa.Schema, footer: Mapping[str, str]) -> bytes:
    """The same of rows that come one after the other: beside the file, a row group of them is in memory.

    `footer` has keys of `schema.FOOTER_KEYS`; the schema version and the features for `datasets` are added here.
    """
    unknown = set(footer) - set(schema.FOOTER_KEYS)
    assert not unknown, f"footer keys that the format does not know: {sorted(unknown)}"
    metadata = {
        schema.HUGGINGFACE_KEY: schema.huggingface_features(columns),
        **footer,
        schema.VERSION_KEY: str(schema.SCHEMA_VERSION),
    }
    columns = columns.with_metadata(metadata)
    scalars = [each.name for each in columns if not pa.types.is_nested(each.type)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        columns,
        compression="zstd",
        compression_level=3,
        use_dictionary=["status"],  # pyright: ignore[reportArgumentType]  pyarrow's annotation knows only bool
        write_statistics=scalars,  # pyright: ignore[reportArgumentType]  the same
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for table in _groups(batches, columns):
            for group in _halves(table):
                writer.write_table(group, row_group_size=group.num_rows)
    return sink.getvalue().to_pybytes()


def _groups(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.Table]:
    """The rows in tables of 100, or less as soon as they have the bytes of a row group."""
    waiting: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, ROWS_PER_GROUP - rows)
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            rows, size_bytes = rows + part.num_rows, size_bytes + part.nbytes
            if rows == ROWS_PER_GROUP or size_bytes >= BYTES_PER_GROUP:
                yield _table(waiting, columns)
                waiting, rows, size_bytes = [], 0, 0
    if waiting:
        yield _table(waiting, columns)


def _table(parts: Sequence[pa.RecordBatch], columns: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([part.replace_schema_metadata(columns.metadata) for part in parts], columns)


def _halves(table: pa.Table) -> Iterator[pa.Table]:
    """The rows in pieces of at most 20 MB before compression; a single row may be larger."""
    if table.num_rows <= 1 or table.nbytes <= BYTES_PER_GROUP:
        yield table
    else:
        middle = table.num_rows // 2
        yield from _halves(table.slice(0, middle))
        yield from _halves(table.slice(middle))


def _batch(
    results: Sequence[MaskSet | Failure], bbox_style: str, images: Mapping[int, bytes] | None, columns: pa.Schema
) -> pa.RecordBatch:
    done = [result if isinstance(result, MaskSet) else None for result in results]
    refs = [result.ref for result in results]
    arrays: dict[str, Any] = {
        "image_id": [ref.row for ref in refs],
        "key": [ref.key for ref in refs],
        "uri": [ref.uri for ref in refs],
        "extra": [ref.extra for ref in refs],
        "width": [None if each is None else each.size.width for each in done],
        "height": [None if each is None else each.size.height for each in done],
        "orig_width": [None if each is None else each.original.width for each in done],
        "orig_height": [None if each is None else each.original.height for each in done],
        "exif_orientation": [None if each is None else each.orientation for each in done],
        "status": [str(result.status if isinstance(result, Failure) else Status.OK) for result in results],
        "error": [result.reason if isinstance(result, Failure) else None for result in results],
        "num_masks": [None if each is None else len(each) for each in done],
        "timings_ms": [None if each is None else _timings(each.seconds) for each in done],
        "funnel": [None if each is None else {n: getattr(each.funnel, n) for n in schema.FUNNEL} for each in done],
        "annotations": _annotations(done, bbox_style),
    }
    if images is not None:
        embedded = [None if each is None else images.get(each.ref.row) for each in done]
        pairs = zip(embedded, refs, strict=True)
        arrays["image"] = [None if data is None else {"bytes": data, "path": ref.key} for data, ref in pairs]
    filled = [
        arrays[each.name] if isinstance(arrays[each.name], pa.Array) else pa.array(arrays[each.name], each.type)
        for each in columns
    ]
    return pa.RecordBatch.from_arrays(filled, schema=columns)


def _timings(seconds: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by the four stages of the format; what is neither decoding, encoding nor prompting is `post`."""
    stage = {"decode": "decode", "resize": "encode", "encode": "encode", "prompt": "prompt"}
    timings: dict[str, float] = dict.fromkeys(schema.TIMINGS, 0.0)
    for name, spent in seconds.items():
        timings[stage.get(name, "post")] += 1000 * spent
        timings["total"] += 1000 * spent
    return timings


def _annotations(done: Sequence[MaskSet | None], bbox_style: str) -> pa.Array:
    """A list of annotations per row, null where `done` is; columns all the way, no object per mask."""
    sets = [each for each in done if each is not None]
    offsets = np.cumsum([0, *(0 if each is None else len(each) for each in done)], dtype=np.int32)
    fields = {
        "id": _flat([np.arange(len(s)) + (s.ref.row << schema.MASKS_PER_IMAGE_BITS) for s in sets], np.int64),
        "segmentation": _segmentations(sets),
        "bbox": _fixed(_flat([rle.xywh(s.box_K4, bbox_style=bbox_style) for s in sets], np.float32, 4)),
        "area": _flat([s.area_K for s in sets], np.int64),
        "predicted_iou": _flat([s.predicted_iou_K for s in sets], np.float32),
        "stability_score": _flat([s.stability_K for s in sets], np.float32),
        "crop_box": _fixed(_flat([_of_crops(s, [c.box.xywh for c in s.crops]) for s in sets], np.float32, 4)),
        "point_coords": _points(_flat([s.point_K2 for s in sets], np.float32, 2)),
        "layer": _flat([_of_crops(s, [c.layer for c in s.crops]) for s in sets], np.int8),
        "crop_index": _flat([_of_crops(s, [c.index for c in s.crops]) for s in sets], np.int32),
        "point_index": _flat([s.point_index_K for s in sets], np.int32),
        "mask_index": _flat([s.mask_index_K for s in sets], np.int8),
        "changed_by_cleanup": _flat([s.changed_K for s in sets], np.bool_),
    }
    arrays = [fields[each.name] for each in schema.ANNOTATION.fields]
    values = _struct([a if isinstance(a, pa.Array) else pa.array(a) for a in arrays], schema.ANNOTATION)
    null = pa.array([each is None for each in done], pa.bool_())
    type_ = schema.COLUMNS.field("annotations").type
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=type_, mask=null)


def _segmentations(sets: Sequence[MaskSet]) -> pa.Array:
    encoded = [rle.encode_all(s.runs_R, s.offsets_K1) for s in sets]
    characters = _flat([each for each, _ in encoded], np.uint8)
    lengths = _flat([np.diff(ends) for _, ends in encoded], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert offsets[-1] < 1 << 31, (
        f"{offsets[-1]} characters of run lengths in {ROWS_PER_GROUP} images, Arrow takes 2 GiB"
    )
    counts = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(characters))
    sizes = _flat([np.tile([s.size.height, s.size.width], (len(s), 1)) for s in sets], np.int32, 2)
    return _struct([_fixed(sizes), counts], schema.SEGMENTATION)


def _flat(parts: Sequence[NDArray[Any]], dtype: type, width: int | None = None) -> NDArray[Any]:
    """The parts of all images one after the other; of the right shape also when there is none."""
    empty = np.empty(0 if width is None else (0, width), dtype)
    return np.concatenate([empty, *parts]).astype(dtype)


def _of_crops(mask_set: MaskSet, values: Sequence[Any]) -> NDArray[Any]:
    """What is said of crops, for each mask."""
    return np.array(values)[mask_set.crop_K]


def _fixed(values_K: NDArray[Any]) -> pa.Array:
    flat = pa.array(values_K.ravel())
    element = pa.field("element", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, values_K.shape[1]))


def _points(points_K2: NDArray[np.float32]) -> pa.Array:
    """Each point as a list of one point, as the original package has it."""
    type_ = schema.ANNOTATION.field("point_coords").type
    return pa.ListArray.from_arrays(
        pa.array(np.arange(len(points_K2) + 1, dtype=np.int32)), _fixed(points_K2), type=type_
    )


def _struct(arrays: Sequence[pa.Array], type_: pa.StructType) -> pa.Array:
    return pa.StructArray.from_arrays(list(arrays), fields=list(type_.fields))
