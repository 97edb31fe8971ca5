"""`amg.run.ray_data`: batches of any kind without Ray, and what docs/ray-data.md shows on a local Ray."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from amg import rle
from amg.config import Config, load_config
from amg.errors import ConfigError, WeightsError
from amg.run import ray_data
from amg.run.local import run_local
from amg.run.progress import Silent
from amg.run.ray_data import COLUMNS, MaskGenerator
from amg.shards import schema
from amg.storage.url import open_store
from amg.values import Failure, Image, MaskSet
from tests.local_ray import local_ray
from tests.outputs import mask_set

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ray-data.md").read_text(), re.DOTALL)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data"),  # Ray Data reads deprecated settings of its own
]


def label(images: Iterable[Image | Failure]) -> Iterator[MaskSet | Failure]:
    """One mask: the pixels that are red."""
    for image in images:
        if isinstance(image, Failure):
            yield image
            continue
        runs = rle.from_mask(image.pixels_HWC[..., 0] > 127)
        shape = mask_set(replace(image.ref, row=1), 1)
        yield replace(
            shape,
            ref=image.ref,
            size=image.size,
            original=image.original,
            orientation=image.orientation,
            runs_R=runs,
            offsets_K1=np.array([0, len(runs)]),
            area_K=np.array([rle.area(runs)]),
        )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """What the model was opened with; `label` stands in for it."""
    calls: list[tuple[Config, str]] = []

    def open_label(checkpoint: Path, config: Config, device: str) -> Callable[..., Iterator[MaskSet | Failure]]:
        calls.append((config, device))
        return label

    monkeypatch.setattr(ray_data, "open_label", open_label)
    monkeypatch.setattr(ray_data.checkpoints, "checked_file", lambda name: (Path(name), "0" * 64))
    return calls


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """The left half is red."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    return pixels


def png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    PIL.Image.fromarray(pixels).save(sink, "png")
    return sink.getvalue()


def objects(*values: object) -> NDArray[Any]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def rows(table: pa.Table) -> list[dict[str, Any]]:
    return table.drop_columns(["timings_ms"]).to_pylist()


PICTURES = [picture(8, 12), picture(10, 6)]


