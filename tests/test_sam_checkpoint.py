"""Checkpoints in both libraries' formats, read and written; other networks are refused by what they are."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from amg import SamConfig, SamProcessor
from amg.errors import ConfigError, WeightsError
from amg.sam import load
from amg.sam.config import ARCHITECTURES, Architecture, DecoderConfig, VitConfig
from amg.sam.keys import ANCHOR, POSITIONS, TIED_POSITIONS, is_original, to_original, to_transformers
from amg.sam.load import load_sam
from amg.sam.model import build_sam
from amg.sam.sam_model import SamModel
from amg.sam.weights import digest
from tests.sam_reference import assert_near, draw_weights, mobile_pair
from tests.sam_transformers import images, pair, prompts

SMALL = Architecture(
    "small",
    VitConfig(width=32, depth=2, heads=2, global_blocks=(1,), window=3),
    DecoderConfig(mlp_width=64, heads=4, iou_width=16),
    channels=32,
    mask_channels=8,
    side=64,
    grid=4,
)
"""Of a width that no published model has, so that a file of it is small."""


def saved(folder: Path, **how: Any) -> Path:
    """The tiny model as transformers saves it."""
    theirs, _ = pair()
    theirs.save_pretrained(folder, **how)
    return folder


def as_pickle(folder: Path) -> Path:
    """As it saved a model before safetensors, with the tied tensor under both names."""
    saved(folder)
    (folder / "model.safetensors").unlink()
    torch.save(pair()[0].state_dict(), folder / "pytorch_model.bin")
    return folder


def as_sharded_pickle(folder: Path) -> Path:
    as_pickle(folder)
    state = pair()[0].state_dict()
    (folder / "pytorch_model.bin").unlink()
    names = {key: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, key in enumerate(state)}
    for file in set(names.values()):
        torch.save({key: state[key] for key, name in names.items() if name == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def assert_answers_alike(ours: Any, theirs: Any) -> None:
    arguments = {"pixel_values": images("tiny", 1), **prompts("tiny", "2 labelled points", images=1, per_image=2)}
    with torch.no_grad():
        found, wanted = ours(**arguments), theirs(**arguments)
    assert_near(found.pred_masks, wanted.pred_masks)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "safetensors": saved,
    "sharded safetensors": lambda folder: saved(folder, max_shard_size="50KB"),
    "pickle": as_pickle,
    "sharded pickle": as_sharded_pickle,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_transformers_is_read(name: str, tmp_path: Path) -> None:
    folder = FORMATS[name](tmp_path)
    assert any("00002" in path.name for path in folder.iterdir()) == ("sharded" in name)
    model = SamModel.from_pretrained(folder)
    assert not model.training
    assert (model.weights_digest is None) == ("sharded" in name)
    assert all(torch.equal(tensor, pair()[0].state_dict()[key]) for key, tensor in model.state_dict().items())
    assert_answers_alike(model, pair()[0])


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "50KB"}, {"safe_serialization": False}])
def test_transformers_reads_what_is_saved(how: dict[str, Any], tmp_path: Path) -> None:
    _, ours = pair()
    ours.save_pretrained(tmp_path, **how)
    theirs, report = transformers.SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in theirs.state_dict().items())
    assert_answers_alike(ours, theirs.eval())
    assert_answers_alike(SamModel.from_pretrained(tmp_path), ours)
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), transformers.SamModel)


def test_saving_over_another_save_leaves_only_the_new_one(tmp_path: Path) -> None:
    _, ours = pair()
    ours.save_pretrained(tmp_path, max_shard_size="50KB")
    other = copy.deepcopy(ours)
    torch.nn.init.zeros_(other.mask_decoder.iou_token.weight)
    other.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert not SamModel.from_pretrained(tmp_path).mask_decoder.iou_token.weight.any()
    ours.save_pretrained(tmp_path, max_shard_size="50KB")
    assert SamModel.from_pretrained(tmp_path).mask_decoder.iou_token.weight.any()


def test_weights_keep_their_type_unless_another_is_asked_for(tmp_path: Path) -> None:
    copy.deepcopy(pair()[1]).bfloat16().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    theirs = transformers.SamModel.from_pretrained(tmp_path).dtype
    assert SamModel.from_pretrained(tmp_path).dtype == torch.bfloat16 == theirs
    assert SamModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert SamModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    assert SamModel.from_pretrained(tmp_path, torch_dtype="float64").dtype == torch.float64
    assert SamModel.from_pretrained(tmp_path).precision.startswith("bfloat16 on cpu")


def test_another_configuration_can_be_given(tmp_path: Path) -> None:
    config = SamConfig.from_pretrained(saved(tmp_path))
    config.mask_decoder_config.layer_norm_eps = 0.5
    model = SamModel.from_pretrained(tmp_path, config=config)
    assert model.mask_decoder.transformer.layers[0].layer_norm1.eps == 0.5
    config.mask_decoder_config.num_hidden_layers = 1
    with pytest.raises(WeightsError, match=r"looks like custom, .* too many"):
        SamModel.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize("device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}])
def test_a_device_map_may_name_one_device(device_map: Any, tmp_path: Path) -> None:
    assert (
        SamModel.from_pretrained(saved(tmp_path), device_map=device_map, attn_implementation="sdpa").device.type
        == "cpu"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device_map": "auto"}, "device_map 'auto'; a SAM fits on one device"),
        ({"device_map": {"vision_encoder": 0}}, "device_map {'vision_encoder': 0}"),
        ({"device_map": "cuda:99"}, "device cuda:99 is not there"),
        ({"dtype": "float33"}, "dtype 'float33'; wanted torch.float32"),
        ({"torch_dtype": torch.int8}, "dtype torch.int8"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation 'flash_attention_2'"),
        ({"load_in_8bit": True}, "from_pretrained: no argument load_in_8bit"),
    ],
)
def test_an_argument_that_cannot_be_met_is_refused(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        SamModel.from_pretrained(saved(tmp_path), **arguments)


def hub_cache(cache: Path, write: Callable[[Path], Path], *, name: str = "someone/sam-tiny") -> Path:
    """A model in a cache as huggingface_hub lays it out, under the revision `main`."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    return write(home / "snapshots" / commit)


