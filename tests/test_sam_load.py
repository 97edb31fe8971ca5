"""Weights files: the right ones load, and each wrong one is refused with what it is."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amg.errors import ConfigError, WeightsError
from amg.sam import weights
from amg.sam.checkpoint import read_state_dict
from amg.sam.config import ARCHITECTURES
from amg.sam.load import load_sam, recognise
from amg.sam.model import build_sam
from amg.sam.weights import digest
from tests.sam_reference import mobile_pair


def hollow_state(name: str = "vit_t") -> dict[str, Any]:
    """A state dict of the right shapes whose every tensor stores one number: a file of a few hundred kB."""
    with torch.device("meta"):
        wanted = build_sam(ARCHITECTURES[name]).state_dict()
    return {key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in wanted.items()}


def saved(state: Any, folder: Path, *, legacy: bool = False) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_published_layout_loads_tensor_for_tensor(tmp_path: Path, legacy: bool) -> None:
    _, built = mobile_pair()
    path = saved(built.state_dict(), tmp_path, legacy=legacy)
    sam = load_sam(path)
    assert all(torch.equal(tensor, built.state_dict()[key]) for key, tensor in sam.state_dict().items())
    assert (sam.name, sam.device.type, sam.training) == ("vit_t", "cpu", False)
    assert sam.weights_digest == digest(path)
    assert sam.precision.startswith("float32 on cpu: ")


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    state = {key: t.half() if t.is_floating_point() else t for key, t in hollow_state().items()}
    assert load_sam(str(saved(state, tmp_path))).mask_decoder.iou_token.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["vit_t", "vit_b", "vit_l", "vit_h"])
def test_the_architecture_is_read_from_keys_and_shapes(name: str, tmp_path: Path) -> None:
    assert recognise(hollow_state(name), tmp_path).name == name


def text(path: Path) -> None:
    path.write_text("not the weights you are looking for\n" * 100)


def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    torch.save(hollow_state(), path)
    os.truncate(path, path.stat().st_size // 2)


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def trapped(path: Path) -> None:
    torch.save({"model": Trap(path.with_suffix(".sprung"))}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (text, "no zip archive, 3,600 bytes, beginning with b'not '"),
        (html, "beginning with b'<!DO'"),
        (empty, "0 bytes"),
        (truncated, "truncated: a zip archive whose end is missing"),
        (foreign_zip, "a zip archive, "),
        (plain_pickle, "no zip archive"),
        (trapped, "UnpicklingError"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(write: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(WeightsError, match=said) as caught:
        load_sam(path)
    assert str(path) in str(caught.value)
    assert "sam-amg weights fetch mobile-sam" in str(caught.value) or write is truncated
    assert not path.with_suffix(".sprung").exists()


def without(state: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key not in keys}


IOU_TOKEN = "mask_decoder.iou_token.weight"
MASK_TOKENS = "mask_decoder.mask_tokens.weight"
EXTRA = "mask_decoder.extra.weight"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({}, "0 entries of another network"),
        (
            {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)},
            r"2 entries of another network \(fc.weight, fc.bias\)",
        ),
        ({"epoch": 3, "state_dict": {"a": torch.zeros(2)}}, r"holds 1 entries of another network \(a\)"),
        ({"epoch": 3, "weights": {"a": torch.zeros(2)}}, r"2 entries of another network \(epoch, weights\)"),
        ({"model": {"image_encoder.trunk.blocks.0.attn.qkv.weight": torch.zeros(2)}}, "holds SAM 2 weights"),
        ({"vision_encoder.pos_embed": torch.zeros(2)}, "none of them mask_decoder.iou_token.weight"),
        ({f"module.{IOU_TOKEN}": torch.zeros(2)}, "a SAM with an image encoder of another kind"),
        (hollow_state("vit_b") | {"mask_decoder.hf_token.weight": torch.zeros(1, 256)}, "holds SAM-HQ weights"),
        (
            hollow_state("vit_b") | {"image_encoder.patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)},
            "of width 384",
        ),
        (without(hollow_state(), IOU_TOKEN), f"none of them {IOU_TOKEN}"),
        (without(hollow_state(), MASK_TOKENS), rf"looks like vit_t, .* it has 1 missing \({MASK_TOKENS}\)"),
        (
            hollow_state() | {IOU_TOKEN: torch.zeros(1, 128)},
            r"1 of another shape .*\(1, 128\) instead of float \(1, 256\)",
        ),
        (hollow_state() | {IOU_TOKEN: torch.zeros(1, 256, dtype=torch.int8)}, "int8"),
        (hollow_state() | {EXTRA: torch.zeros(1)}, rf"1 too many \({EXTRA}\)"),
    ],
)
def test_other_networks_are_refused_by_what_they_are(state: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        load_sam(saved(state, tmp_path))
    assert "wanted a Segment Anything or MobileSAM checkpoint" in str(caught.value)


def test_a_name_that_is_neither_file_nor_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mobile-sam"):
        load_sam("mobile-samm")
    with pytest.raises(ConfigError, match=r"is a folder; .* SamModel\.from_pretrained reads folders"):
        load_sam(tmp_path)


def test_a_known_name_whose_file_was_altered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(hollow_state(), tmp_path)
    monkeypatch.setattr(weights, "resolve", lambda _: path)
    with pytest.raises(WeightsError, match="was altered: sha256 "):
        load_sam("mobile-sam")


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision 'half'; wanted 'parity' or 'fast'"):
        load_sam(precision="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "xpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        load_sam(device=device)


def test_reading_gives_tensors_by_name(tmp_path: Path) -> None:
    state = read_state_dict(saved(hollow_state(), tmp_path))
    assert state[IOU_TOKEN].shape == (1, 256)
