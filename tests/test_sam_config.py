"""The configurations against transformers', and what wrong values are answered with."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from amg import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from amg.errors import ConfigError, WeightsError
from amg.sam.config import ARCHITECTURES, VIT_T
from amg.sam.conversion import OUR_NAMES, architecture_of, config_of
from amg.sam.pretrained_config import SamTinyVisionConfig
from amg.sam.sam_model import SamModel
from amg.sam.weights import KNOWN
from tests.sam_transformers import CONFIGS, their_config

SECTIONS = [SamVisionConfig, SamPromptEncoderConfig, SamMaskDecoderConfig]


@pytest.mark.parametrize("kind", SECTIONS)
def test_names_and_defaults_are_those_of_transformers(kind: Any) -> None:
    theirs, ours = getattr(transformers, kind.__name__)(), kind()
    named = {field.name: getattr(theirs, field.name) for field in fields(kind)}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in named.items()} == vars(ours)
    assert ours.model_type == theirs.model_type
    own = set(theirs.to_dict()) - set(transformers.PreTrainedConfig().to_dict()) - {"model_type"}
    assert own <= {*vars(ours), *kind.DERIVED}
    assert all(getattr(ours, name) == getattr(theirs, name) for name in kind.DERIVED)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_transformers_goes_round(name: str, tmp_path: Path) -> None:
    theirs = their_config(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = SamConfig.from_pretrained(tmp_path / "theirs")
    assert architecture_of(ours) == architecture_of(SamConfig.from_dict(theirs.to_dict()))
    assert SamConfig.from_dict(ours.to_dict()) == ours
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.SamConfig.from_pretrained(tmp_path / "ours")
    for section in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        assert getattr(again, section).to_dict() == getattr(theirs, section).to_dict()
    assert SamConfig.from_pretrained(tmp_path / "ours") == ours


def test_a_section_is_read_from_the_whole(tmp_path: Path) -> None:
    SamConfig({"hidden_size": 96, "num_attention_heads": 6}).save_pretrained(tmp_path)
    vision = SamVisionConfig.from_pretrained(tmp_path)
    assert (vision.hidden_size, vision.mlp_dim) == (96, 384)
    assert SamMaskDecoderConfig.from_pretrained(tmp_path) == SamMaskDecoderConfig()
    assert SamVisionConfig.from_pretrained(tmp_path, window_size=0, note="mine").to_dict()["note"] == "mine"


def test_sections_come_as_objects_dicts_or_not_at_all() -> None:
    vision = SamVisionConfig(hidden_size=96, num_attention_heads=6)
    config = SamConfig(vision, {"mask_input_channels": 8})
    assert config.vision_config is vision
    assert config.prompt_encoder_config == SamPromptEncoderConfig(mask_input_channels=8)
    assert config.mask_decoder_config == SamMaskDecoderConfig()
    assert config.prompt_encoder_config.image_embedding_size == 64
    with pytest.raises(ConfigError, match="vision_config is a list; wanted a SamVisionConfig or SamTinyVisionConfig"):
        SamConfig([])  # pyright: ignore


def test_unknown_keys_are_kept_and_written() -> None:
    values = {"vision_config": {"projection_dim": 512}, "torch_dtype": torch.float16, "_name_or_path": ""}
    config = SamConfig.from_dict(values, note={"a": [1]})
    assert config.vision_config.projection_dim == 512  # pyright: ignore
    assert config.torch_dtype is torch.float16  # pyright: ignore
    written = json.loads(config.to_json_string())
    assert (written["note"], written["torch_dtype"]) == ({"a": [1]}, "float16")
    assert written["vision_config"]["projection_dim"] == 512
    assert SamConfig.from_dict(config.to_dict()) == config
    assert SamConfig.from_dict({}) != config


def test_a_dict_of_a_configuration_is_a_copy() -> None:
    config = SamConfig.from_dict({"note": [1]})
    config.to_dict()["note"].append(2)
    config.to_dict()["vision_config"]["hidden_size"] = 1
    assert config.note == [1]  # pyright: ignore
    assert config.vision_config == SamVisionConfig()
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert other.vision_config is not config.vision_config


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (SamVisionConfig, {"hidden_size": 0}, "SamVisionConfig: hidden_size is 0; wanted a whole number >= 1"),
        (SamVisionConfig, {"hidden_size": "768"}, "hidden_size is '768'"),
        (SamVisionConfig, {"num_hidden_layers": True}, "num_hidden_layers is True"),
        (SamVisionConfig, {"window_size": -1}, "window_size is -1; wanted a whole number >= 0"),
        (SamVisionConfig, {"image_size": [512, 1024]}, r"image_size is \[512, 1024\]"),
        (SamVisionConfig, {"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; wanted a finite number"),
        (SamVisionConfig, {"global_attn_indexes": [2.5]}, r"global_attn_indexes is \[2.5\]"),
        (SamVisionConfig, {"qkv_bias": 1}, "qkv_bias is 1; wanted True or False"),
        (SamVisionConfig, {"hidden_act": "relu"}, "hidden_act is 'relu'; wanted 'gelu'"),
        (SamVisionConfig, {"model_type": "sam2_vision_model"}, "of model_type 'sam2_vision_model', another network"),
        (SamMaskDecoderConfig, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; wanted 'relu'"),
        (SamPromptEncoderConfig, {"num_point_embeddings": None}, "num_point_embeddings is None"),
        (SamConfig, {"model_type": "sam_hq"}, "'sam_hq', another network; SamConfig wants 'sam' or 'sam_tiny_vit'"),
        (SamConfig, {"mask_decoder_config": {"mlp_dim": -5}}, "SamMaskDecoderConfig: mlp_dim is -5"),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind.from_dict(values)


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(TypeError, match="hiden_size"):
        SamVisionConfig(hiden_size=768)  # pyright: ignore


@pytest.mark.parametrize(
    ("vision", "prompt", "decoder", "said"),
    [
        ({}, {"image_size": 512}, {}, "image_size of .*: 1024, 512; wanted the same number"),
        ({"patch_size": 8}, {}, {}, "patch_size of .*: 8, 16"),
        ({}, {}, {"hidden_size": 128}, "output_channels, hidden_size, hidden_size of .*: 256, 256, 128"),
        ({"num_pos_feats": 64}, {}, {}, r"2 \* num_pos_feats, hidden_size of .*: 128, 256"),
        ({"num_attention_heads": 7}, {}, {}, "vision_config: num_attention_heads 7 does not divide hidden_size 768"),
        ({}, {}, {"num_attention_heads": 3}, "num_attention_heads 3 does not divide hidden_size / 2 128"),
        ({"image_size": 1000}, {"image_size": 1000}, {}, "patch_size 16 does not divide image_size 1000"),
        ({}, {"mask_input_channels": 6}, {}, "4 does not divide mask_input_channels 6"),
        ({}, {"num_point_embeddings": 5}, {}, "num_point_embeddings is 5; wanted 4"),
        ({"mlp_dim": 1000}, {}, {}, "mlp_dim is 1000; wanted a multiple of hidden_size 768"),
        ({"use_rel_pos": False}, {}, {}, "use_rel_pos is False; this encoder is built with True only"),
        ({"num_channels": 4}, {}, {}, "num_channels is 4"),
        ({"attention_dropout": 0.1}, {}, {}, "attention_dropout is 0.1"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused_when_a_model_is_built(
    vision: dict[str, Any], prompt: dict[str, Any], decoder: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        SamModel(SamConfig(vision, prompt, decoder))


def test_a_value_that_was_changed_is_checked_when_a_model_is_built() -> None:
    config = SamConfig()
    config.vision_config.hidden_size = -1
    with pytest.raises(ConfigError, match="hidden_size is -1"):
        SamModel(config)


@pytest.mark.parametrize("name", KNOWN)
def test_our_weight_names_have_a_configuration_without_being_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_AMG_CACHE", str(tmp_path))
    config = SamConfig.from_pretrained(name)
    assert architecture_of(config) == ARCHITECTURES[OUR_NAMES[name]]
    assert config.mask_decoder_config.layer_norm_eps == 1e-5
    assert SamConfig.from_dict(config.to_dict()) == config
    assert not list(tmp_path.iterdir())


def test_the_published_vits_have_the_configurations_of_their_transformers_folders() -> None:
    huge = transformers.SamVisionConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]
    )
    assert SamVisionConfig.from_dict(huge.to_dict()) == SamVisionConfig.from_dict(
        {**huge.to_dict(), **config_of(ARCHITECTURES["vit_h"]).vision_config.to_dict()}
    )


def test_mobile_sam_has_a_section_that_says_so(tmp_path: Path) -> None:
    config = config_of(VIT_T)
    assert isinstance(config.vision_config, SamTinyVisionConfig)
    assert config.vision_config == SamTinyVisionConfig()
    assert config.vision_config.patch_size == 16
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "sam_tiny_vit"
    assert written["vision_config"]["model_type"] == "sam_tiny_vit_vision_model"
    assert SamConfig.from_pretrained(tmp_path) == config
    with pytest.raises((ValueError, KeyError)):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config.json, it has nothing"):
        SamConfig.from_pretrained(tmp_path)
    for text, said in (("{", "is no JSON"), ("[1]", "holds a JSON list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=said):
            SamConfig.from_pretrained(tmp_path)
