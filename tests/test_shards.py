"""Results to Parquet and back: here, in pycocotools, DuckDB, pandas and datasets."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pandas
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from amg import rle
from amg.errors import ConfigError, FormatError, StorageError
from amg.geometry import Box, Crop, Size, plan_crops
from amg.shards import reader, schema, writer
from amg.values import Failure, Funnel, ImageRef, MaskSet, Status

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FOOTER = {"sam_amg.plan": "abc123", "sam_amg.shard": "0", "sam_amg.config": json.dumps({"a": "ä"})}
SIZE = Size(30, 40)


def random_masks(rng: np.random.Generator, k: int) -> np.ndarray:
    """K blobs, an empty and a full mask among them when there is room."""
    y, x = np.mgrid[: SIZE.height, : SIZE.width]
    masks = np.stack([np.hypot(y - rng.integers(30), x - rng.integers(40)) < rng.integers(1, 25) for _ in range(k)])
    if k > 2:
        masks[0], masks[1] = False, True
    return masks


def mask_set(row: int, k: int, *, orientation: int = 1) -> MaskSet:
    rng = np.random.default_rng(row)
    masks = random_masks(rng, k) if k else np.zeros((0, SIZE.height, SIZE.width), bool)
    runs = [rle.from_mask(mask) for mask in masks]
    crops = tuple(plan_crops(SIZE, n_layers=1, overlap_ratio=0.3))
    return MaskSet(
        ref=ImageRef(row, f"photos/{row}.jpg", f"/photos/{row}.jpg"),
        size=SIZE,
        original=SIZE if orientation < 5 else Size(SIZE.width, SIZE.height),
        orientation=orientation,
        crops=crops,
        runs_R=np.concatenate([np.empty(0, np.uint32), *runs]),
        offsets_K1=np.cumsum([0, *map(len, runs)]).astype(np.int64),
        box_K4=np.array([rle.box(each, SIZE.height) for each in runs], np.int32).reshape(k, 4),
        area_K=masks.sum((1, 2)).astype(np.int64),
        predicted_iou_K=rng.random(k, np.float32),
        stability_K=rng.random(k, np.float32),
        point_K2=rng.integers(0, 300, (k, 2)) / 8,
        crop_K=rng.integers(0, len(crops), k).astype(np.int32),
        point_index_K=rng.integers(0, 1024, k).astype(np.int32),
        mask_index_K=rng.integers(0, 3, k).astype(np.int8),
        changed_K=rng.random(k) < 0.3,
        funnel=Funnel(candidates=3 * k, dropped_stability=2 * k, kept=k),
        seconds={"decode": 0.001, "resize": 0.002, "encode": 0.1, "prompt": 0.2, "nms": 0.003, "draw": 0.004},
    )


def failed(row: int) -> Failure:
    return Failure(ImageRef(row, f"{row}.png", f"/{row}.png"), Status.DECODE_ERROR, "the image is cut off")


def labelled(item: MaskSet, label: str) -> MaskSet:
    return replace(item, ref=replace(item.ref, extra=json.dumps({"label": label})))


def results(n: int = 7) -> list[MaskSet | Failure]:
    """A failure, images without masks, and images with up to ten."""
    return [failed(row) if row % 5 == 1 else mask_set(row, (row * 3) % 11) for row in range(n)]


def shard_of(items: list[MaskSet | Failure], **options: object) -> bytes:
    return writer.to_bytes(writer.to_table(items, **options), FOOTER)  # type: ignore[arg-type]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder of three shards with 20 images."""
    items = results(20)
    (tmp_path / "out" / "data").mkdir(parents=True)
    for n, rows in enumerate((items[:7], items[7:8], items[8:])):
        (tmp_path / "out" / "data" / f"part-{n:06}.parquet").write_bytes(shard_of(rows))
    return tmp_path / "out"


