from pathlib import Path

import pytest
import yaml

from amg.config import (
    PRESETS,
    Config,
    fields,
    fingerprint,
    flatten,
    generate_settings,
    load_config,
    masks_depend_on,
    parse,
    parse_assignment,
    to_yaml,
)
from amg.errors import ConfigError


def test_defaults_are_those_of_the_reference() -> None:
    import inspect

    from segment_anything import SamAutomaticMaskGenerator

    theirs = inspect.signature(SamAutomaticMaskGenerator).parameters
    ours = Config().generate.model_dump()
    shared = [name for name in ours if name in theirs and name != "points_per_batch"]
    assert len(shared) == 11
    assert {name: ours[name] for name in shared} == {name: theirs[name].default for name in shared}


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("generate:\n  crop_n_layers: 1\n  points_per_side: 8\n")
    config = load_config(preset="sa1b", file=file, overrides={"generate.points_per_side": 4})
    assert (config.generate.crop_n_layers, config.generate.points_per_side) == (1, 4)
    assert config.generate.min_mask_region_area == 100
    assert config.output.bbox_style == "sa1b"


def test_everything_wrong_is_said_at_once_with_the_nearest_right_name() -> None:
    wrong = {"generate.point_per_side": 3, "stability_score_tresh": 0.5, "generate.crop_n_layers": 99, "run.device": 5}
    with pytest.raises(ConfigError) as error:
        parse(wrong)
    text = str(error.value)
    assert "did you mean 'generate.points_per_side'" in text
    assert "did you mean 'generate.stability_score_thresh'" in text
    assert "generate.crop_n_layers is 99: input should be less than or equal to 6" in text
    assert "run.device is 5" in text
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"point_grids": [[[0.5, 0.5]]]}, "either points_per_side or point_grids"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "needs 2"),
        ({"points_per_side": None, "point_grids": [[]]}, "without a point"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, "point_grids.0.0.1 is 1.5"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
    ],
)
def test_grids_and_numbers_that_make_no_sense_are_refused(settings: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace(".", r"\.")):
        generate_settings(settings)


def test_a_range_without_extent_is_refused() -> None:
    with pytest.raises(ConfigError, match="black before white"):
        parse({"decode.range": [5, 5]})


def test_a_preset_that_is_none_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sa1b'"):
        load_config(preset="sa1")


@pytest.mark.parametrize("content", ["- a\n- b\n", "generate: [1", "\x00\xff"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load_config(file=file)


def test_what_config_prints_is_read_back(tmp_path: Path) -> None:
    config = load_config(preset="sa1b")
    file = tmp_path / "all.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file=file) == config
    assert flatten(config)["generate.crop_n_layers"] == 2


def test_assignments_are_read_as_yaml() -> None:
    assert parse_assignment("generate.point_grids=[[[0.5, 0.25]]]") == ("generate.point_grids", [[[0.5, 0.25]]])
    assert parse_assignment("shards.images_per_shard=") == ("shards.images_per_shard", None)
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_assignment("generate.points_per_side")


def test_the_fingerprint_counts_what_changes_a_mask_and_nothing_else() -> None:
    def mark(**overrides: object) -> str:
        config = load_config(overrides={name.replace("__", "."): value for name, value in overrides.items()})
        return fingerprint(masks_depend_on(config, weights_digest="d", masks=1))

    calm = mark()
    for name, value in {
        "memory__candidates_mb": 9,
        "shards__images_per_shard": 3,
        "run__device": "cuda",
        "run__decode_threads": 1,
        "model__weights": "other/path.pt",
    }.items():
        assert mark(**{name: value}) == calm, name
    for name, value in {
        "generate__mask_threshold": 0.1,
        "generate__points_per_batch": 8,
        "decode__max_pixels": 10,
        "output__bbox_style": "sa1b",
        "run__threads": 1,
    }.items():
        assert mark(**{name: value}) != calm, name
    assert fingerprint(masks_depend_on(Config(), weights_digest="e", masks=1)) != calm


def test_every_setting_has_help_and_every_preset_is_valid() -> None:
    assert all(field.description for _, field in fields())
    assert all(load_config(preset=name) for name in PRESETS)


def test_the_configs_to_copy_are_valid() -> None:
    files = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert {f.stem for f in files} >= {"default", "sa1b"}
    for file in files:
        assert yaml.safe_load(file.read_text()) is None or load_config(file=file)
    assert load_config(file=files[[f.stem for f in files].index("sa1b")]) == load_config(preset="sa1b")
