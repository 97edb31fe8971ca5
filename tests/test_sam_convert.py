"""`convert_weights` and its command: both layouts, both ways, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from amg import SamModel, SamProcessor
from amg.cli.main import main
from amg.errors import ConfigError, OutputRefused, StorageError, WeightsError
from amg.sam.checkpoint import read_state_dict
from amg.sam.convert import convert_weights
from amg.sam.load import load_sam
from tests.parity import find_weights
from tests.sam_transformers import pair

Command = Callable[..., int]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Command:
    def call(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["sam-amg", "weights", "convert", *map(str, arguments)])
        return main()

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a SAM of random weights that is none of the published ones."""
    pair()[1].save_pretrained(tmp_path / "made")
    SamProcessor().save_pretrained(tmp_path / "made")
    return tmp_path / "made"


def test_an_original_file_becomes_a_folder_and_that_the_same_file(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(find_weights(None), tmp_path / "folder") == 0
    assert convert(tmp_path / "folder", tmp_path / "again.pth") == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "folder"), str(tmp_path / "again.pth")]
    wanted, found = read_state_dict(find_weights(None)), read_state_dict(tmp_path / "again.pth")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)
    assert load_sam(tmp_path / "again.pth").name == "vit_t"
    assert SamProcessor.from_pretrained(tmp_path / "folder").target_size == 1024
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", "folder"]


def test_a_folder_is_what_transformers_reads(folder: Path, tmp_path: Path) -> None:
    convert_weights(folder, tmp_path / "copy")
    theirs = transformers.SamModel.from_pretrained(tmp_path / "copy")
    wanted = pair()[1].state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in theirs.state_dict().items())
    assert transformers.SamProcessor.from_pretrained(tmp_path / "copy").image_processor.size["longest_edge"] == 1024


def test_half_precision_stays_half(folder: Path, tmp_path: Path) -> None:
    SamModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    SamProcessor().save_pretrained(tmp_path / "half")
    convert_weights(tmp_path / "half", tmp_path / "copy")
    assert {tensor.dtype for tensor in read_state_dict(tmp_path / "copy" / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_a_file_cannot_hold_an_architecture_of_ones_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of the published architectures .* wanted the name of a folder"):
        convert_weights(folder, tmp_path / "mine.pth")
    assert not (tmp_path / "mine.pth").exists()


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.bin", "mine.onnx"])
def test_names_of_other_formats_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"wanted a name ending in \.pth"):
        convert_weights(folder, tmp_path / name)


def test_nothing_is_written_over_silently(
    convert: Command, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    assert convert(folder, copy) == 0
    assert convert(folder, copy) == 2
    assert "is there already; give another name, or --overwrite" in capsys.readouterr().err
    assert convert(folder, copy, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().out == ""
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"holds notes\.txt, which no conversion wrote"):
        convert_weights(folder, copy, overwrite=True)
    (tmp_path / "file.pth").write_text("mine")
    with pytest.raises(OutputRefused, match="is there already"):
        convert_weights(folder, tmp_path / "file.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(OutputRefused, match="is a folder"):
        convert_weights(folder, tmp_path / "folder.pth", overwrite=True)
    with pytest.raises(OutputRefused, match="is a file"):
        convert_weights(folder, copy / "notes.txt", overwrite=True)


def test_what_goes_wrong_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        convert_weights(folder, tmp_path / "file" / "copy")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError):
        convert_weights(folder, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]