@pytest.mark.parametrize("name", FORMATS)
def test_a_hub_name_is_read_from_the_cache(name: str, tmp_path: Path) -> None:
    hub_cache(tmp_path, FORMATS[name])
    model = SamModel.from_pretrained("someone/sam-tiny", cache_dir=tmp_path, local_files_only=True)
    assert_answers_alike(model, pair()[0])
    at = {"revision": "0123456789abcdef0123456789abcdef01234567", "token": False, "force_download": False}
    again = SamModel.from_pretrained("someone/sam-tiny", cache_dir=tmp_path, local_files_only=True, **at)
    assert again.config == model.config


def test_a_hub_name_that_the_cache_has_not_is_refused(tmp_path: Path) -> None:
    hub_cache(tmp_path, saved)
    for name, more in (("someone/other", {}), ("someone/sam-tiny", {"revision": "v2"})):
        with pytest.raises(WeightsError, match=f"{name}.* came neither from the hub nor from its cache"):
            SamModel.from_pretrained(name, cache_dir=tmp_path, local_files_only=True, **more)


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "gone.pth", "./gone", Path("gone")])
def test_a_name_of_nothing_is_refused(name: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"is no folder, no file and no name; .* facebook/sam-vit-huge"):
        SamModel.from_pretrained(name)


