"""docs/sam.md, run as it stands: every block of Python and every command, in the page's order.

The hub's cache holds a SAM of random weights under the published names; real weights would give the same shapes.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

import amg
from amg import SamConfig, SamModel, SamProcessor, SamVisionConfig
from amg.cli.main import main
from tests.sam_reference import draw_weights

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "sam.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
SAMS = ("facebook/sam-vit-base",)
NOT_HERE = {"sam-vit-b", "sam-vit-b-folder"}  # of weights that only a network gives; see test_sam_convert.py
MOBILE_SAM = "sam-amg predict photo.jpg --point 300,200 --out cup"  # with the weights that are the default


@dataclass(slots=True)
class Ran:
    """The page after it ran: what became of each block, and all names at the end of each block of Python."""

    folder: Path
    faults: dict[int, str]
    names: dict[int, Mapping[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    here = tmp_path_factory.mktemp("sam-docs")
    shutil.copy(ROOT / "tests" / "photos" / "coffee.jpg", here / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        small_sam(here / "hub")
        yield run_page(here, patch)


def small_sam(cache: Path) -> None:
    """A ViT of two layers at full resolution, in the layout of the hub's cache, under the names of the page."""
    vision = SamVisionConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, global_attn_indexes=())
    model = SamModel(SamConfig(vision_config=vision)).eval()
    draw_weights(model, seed=5)
    for name in SAMS:
        place = cache / f"models--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / ("0" * 40)
        model.save_pretrained(snapshot)
        SamProcessor().save_pretrained(snapshot)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)


def run_page(here: Path, patch: pytest.MonkeyPatch) -> Ran:
    ran = Ran(here, {}, {})
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for number, (language, text) in enumerate(BLOCKS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                run_python(text, names) if language == "python" else run_commands(text, patch)
        except Exception:
            ran.faults[number] = traceback.format_exc()
        ran.names[number] = dict(names)
    return ran


def run_python(text: str, names: dict[str, Any]) -> None:
    exec(compile(text, str(PAGE), "exec"), names)


def run_commands(text: str, patch: pytest.MonkeyPatch) -> None:
    """Every `sam-amg` line but those whose weights are not here; `pip` is not run."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["sam-amg"] and not set(words) & NOT_HERE:
            words += ["--weights", SAMS[0]] if line == MOBILE_SAM else []
            patch.setattr(sys, "argv", words)
            assert main() == 0, line


def at(sentence: str) -> int:
    """The number of the block that holds these words."""
    (number,) = [n for n, (_, text) in enumerate(BLOCKS) if sentence in text]
    return number


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: f"{n}-{BLOCKS[n][1].splitlines()[0][:40]}")
def test_every_example_runs(ran: Ran, number: int) -> None:
    assert number not in ran.faults, ran.faults[number]


def test_the_page_has_examples_of_everything() -> None:
    kinds = [language for language, _ in BLOCKS]
    assert kinds.count("python") >= 9
    assert kinds.count("") >= 3


def test_the_quick_start_gives_three_masks_of_the_pictures_size(ran: Ran) -> None:
    names = ran.names[at("from amg import SamModel, SamProcessor")]
    assert names["masks"][0].shape == (1, 3, 400, 600)
    assert names["masks"][0].dtype == torch.bool
    assert names["scores"].shape == (1, 1, 3)


def test_a_mask_is_a_prompt(ran: Ran) -> None:
    names = ran.names[at("refined = model")]
    assert names["refined"].pred_masks.shape == (1, 1, 1, 256, 256)


def test_embeddings_used_again_give_the_same_masks(ran: Ran) -> None:
    names = ran.names[at("model.get_image_embeddings(")]
    inputs = names["processor"](names["image"], input_points=[[[365, 280]]], return_tensors="pt")
    with torch.no_grad():
        whole = SamModel.from_pretrained(SAMS[0])(**inputs)  # the page's own is trained further below
    assert torch.allclose(whole.pred_masks, names["outputs"].pred_masks, atol=1e-4)


def test_masks_and_run_lengths_are_the_same(ran: Ran) -> None:
    from pycocotools import mask as coco

    names = ran.names[at('Image.fromarray(mask).save("mask.png")')]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert np.array_equal(coco.decode(names["annotation"]["segmentation"]), names["mask"])
    assert (ran.folder / "mask.png").is_file()


def test_the_commands_made_their_folders(ran: Ran) -> None:
    assert (ran.folder / "saucer" / "overlay.png").is_file()
    assert sorted(path.name for path in (ran.folder / "onnx").iterdir()) == ["image_encoder.onnx", "mask_decoder.onnx"]


def test_everything_in_a_picture(ran: Ran) -> None:
    found = ran.names[at("MaskGeneration(model)")]["found"]
    assert len(found["masks"]) == len(found["scores"])


def test_fine_tuning_learns_and_is_saved(ran: Ran) -> None:
    names = ran.names[at("optimizer.step()")]
    assert names["losses"][-1] < names["losses"][0]
    assert names["model"].vision_encoder.neck.conv1.weight.requires_grad, "the one that was read back"
    assert sorted(path.name for path in (ran.folder / "fine-tuned").iterdir()) == [
        "config.json",
        "model.safetensors",
        "processor_config.json",
    ]


def test_converting_there_and_back_changes_nothing(ran: Ran) -> None:
    names = ran.names[at('convert_weights("mobile-sam"')]
    wanted, found = SamModel.from_pretrained("mobile-sam").state_dict(), names["mobile_sam"].state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_onnx_files_give_the_models_masks(ran: Ran) -> None:
    names = ran.names[at("onnxruntime.InferenceSession")]
    assert names["onnx_masks"].shape == (3, 400, 600)
    model = SamModel.from_pretrained("facebook/sam-vit-base")
    predictor = amg.Predictor(model)
    predictor.set_image(np.asarray(names["photo"]))
    masks, iou, low_res = predictor.predict([[300, 200]], [1])
    assert np.abs(names["image_embeddings"] - predictor.get_image_embedding().numpy()).max() < 1e-3
    assert np.abs(names["low_res"][0, 1:] - low_res).max() < 1e-3
    assert np.abs(names["iou"][0, 1:] - iou).max() < 1e-4
    assert (names["onnx_masks"] != masks).mean() < 1e-4


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            anchors = [
                re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in TEXT.splitlines()
                if line.startswith("#")
            ]
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (PAGE.parent / target).exists(), target


def test_what_is_said_to_be_left_out_is_not_there() -> None:
    for name in ("SamVisionModel", "pipeline", "AutoModel", "TFSamModel"):
        assert not hasattr(amg, name), name
    assert not hasattr(SamModel, "push_to_hub")