def test_a_table_has_the_schema_of_the_format_and_is_valid():
    table = writer.to_table(results())
    table.validate(full=True)
    assert table.schema.equals(schema.COLUMNS)
    empty = writer.to_table([])
    assert empty.schema.equals(schema.COLUMNS)
    assert empty.num_rows == 0
    only_failures = writer.to_table([failed(0), failed(1)])
    only_failures.validate(full=True)
    assert only_failures["annotations"].null_count == 2


def test_rows_say_what_the_results_say():
    items = results()
    rows = writer.to_table(items).to_pylist()
    for item, row in zip(items, rows, strict=True):
        assert (row["image_id"], row["key"], row["uri"]) == (item.ref.row, item.ref.key, item.ref.uri)
        if isinstance(item, Failure):
            assert (row["status"], row["error"]) == ("decode_error", "the image is cut off")
            absent = set(row) - {"image_id", "key", "uri", "status", "error"}
            assert {row[name] for name in absent} == {None}
            continue
        assert (row["status"], row["error"], row["num_masks"]) == ("ok", None, len(item))
        assert (row["height"], row["width"], row["exif_orientation"]) == (30, 40, 1)
        assert row["funnel"] == {each.name: getattr(item.funnel, each.name) for each in fields(Funnel)}
        assert len(row["annotations"]) == len(item)


def test_annotations_are_the_records_of_the_mask_set():
    item = mask_set(7, 9)
    (row,) = writer.to_table([item]).to_pylist()
    for k, (mine, record) in enumerate(zip(row["annotations"], item.to_dicts(bbox_style="exact"), strict=True)):
        assert {name: mine[name] for name in record} == record
        assert mine["id"] == 7 << 20 | k
        crop = item.crops[item.crop_K[k]]
        assert (mine["layer"], mine["crop_index"]) == (crop.layer, crop.index)
        assert mine["point_index"] == item.point_index_K[k]
        assert mine["mask_index"] == item.mask_index_K[k]
        assert mine["changed_by_cleanup"] is bool(item.changed_K[k])
        x, y, width, height = coco.toBbox(mine["segmentation"]).tolist()
        assert mine["bbox"] == [x, y, width, height]


def test_sa1b_boxes_are_one_short():
    item = mask_set(7, 9)
    (row,) = writer.to_table([item], bbox_style="sa1b").to_pylist()
    assert [each["bbox"] for each in row["annotations"]] == [each["bbox"] for each in item.to_dicts()]
    with pytest.raises(ConfigError, match="bbox_style is 'short'"):
        writer.to_table([item], bbox_style="short")


def test_sizes_before_exif_are_kept():
    (row,) = writer.to_table([mask_set(0, 1, orientation=6)]).to_pylist()
    assert (row["width"], row["height"], row["orig_width"], row["orig_height"]) == (40, 30, 30, 40)
    assert row["exif_orientation"] == 6


def test_stages_become_the_timings_of_the_format():
    (row,) = writer.to_table([mask_set(0, 1)]).to_pylist()
    assert row["timings_ms"] == pytest.approx({"decode": 1, "encode": 102, "prompt": 200, "post": 7, "total": 310})


def test_the_same_rows_give_the_same_bytes():
    assert shard_of(results()) == shard_of(results())
    later = writer.to_bytes(writer.to_table(results()), FOOTER | {"sam_amg.created": "2026-01-01T00:00:00+00:00"})
    assert later != shard_of(results())
    assert pq.read_table(io.BytesIO(later)).equals(pq.read_table(io.BytesIO(shard_of(results()))))


def test_files_are_as_the_format_says():
    file = pq.ParquetFile(io.BytesIO(shard_of([mask_set(row, 1) for row in range(250)])))
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 100, 50]
    columns = {groups[1].column(n).path_in_schema: groups[1].column(n) for n in range(groups[1].num_columns)}
    assert columns["image_id"].statistics.min == 100
    assert columns["image_id"].statistics.max == 199
    assert columns["annotations.list.element.segmentation.counts"].statistics is None
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert [name for name, column in columns.items() if column.has_dictionary_page] == ["status"]
    assert columns["image_id"].has_offset_index
    assert columns["image_id"].has_column_index