@pytest.mark.parametrize("kind", ["numpy", "pandas", "pyarrow"])
@pytest.mark.parametrize("column", ["bytes", "image", "path"])
def test_batches_of_any_kind_with_files_pixels_or_paths(
    kind: str, column: str, opened: list[Any], tmp_path: Path
) -> None:
    from ray.data.block import BlockAccessor

    files = [tmp_path / f"{n}.png" for n in range(2)]
    for file, pixels in zip(files, PICTURES, strict=True):
        file.write_bytes(png(pixels))
    values = {"bytes": [png(p) for p in PICTURES], "image": PICTURES, "path": [str(f) for f in files]}[column]
    batch: Any = {"id": np.array([7, 9]), column: objects(*values)}
    if kind != "numpy":
        batch = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_batch_format(kind)
    table = MaskGenerator()(batch)
    assert table.column_names == ["id", *COLUMNS]
    assert [(row["id"], row["width"], row["height"], row["num_masks"]) for row in rows(table)] == [
        (7, 12, 8, 1),
        (9, 6, 10, 1),
    ]
    for row in rows(table):
        (mask,) = row["annotations"]
        assert (mask["id"], mask["area"]) == (0, row["width"] * row["height"] // 2)
        assert mask["segmentation"]["size"] == [row["height"], row["width"]]
    for name in COLUMNS:
        assert table.schema.field(name) == schema.COLUMNS.field(name)


def test_a_bad_image_is_a_row_and_never_an_exception(opened: list[Any], tmp_path: Path) -> None:
    whole = png(picture(8, 12))
    table = MaskGenerator(settings={"decode.max_pixels": 200})(
        {"bytes": objects(whole, whole[:40], b"", None, b"GIF?", png(picture(20, 20)), whole)}
    )
    assert [row["status"] for row in rows(table)] == [
        *("ok", "decode_error", "decode_error", "missing", "decode_error", "too_large", "ok")
    ]
    assert all((row["error"] is None) == (row["status"] == "ok") for row in rows(table))
    assert [row["annotations"] is None for row in rows(table)] == [row["status"] != "ok" for row in rows(table)]
    gone = MaskGenerator()({"path": np.array([str(tmp_path / "gone.png"), str(tmp_path)])})
    assert [row["status"] for row in rows(gone)] == ["missing", "missing"]


@pytest.mark.parametrize(
    ("pixels", "status"),
    [
        (picture(4, 6)[..., 0], "ok"),
        (picture(4, 6)[..., :1], "ok"),
        (np.dstack([picture(4, 6), np.zeros((4, 6), np.uint8)]), "ok"),
        (picture(4, 6).astype(np.float32), "unsupported"),
        (np.zeros((4, 6, 2), np.uint8), "unsupported"),
        (np.zeros((2, 4, 6, 3), np.uint8), "unsupported"),
        (picture(40, 60), "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.shape} {value.dtype}",
)
def test_pixels_of_several_shapes(pixels: NDArray[Any], status: str, opened: list[Any]) -> None:
    (row,) = rows(MaskGenerator(settings={"decode.max_pixels": 200})({"image": pixels[None]}))
    assert row["status"] == status
    assert status != "ok" or row["annotations"][0]["area"] == 12


def test_other_columns_stay_and_the_images_on_demand(opened: list[Any]) -> None:
    batch = {"jpg": objects(png(PICTURES[0])), "caption": np.array(["half red"]), "image_id": np.array([5])}
    (row,) = rows(MaskGenerator(image="jpg")(batch))
    assert "jpg" not in row and row["caption"] == "half red"
    assert row["annotations"][0]["id"] == 5 << schema.MASKS_PER_IMAGE_BITS
    (row,) = rows(MaskGenerator(image="jpg", keep_image=True)(batch))
    assert row["jpg"] == png(PICTURES[0])
    assert MaskGenerator()({"bytes": objects()}).num_rows == 0


def test_a_batch_that_cannot_be_taken_is_refused(opened: list[Any]) -> None:
    files = objects(png(PICTURES[0]))
    with pytest.raises(ConfigError, match=r"the columns jpg, caption and no bytes or image or path; say which one"):
        MaskGenerator()({"jpg": files, "caption": np.array(["half red"])})
    with pytest.raises(ConfigError, match="need for themselves: width, status; rename them"):
        MaskGenerator()({"bytes": files, "width": np.array([12]), "status": np.array(["success"])})


def test_settings_reach_the_model(opened: list[tuple[Config, str]], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("generate: {points_per_side: 4}\nrun: {threads: 3}\n")
    MaskGenerator(
        weights="sam-vit-b", preset="sa1b", config=tmp_path / "mine.yaml", settings={"generate.crop_n_layers": 1}
    )
    ((config, device),) = opened
    assert device == "cpu"
    assert config.model.weights == "sam-vit-b"
    assert (config.generate.points_per_side, config.generate.crop_n_layers) == (4, 1)
    assert (config.generate.points_per_batch, config.run.threads) == (16, 3)
    with pytest.raises(ConfigError, match="did you mean"):
        MaskGenerator(settings={"generate.point_per_side": 4})


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises((ConfigError, WeightsError), match="neither a file nor a checkpoint"):
        MaskGenerator(weights="no-such-weights")


def test_addresses_are_read_from_their_store(opened: list[Any], object_store: Any) -> None:
    open_store(f"{object_store.url}/photos").create_if_absent("a.png", png(PICTURES[0]))
    table = MaskGenerator()({"path": np.array([f"{object_store.url}/photos/{name}.png" for name in "ab"])})
    assert [row["status"] for row in rows(table)] == ["ok", "missing"]
    assert rows(table)[0]["width"] == 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two small photos and a damaged one in `photos/`, labeled into `labels/` as the command does it; and a Ray."""
    here = tmp_path_factory.mktemp("pipeline")
    (here / "photos").mkdir()
    for name in ("coffee", "rocket"):
        with PIL.Image.open(ROOT / "tests" / "photos" / f"{name}.jpg") as photo:
            photo.resize((96, 64)).save(here / "photos" / f"{name}.png")
    (here / "photos" / "damaged.png").write_bytes(png(picture(64, 96))[:70])
    config = load_config(overrides={"generate.points_per_side": 8, "run.threads": 1, "run.device": "cpu"})
    threads = torch.get_num_threads()
    run_local([str(here / "photos")], str(here / "labels"), config, observer=Silent())
    torch.set_num_threads(threads)
    with local_ray(tmp_path_factory.mktemp("ray")):
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        yield here


def test_the_pipeline_in_the_docs_writes_what_the_command_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(BLOCKS[0], {})
    ours = {Path(row["path"]).name: row for row in pq.read_table("labeled").to_pylist()}
    commands = {row["key"]: row for row in pq.read_table("labels/data").to_pylist()}
    assert ours.keys() == commands.keys()
    assert {name: row["status"] for name, row in ours.items()} == {
        "coffee.png": "ok",
        "damaged.png": "decode_error",
        "rocket.png": "ok",
    }
    for name, row in ours.items():
        for column in set(COLUMNS) - {"timings_ms", "annotations"}:
            assert row[column] == commands[name][column], (name, column)
        for mine, theirs in zip(row["annotations"] or [], commands[name]["annotations"] or [], strict=True):
            assert mine == theirs | {"id": mine["id"]}
            assert mine["id"] == theirs["id"] & ((1 << schema.MASKS_PER_IMAGE_BITS) - 1)
    assert ours["coffee.png"]["num_masks"] > 3


def test_what_the_command_wrote_is_read_as_the_docs_show(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools.decode sets an array's shape
        exec(BLOCKS[1], names)
    assert [(row["key"], row["status"]) for row in names["failed"]] == [("damaged.png", "decode_error")]
    assert names["pixels"].shape == (64, 96) and names["pixels"].sum() == names["largest"]["area"] > 0
