"""The benchmark on a GPU does all that it does there with a tiny model on a CPU, and says what it was asked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from amg.sam.config import ARCHITECTURES
from tests import parity, reference_amg
from tests.bench import on_gpu, on_gpu_models, on_gpu_photos, on_gpu_rows, on_gpu_sides, on_gpu_tables, rounding
from tests.bench.agreement import record
from tests.bench.children import Measured
from tests.gpu import __main__ as on_machine
from tests.gpu import carry
from tests.sam_reference import mobile_pair


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(mobile_pair()[1].state_dict(), path)
    return path


def in_this_process(side: str, job: Mapping[str, Any], environment: Any = None, *, module: str) -> Measured:
    """What a child does and reports, without the seconds that its start takes."""
    assert module == "tests.bench.on_gpu_sides"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as children are run
        measured = on_gpu_sides.SIDES[side](json.loads(json.dumps(job)))
    return Measured(**json.loads(json.dumps(asdict(measured), default=reference_amg.plain)))


@pytest.fixture(scope="module")
def document(weights: Path) -> dict[str, Any]:
    """All rows but `sa1b`, which is `default` with more crops."""
    given = ["--tiny", "--weights", str(weights), "--images", "1", "--threads", "2", "--rows"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_gpu_rows, "run_side", in_this_process)
        written: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: written.append(str(text[0]) if text else ""))
        status = on_gpu.main([*given, "default,cold,idle,agreement"])
    assert status == 0, written
    return json.loads(written[-1])


def test_it_runs_from_end_to_end_on_a_cpu(document: dict[str, Any]) -> None:
    assert list(document) == ["default", "cold", "idle", "agreement"]
    assert all(row["passed"] and row["tiny"] and row["device"] == {"name": "cpu"} for row in document.values())
    (case,) = document["default"]["cases"]
    assert (case["model"], case["size"], list(case["ours"])) == ("tiny", "64x48", ["parity", "fast"])
    for found in case["ours"].values():
        assert found["times_reference"] == pytest.approx(found["images_per_second"] * case["reference"]["seconds"][0])
        assert found["share_of_limit"] == pytest.approx(found["images_per_second"] / found["limit_images_per_second"])
        assert set(found["part_ms"]) == {"encode", "prepare", "decode", "rest"}
        assert all(found["part_ms"][name] > 0 for name in ("encode", "prepare", "decode"))
    cold = document["cold"]["cases"]["tiny"]["full"]
    assert cold["loaded_seconds"] < cold["first_image_seconds"]
    idle = document["idle"]["cases"]["tiny"]
    assert idle["images"] == idle["profiled_images"] == 1 and not idle["failed"]
    assert idle["kernel_seconds"] > 0
    same = document["agreement"]["cases"]["parity"]
    assert (same["images"], same["same_count"], same["mean_iou"], same["f1"]) == (1, 1, 1.0, 1.0)


def test_three_libraries_find_the_same_masks_of_the_same_model(document: dict[str, Any]) -> None:
    """So the encoders' embeddings were put aside and MobileSAM's handed on, in all three."""
    (case,) = document["default"]["cases"]
    ours = case["ours"]["parity"]
    assert ours["agreement"]["f1"] == 1.0
    assert ours["masks"] == case["reference"]["masks"] > 0
    assert case["pipeline"]["masks"] > 0


def test_its_tables_can_be_made_of_it(document: dict[str, Any]) -> None:
    rows = {f"gpu {name}": row for name, row in document.items()}
    for case in rows["gpu default"]["cases"]:
        for side in (case["reference"], *case["ours"].values()):
            side["device_mb"] = 100.0
    rows["gpu idle"]["cases"]["tiny"]["device_mb"] = 100.0
    for name in ("default", "cold", "idle", "agreement"):
        text = on_gpu_tables.TABLES[f"gpu-{name}"](rows)
        assert text.startswith("| ")
        assert ("tiny" in text) == (name != "agreement")
        assert text.endswith("*")
    assert on_gpu_tables.TABLES["gpu-sa1b"](rows) == (
        "Not measured yet: `make bench-gpu ARGS='--save docs/gpu.json --rows sa1b'`."
    )


def test_without_a_gpu_it_says_so_and_fails(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert on_gpu.main(["--weights", str(weights)]) == 1
    assert "finds no CUDA device: nothing was measured" in capsys.readouterr().err
    assert on_machine.main(["test"]) == 1
    assert "finds no GPU here: the tests of tests/gpu were not run" in capsys.readouterr().err


def test_tiny_numbers_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        on_gpu.main(["--tiny", "--save", str(tmp_path / "gpu.json")])
    assert "its numbers say nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        on_gpu.main(["--rows", "speed"])
    assert "there is no row speed; rows: default, sa1b" in capsys.readouterr().err


def told(**changed: Any) -> on_gpu_rows.Told:
    given: dict[str, Any] = {
        "device": "cuda",
        "models": ["vit_h"],
        "precisions": ["fast"],
        "sizes": ["1200x1800"],
        "kernels": "torch",
        "weights": Path("unused.pt"),
        "settings": {},
        "crop_layers": 2,
        "images": 200,
        "longest": None,
        "repeats": 1,
        "threads": 2,
        "folder": Path("unused"),
    }
    return on_gpu_rows.Told(**(given | changed))


@pytest.mark.parametrize(
    ("times", "rate", "size", "missed"),
    [(31, 41, "1200x1800", 0), (29, 41, "1200x1800", 1), (29, 39, "1200x1800", 2), (1, 1, "640x480", 0)],
)
def test_a_bar_is_missed_where_it_stands(times: float, rate: float, size: str, missed: int) -> None:
    found = {"times_reference": times, "images_per_second": rate}
    assert len(on_gpu_rows.too_slow(told(), "default", "vit_h", "fast", size, found)) == missed
    assert on_gpu_rows.too_slow(told(device="cpu"), "default", "vit_h", "fast", size, found) == []


def test_the_limit_of_a_photo_is_that_of_its_products() -> None:
    """ViT-B at the defaults: 972 GFLOP for the encoder as it is defined, 1024 points of some 0.85."""
    rates = {"float32": 100.0, "bfloat16": 100.0, "float16": 100.0}
    once = on_gpu_rows.limit_seconds("vit_b", "parity", (1800, 1800), {}, rates)
    assert 100 * once == pytest.approx(0.972 + 1024 * 0.85e-3, rel=0.1)
    fast = on_gpu_rows.limit_seconds("vit_b", "fast", (1800, 1800), {}, rates | {"bfloat16": 200.0, "float16": 400.0})
    assert once / 4 < fast < once / 2


def masks(*sides: int) -> list[Any]:
    found = []
    for n, side in enumerate(sides):
        mask = np.zeros((40, 60), np.bool_)
        mask[2 : 2 + side, 20 * n : 20 * n + side] = True
        found.append(record(mask, 0.9) | {"crop_box": [0, 0, 60, 40], "point_coords": [[20 * n, 2]]})
    return found


def test_masks_that_are_not_the_cpus_miss_the_bar() -> None:
    same = on_gpu_rows.compared([masks(10, 10)] * 3, [masks(10, 10)] * 3)
    assert (same["same_count"], same["mean_iou"]) == (3, 1.0)
    assert on_gpu_rows.disagreements("parity", same) == on_gpu_rows.disagreements("fast", same) == []
    other = on_gpu_rows.compared([masks(10), masks(10), masks(9, 10)], [masks(10, 10)] * 3)
    assert other["same_count"] == 1
    assert other["mean_iou"] == pytest.approx((1 + 1 + 0.81 + 1) / 4)
    assert len(on_gpu_rows.disagreements("parity", other)) == 2
    assert len(on_gpu_rows.disagreements("fast", other)) == 1


def test_seconds_with_a_kernel_count_once() -> None:
    assert on_gpu_sides.covered([]) == 0
    assert on_gpu_sides.covered([(3, 4), (0, 1), (0.5, 2), (0.6, 0.7), (4, 5)]) == 4


def test_the_parts_of_a_photo_are_timed_and_then_left_alone() -> None:
    class Model:
        device = torch.device("cpu")

        def encode(self) -> str:
            return "encoded"

        prepare = decode = encode

    model = Model()
    with on_gpu_sides.timed(model) as taken:
        assert model.encode() == "encoded"
    assert taken["encode"] > 0 and taken["prepare"] == taken["decode"] == 0
    assert vars(model) == {}


@pytest.mark.parametrize("size", ["640x480", "1200x1800"])
def test_photos_have_the_sizes_that_are_said(size: str, tmp_path: Path) -> None:
    with Image.open(on_gpu_photos.photo_of(size, tmp_path)) as image:
        assert image.size == on_gpu_photos.SIZES[size]


def test_variants_are_the_same_ones_each_time(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folders.append(on_gpu_photos.variants(tmp_path / name, 12, longest=64))
    names = [[path.name for path in parity.photos_in(folder)] for folder in folders]
    assert names[0] == names[1] and len(names[0]) == 12
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names[0])


def test_a_random_encoder_has_the_decoder_of_mobilesam(weights: Path, tmp_path: Path) -> None:
    state = torch.load(on_gpu_models.write_weights("tiny", weights, tmp_path / "tiny.pth"), weights_only=True)
    given = torch.load(weights, weights_only=True)
    rest = {key for key in state if not key.startswith("image_encoder.")}
    assert rest and all(torch.equal(state[key], given[key]) for key in rest)
    assert on_gpu_models.write_weights("vit_t", weights, tmp_path / "none") == weights
    assert set(on_gpu_models.MODELS) == {*ARCHITECTURES, "tiny"}


# Fewer bits.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_is_rounded_as_it_is_made(dtype: torch.dtype) -> None:
    """As a model of that type does it that sums in float32: the same numbers where each product has one rounding."""
    generator = torch.Generator().manual_seed(4)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in [(5, 16), (8, 16)])
    layer = nn.LayerNorm(8)
    with torch.no_grad(), rounding.Rounding(dtype):
        hidden = nn.functional.linear(x.float(), weight.float())
        found = torch.softmax(layer(hidden), -1)
    assert hidden.dtype == found.dtype == torch.float32
    assert torch.equal(hidden, hidden.to(dtype).float()) and torch.equal(found, found.to(dtype).float())
    assert torch.equal(hidden, (x.float() @ weight.float().T).to(dtype).float())
    exact = torch.softmax(layer(x.float() @ weight.float().T), -1).detach()
    assert 0 < float((found - exact).abs().max()) < (1e-3 if dtype == torch.float16 else 1e-2)


def test_what_is_rounded_in_place_stays_where_it_lies() -> None:
    out = torch.zeros(4, 4)
    with rounding.Rounding(torch.bfloat16):
        torch.mul(torch.full((4,), 1 / 3), 1.0, out=out[1])
        out.view(16)[0] = 1 / 3
    third = float(torch.tensor(1 / 3).bfloat16())
    assert out[1].tolist() == [third] * 4 and float(out[0, 0]) == third


# What is carried to a machine without a network.


def test_every_wheel_that_is_carried_has_a_version() -> None:
    pinned = carry.pinned(carry.names())
    assert len(pinned) == len(set(carry.names())) >= 10
    assert "segment-anything==1.0" in pinned
    command = carry.download(pinned, Path("wheels"))
    assert command[:3] == ["-m", "pip", "download"] and "--no-deps" in command
    assert command[-len(pinned) :] == pinned


def test_a_wheel_is_installed_where_its_version_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(on_machine.subprocess, "run", lambda command, **_: ran.append(command))
    (tmp_path / "wheels").mkdir()
    here = f"numpy-{np.__version__}-cp312-cp312-linux_x86_64.whl"
    (tmp_path / "wheels" / here).touch()
    assert on_machine.prepared(tmp_path) == {}
    (tmp_path / "wheels" / "numpy-0.1-py3-none-any.whl").touch()
    (tmp_path / carry.WEIGHTS).touch()
    monkeypatch.setenv("PYTHONPATH", "mine")
    assert on_machine.prepared(tmp_path) == {"SAM_AMG_CACHE": str(tmp_path), "PYTHONPATH": f"{tmp_path / 'site'}:mine"}
    assert ran[0][-1].endswith("numpy-0.1-py3-none-any.whl") and here not in " ".join(ran[0])


def test_what_is_carried_is_measured_with_links_as_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path)
    link = (tmp_path / "link").lstat().st_size
    assert carry.total_bytes([tmp_path / "file", tmp_path / "link"]) == 5 + link