def test_row_groups_stay_small_and_no_row_is_lost():
    item = mask_set(0, 1)
    heavy = {row: bytes([row]) * 6_000_000 for row in range(9)}
    file = pq.ParquetFile(
        io.BytesIO(shard_of([replace(item, ref=ImageRef(r, str(r), "")) for r in heavy], images=heavy))
    )
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert max(sizes) <= 3
    assert sum(sizes) == 9
    assert file.read(columns=["image_id"])["image_id"].to_pylist() == list(heavy)


def test_footer_has_the_callers_keys_and_ours(out):
    found = reader.footer(out / "data" / "part-000001.parquet")
    assert found == FOOTER | {"sam_amg.schema_version": "1"}
    with pytest.raises(AssertionError, match=r"sam_amg.plans"):
        writer.to_bytes(writer.to_table([]), {"sam_amg.plans": ""})


def test_shards_read_back_in_plan_order_and_equal_what_was_written(out):
    rows = list(reader.read_shards(out))
    assert rows == writer.to_table(results(20)).to_pylist()
    assert [row["image_id"] for row in rows] == list(range(20))
    assert list(reader.read_shards(out / "data")) == rows
    assert list(reader.read_shards(str(out / "data" / "part-000001.parquet"))) == rows[7:8]
    assert reader.read_table(out).to_pylist() == rows


def test_masks_decode_in_pycocotools_as_they_are_read(out):
    seen = 0
    for row in reader.read_shards(out):
        if not row["num_masks"]:
            continue
        masks = coco.decode([annotation["segmentation"] for annotation in row["annotations"]])
        expected = random_masks(np.random.default_rng(row["image_id"]), row["num_masks"])
        assert np.array_equal(masks.transpose(2, 0, 1), expected)
        seen += row["num_masks"]
    assert seen > 50


def test_only_the_columns_asked_for_are_read(out):
    assert next(reader.read_shards(out, columns=["key", "num_masks"])) == {"key": "photos/0.jpg", "num_masks": 0}
    areas = reader.read_table(out, columns=["annotations.list.element.area"])
    assert areas.nbytes < 5000
    assert areas.column_names == ["annotations"]
    for unknown in ("masks", "annotations.list.element.size"):
        with pytest.raises(FormatError, match=f"has no column {unknown}; it has image_id, key"):
            list(reader.read_shards(out, columns=["key", unknown]))


def test_reading_is_streamed(out):
    (out / "data" / "part-000002.parquet").write_bytes(b"broken")
    rows = reader.read_shards(out)
    assert [next(rows)["image_id"] for _ in range(8)] == list(range(8))
    with pytest.raises(FormatError, match=r"part-000002.parquet is not a whole Parquet file"):
        next(rows)