@pytest.mark.parametrize(
    ("name", "meant"), [("mobile-sma", "mobile-sam"), ("MobileSAM", "mobile-sam"), ("sam_vit_huge", "sam-vit-h")]
)
def test_a_name_near_one_of_ours_is_not_looked_for_on_the_hub(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    for read in (SamModel.from_pretrained, SamProcessor.from_pretrained, SamConfig.from_pretrained):
        with pytest.raises(ConfigError, match=f"'{name}' is no folder, no file and no name; did you mean '{meant}'"):
            read(name)


@pytest.mark.parametrize("name", ["someone/mobile-sma", "mobile-sam/mobile-sam", "tiny"])
def test_other_names_are_the_hubs(name: str, tmp_path: Path) -> None:
    hub_cache(tmp_path, saved, name=name)
    assert_answers_alike(SamModel.from_pretrained(name, cache_dir=tmp_path, local_files_only=True), pair()[0])


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "50KB"}, {"safe_serialization": False}], ids=str)
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_files_of_a_saved_model_may_be_read_alike(umask: int, options: dict[str, Any], tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        pair()[1].save_pretrained(tmp_path, **options)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    pair()[1].config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"has no weights, it has config.json; wanted model.safetensors"):
        SamModel.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="has no weights"):
        SamModel.from_pretrained(saved(tmp_path), use_safetensors=False)


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="50KB")
    next(tmp_path.glob("model-00003-*")).unlink()
    with pytest.raises(WeightsError, match=r"lacks 1 of \d+ shards: model-00003-of"):
        SamModel.from_pretrained(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {ANCHOR: "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"lacks 1 of 1 shards: outside\.safetensors"):
        SamModel.from_pretrained(folder)


def test_a_broken_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"model.safetensors is no whole safetensors file \(1,000 bytes\)"):
        SamModel.from_pretrained(tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The original state dict of an architecture that is published for this test."""
    monkeypatch.setattr(load, "ARCHITECTURES", {**ARCHITECTURES, SMALL.name: SMALL})
    return draw_weights(build_sam(SMALL), seed=5)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "as published": lambda state: state,
    "module.": lambda state: prefixed(state, "module."),
    "model.": lambda state: prefixed(state, "model."),
    "sam.": lambda state: prefixed(state, "sam."),
    "module.sam._orig_mod.": lambda state: prefixed(state, "module.sam._orig_mod."),
    "under model": lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
    "under state_dict": lambda state: {"state_dict": prefixed(state, "model.")},
    "transformers' names": to_transformers,
    "transformers' names, prefixed": lambda state: prefixed(to_transformers(state), "model."),
    "with pixel statistics": lambda state: {**state, "pixel_mean": torch.zeros(3), "pixel_std": torch.ones(3)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_weights_file_loads_whatever_it_is_wrapped_in(
    wrapping: str, small: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](small), path)
    model, sam = SamModel.from_pretrained(path), load_sam(path)
    assert all(torch.equal(tensor, small[key]) for key, tensor in sam.state_dict().items())
    assert all(torch.equal(tensor, small[key]) for key, tensor in to_original(model.state_dict()).items())
    assert model.weights_digest == sam.weights_digest == digest(path)
    assert model.config.mask_decoder_config.layer_norm_eps == 1e-5
    with torch.no_grad():
        x = torch.ones(1, 3, 64, 64)
        assert_near(model.get_image_embeddings(x), sam.image_encoder(x))


def test_an_original_file_becomes_a_folder_that_transformers_answers_alike_from(
    small: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(small, tmp_path / "weights.pth")
    model = SamModel.from_pretrained(tmp_path / "weights.pth")
    model.save_pretrained(tmp_path / "folder")
    theirs = transformers.SamModel.from_pretrained(tmp_path / "folder").eval()
    x, xy = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([[[[20.0, 30.0]]]])
    with torch.no_grad():
        assert_near(model(x, input_points=xy).pred_masks, theirs(x, input_points=xy).pred_masks)


def test_tensors_beside_the_model_are_left_out_and_said(small: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**prefixed(small, "sam."), "classifier.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"1 tensors \(classifier.weight\) beside the model's are left out"):
        model = SamModel.from_pretrained(tmp_path / "weights.pth")
    assert torch.equal(model.mask_decoder.iou_token.weight, small[ANCHOR])


def adapter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "image_encoder.blocks.0.attn.qkv.lora_a.weight": torch.zeros(4, 32)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {**state, "mask_decoder.hf_token.weight": torch.zeros(1, 32)}, "holds SAM-HQ weights"),
        (lambda state: {**to_transformers(state), "mask_decoder.hq_token.weight": torch.zeros(1)}, "holds SAM-HQ"),
        (lambda state: {**state, "image_encoder.trunk.pos_embed": torch.zeros(1)}, "holds SAM 2 weights"),
        (lambda state: {**state, "vision_encoder.backbone.pos_embed": torch.zeros(1)}, "holds SAM 2 weights"),
        (adapter, r"1 too many \(.*s.0.attn.qkv.lora_a.weight\)"),
        (lambda state: prefixed(adapter(state), "module."), "lora_a"),
        (lambda state: {**prefixed(state, "teacher."), **prefixed(state, "student.")}, "2 SAMs, under 'student.', 't"),
        (lambda state: {k: t for k, t in state.items() if "neck.0" not in k}, r"1 missing .*neck.(0|conv1).weight"),
        (lambda state: {k: t for k, t in state.items() if "patch_embed" not in k}, "image encoder of another kind"),
        (lambda state: {f"net.{n}": torch.zeros(1) for n in range(9)}, r"9 entries of another network \(net.0, "),
        (lambda state: {**to_transformers(state), TIED_POSITIONS: torch.zeros(2, 16)}, "differ"),
    ],
)  # fmt: skip
def test_another_network_is_refused_by_what_it_is(
    change: Callable[[dict[str, Tensor]], Any], said: str, small: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(change(small), path)
    for read in (SamModel.from_pretrained, load_sam):
        with pytest.raises(WeightsError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "sam_hq"}))
    with pytest.raises(ConfigError, match="model_type 'sam_hq', another network"):
        SamModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    safetensors.torch.save_file(
        {**state, "mask_decoder.hq_token.weight": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(WeightsError, match="SAM-HQ"):
        SamModel.from_pretrained(tmp_path)


def test_mobile_sam_goes_into_a_folder_and_back(tmp_path: Path) -> None:
    _, sam = mobile_pair()
    torch.save(sam.state_dict(), tmp_path / "weights.pt")
    model = SamModel.from_pretrained(tmp_path / "weights.pt")
    assert model.name == "vit_t"
    model.save_pretrained(tmp_path / "folder")
    again = SamModel.from_pretrained(tmp_path / "folder")
    assert again.config.vision_config == model.config.vision_config
    state = to_original(again.state_dict())
    assert state.keys() == sam.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in sam.state_dict().items())
    with pytest.raises((ValueError, KeyError), match="sam_tiny_vit"):
        transformers.AutoModel.from_pretrained(tmp_path / "folder")
    with pytest.raises(Exception, match="num_attention_heads"):  # not silently a ViT with random weights
        transformers.SamModel.from_pretrained(tmp_path / "folder")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_goes_over_and_back(name: str) -> None:
    with torch.device("meta"):
        original = build_sam(ARCHITECTURES[name]).state_dict()
    renamed = to_transformers(original)
    assert is_original(original)
    assert not is_original(renamed)
    assert to_transformers(renamed) == renamed
    assert to_original(renamed) == original == to_original(original)
    assert to_transformers({key: 0 for key in original if key.startswith("prompt_encoder.pe")}).keys() == {
        POSITIONS,
        TIED_POSITIONS,
    }


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("vit_b", {}),
        (
            "vit_h",
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "global_attn_indexes": [7, 15, 23, 31],
            },
        ),
    ],
)
def test_published_names_and_shapes_become_those_of_transformers(name: str, vision: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = transformers.SamModel(transformers.SamConfig(vision_config=vision)).state_dict()
        ours = to_transformers(build_sam(ARCHITECTURES[name]).state_dict())
        model = SamModel(SamConfig(vision)).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    assert {key: tensor.shape for key, tensor in model.items()} == {key: tensor.shape for key, tensor in theirs.items()}