def test_truncated_shards_are_refused_by_name_with_what_to_do(out):
    path = out / "data" / "part-000002.parquet"
    data = path.read_bytes()
    for sixteenth in range(16):
        path.write_bytes(data[: len(data) * sixteenth // 16])
        with pytest.raises(FormatError, match=r"part-000002\.parquet is not a whole Parquet file.*remove it and run"):
            list(reader.read_shards(path))


def test_a_flipped_byte_in_a_page_is_noticed(tmp_path):
    noise = np.random.default_rng(0).bytes(5000)  # zstd stores it as it is and would not notice
    data = bytearray(shard_of([mask_set(0, 1)], images={0: noise}))
    data[data.index(noise) + 2500] ^= 1
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(FormatError, match=r"x.parquet is not a whole Parquet file.*CRC"):
        list(reader.read_shards(tmp_path / "x.parquet"))


def test_foreign_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(FormatError, match=r"a Parquet file of another program: it lacks the footer key sam_amg.schema"):
        list(reader.read_shards(path))
    table = writer.to_table(results())
    pq.write_table(table.replace_schema_metadata({schema.VERSION_KEY: "2"}), path)
    with pytest.raises(FormatError, match="has schema version 2, this program reads version 1; use"):
        reader.footer(path)
    pq.write_table(table.drop_columns(["status"]).replace_schema_metadata({schema.VERSION_KEY: "1"}), path)
    with pytest.raises(FormatError, match="lacks the columns status of schema version 1"):
        reader.read_table(path)


def test_a_folder_without_shards_says_what_was_wanted(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StorageError, match=r"no shards in .*give the folder that `sam-amg run --out` wrote to"):
            list(reader.read_shards(folder))


def test_files_under_way_are_not_read(out):
    (out / "_tmp").mkdir()
    (out / "_tmp" / "abc.inprogress").write_bytes(b"half")
    (out / "_plan").mkdir()
    pq.write_table(pa.table({"a": [1]}), out / "_plan" / "manifest-00000.parquet")
    assert len(list(reader.read_shards(out))) == 20


def test_duckdb_reads_masks_and_counts(out):
    pattern = f"{out}/data/*.parquet"
    assert duckdb.sql(f"SELECT status, count(*) FROM '{pattern}' GROUP BY 1 ORDER BY 1").fetchall() == [
        ("decode_error", 4),
        ("ok", 16),
    ]
    rows = duckdb.sql(
        f"SELECT m.id, m.segmentation, m.area FROM (SELECT unnest(annotations) m FROM '{pattern}')"
    ).fetchall()
    expected = [a for row in reader.read_shards(out) for a in row["annotations"] or []]
    assert [each[0] for each in rows] == [a["id"] for a in expected]
    assert len(rows) > 50
    for _, segmentation, area in rows:
        assert coco.decode({"size": list(segmentation["size"]), "counts": segmentation["counts"]}).sum() == area


def test_duckdb_reads_what_a_manifest_said(with_images):
    pattern = f"{with_images[0]}/data/*.parquet"
    found = duckdb.sql(f"SELECT extra->>'$.label' AS label, num_masks FROM '{pattern}' ORDER BY image_id").fetchall()
    assert found == [("dog", 4), ("cat", 5), (None, None)]


def test_pandas_reads_masks(out):
    frame = pandas.read_parquet(out / "data")
    assert len(frame) == 20
    assert frame["image_id"].tolist() == list(range(20))
    masks = frame.explode("annotations").dropna(subset="annotations")
    assert len(masks) == frame["num_masks"].sum() > 50
    for annotation in masks["annotations"]:
        assert coco.area(annotation["segmentation"]) == annotation["area"]


@pytest.fixture
def with_images(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """An output folder with embedded images: two labelled ones, the second lying on its side, and a broken one."""
    pictures = [np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8) for n in range(2)]
    files = {}
    for n, (pixels, orientation) in enumerate(zip(pictures, (1, 6), strict=True)):
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        stored = pixels if orientation == 1 else np.rot90(pixels)
        PIL.Image.fromarray(np.ascontiguousarray(stored)).save(file, "PNG", exif=exif)
        files[n] = file.getvalue()
    files[2] = b"broken"
    items = [labelled(mask_set(0, 4), "dog"), labelled(mask_set(1, 5, orientation=6), "cat"), failed(2)]
    (tmp_path / "annotations" / "data").mkdir(parents=True)
    (tmp_path / "annotations" / "data" / "part-000000.parquet").write_bytes(shard_of(items, images=files))
    return tmp_path / "annotations", pictures


def load_with_datasets(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(
        "parquet", data_files=f"{out}/data/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )


def test_datasets_opens_images_and_annotations(with_images, tmp_path, monkeypatch):
    out, pictures = with_images
    rows = list(load_with_datasets(out, tmp_path, monkeypatch))
    for row, picture in zip(rows[:2], pictures, strict=True):
        assert isinstance(row["image"], PIL.Image.Image)
        assert np.array_equal(np.asarray(row["image"]), picture)
        masks = [coco.decode(annotation["segmentation"]) for annotation in row["annotations"]]
        assert {mask.shape for mask in masks} == {picture.shape[:2]}
        assert [int(mask.sum()) for mask in masks] == [annotation["area"] for annotation in row["annotations"]]
    assert rows[2]["image"] is None
    assert rows[2]["annotations"] is None
    assert rows[2]["status"] == "decode_error"


def test_datasets_shows_the_same_rows_as_we_do(out, tmp_path, monkeypatch):
    assert list(load_with_datasets(out, tmp_path, monkeypatch)) == list(reader.read_shards(out))


def test_embedded_images_are_the_files(with_images):
    rows = list(reader.read_shards(with_images[0]))
    assert rows[0]["image"]["bytes"].startswith(b"\x89PNG")
    assert rows[0]["image"]["path"] == "photos/0.jpg"
    assert rows[2]["image"] is None


def examples() -> list[str]:
    text = Path(__file__).parent.parent.joinpath("docs", "format.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def areas(rows):
    return [[annotation["area"] for annotation in row["annotations"] or []] for row in rows]


FOUND_BY_EXAMPLES = {
    "import amg": lambda found, rows: found["row"] == rows[-1],
    "import pandas": lambda found, rows: [int(n) for n in found["areas"]] == [*chain(*areas(rows))],
    "from amg.shards.reader import read_table": lambda found, rows: areas(found["areas"].to_pylist()) == areas(rows),
    "import datasets": lambda found, rows: [int(mask.sum()) for mask in found["masks"]] == areas(rows)[0],
}
"""What an example of the format page has in hand when it ends is right, by its first line."""


@pytest.mark.parametrize("example", examples(), ids=lambda text: text.split("\n")[0])
def test_the_examples_of_the_format_page_find_what_is_there(example, with_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found, sql, answers = {}, duckdb.sql, []
    monkeypatch.setattr(duckdb, "sql", lambda query: answers.append(sql(query).fetchall()))  # else only on print
    exec(compile(example, "docs/format.md", "exec"), found)
    first = example.split("\n")[0]
    if first == "import duckdb":
        assert answers
        assert all(answers)
    else:
        assert FOUND_BY_EXAMPLES[first](found, list(reader.read_shards(with_images[0])))


def test_the_format_page_names_every_column_and_key():
    text = Path(__file__).parent.parent.joinpath("docs", "format.md").read_text()
    names = [*schema.COLUMNS.names, "image", *schema.FUNNEL, *schema.TIMINGS]
    names += [each.name for each in schema.ANNOTATION.fields] + [*schema.FOOTER_KEYS, schema.HUGGINGFACE_KEY]
    assert [name for name in names if not re.search(rf"[`\s]{re.escape(name)}[`\s]", text)] == []
    assert f"version {schema.SCHEMA_VERSION}\n" in text.splitlines(keepends=True)[0]
    assert len(examples()) == 5


def test_reading_and_listing_need_no_torch():
    rooms = "rle storage decode sources.inputs shards.reader shards.writer values errors"
    code = "import sys\n" + "".join(f"import amg.{room}\n" for room in rooms.split())
    code += "print([name for name in ('torch', 'ray') if name in sys.modules])\n"
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n"


def test_crops_in_rows_are_those_of_the_geometry():
    item = replace(
        mask_set(3, 6), crops=(Crop(Box(0, 0, 40, 30), 0, 0), *(Crop(Box(5, 6, 25, 20), 1, n) for n in range(1, 5)))
    )
    (row,) = writer.to_table([item]).to_pylist()
    boxes = [annotation["crop_box"] for annotation in row["annotations"]]
    assert boxes == [[0, 0, 40, 30] if crop == 0 else [5, 6, 20, 14] for crop in item.crop_K]
