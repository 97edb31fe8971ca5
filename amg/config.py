"""Every setting, with its default, range and one line of help; what a job's settings are, and their fingerprint.

Later wins: defaults, preset, YAML file, `--set`. All that is wrong is said at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from amg.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Threshold = Annotated[float, Field(ge=0.0)]
GridPoint = Annotated[tuple[Fraction, Fraction], Field(description="x and y in the unit square")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Section):
    weights: str = Field(
        default="mobile-sam",
        description="Name of known weights (`sam-amg weights list`), path of a checkpoint, or its address: "
        "`s3://bucket/sam.pth#sha256=HEX`.",
    )
    precision: Literal["parity", "fast"] = Field(
        default="parity",
        description="`parity`: float32, the masks of the reference; `fast`: bfloat16 in the linear layers of the image "
        "encoder, where the processor has it, and on a GPU in all of a ViT's, with a float16 mask decoder; some masks "
        "are others.",
    )
    encoder_batch: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Crops that the image encoder takes at once, of several images where one has fewer; null: 4 on "
        "CUDA, else 1.",
    )
    kernels: Literal["torch", "triton"] = Field(
        default="torch",
        description="What works on a GPU: `torch`, PyTorch's operators; `triton`, kernels of ours that equal them "
        "under Triton's interpreter and that nobody has run on a GPU yet (docs/gpu.md).",
    )
    compile: bool = Field(
        default=False, description="Compile the blocks of a ViT image encoder (torch.compile) when the model is loaded."
    )


class GenerateSettings(Section):
    points_per_side: int | None = Field(
        default=32, ge=1, le=1024, description="Points along a side of the grid; null with `point_grids`."
    )
    point_grids: tuple[tuple[GridPoint, ...], ...] | None = Field(
        default=None, description="Own grids instead: one list of (x, y) in the unit square for each crop layer."
    )
    points_per_batch: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Points decoded together; null lets the device decide. Bounds the memory of the decoder.",
    )
    pred_iou_thresh: float = Field(
        default=0.88, ge=0.0, description="Keep masks whose predicted IoU is above this; 0 keeps all."
    )
    stability_score_thresh: Fraction = Field(default=0.95, description="Keep masks at least this stable; 0 keeps all.")
    stability_score_offset: Threshold = Field(
        default=1.0, description="Stability compares the masks at this much above and below `mask_threshold`."
    )
    mask_threshold: float = Field(default=0.0, description="A pixel belongs to the mask where its logit is above this.")
    box_nms_thresh: Fraction = Field(
        default=0.7,
        description="Within a crop, a mask goes when its box overlaps a better one's by more IoU than this.",
    )
    crop_n_layers: int = Field(
        default=0, ge=0, le=6, description="Layers of crops beyond the whole image; layer i has 4**i crops."
    )
    crop_nms_thresh: Fraction = Field(default=0.7, description="The same between crops, where smaller crops win.")
    crop_overlap_ratio: float = Field(
        default=512 / 1500,
        ge=0.0,
        le=1.0,
        description="How far crops of the first layer overlap, as a share of the image's short side.",
    )
    crop_n_points_downscale_factor: int = Field(
        default=1, ge=1, description="Layer i has `points_per_side` / this**i points a side."
    )
    min_mask_region_area: int = Field(
        default=0,
        ge=0,
        description="Fill holes and remove islands smaller than this many pixels; 0 leaves masks as they are.",
    )
    max_mask_area_fraction: Fraction | None = Field(
        default=None, description="Drop masks that cover this share of the image or more; null keeps them."
    )
    drop_small_masks: bool = Field(
        default=False,
        description="Drop a mask whose every region is smaller than `min_mask_region_area`; else its largest is kept.",
    )
    rank_crops_by: Literal["area", "layer"] = Field(
        default="area",
        description="Between crops the mask wins whose crop is smaller (`area`, as in the open code) or deeper "
        "(`layer`, as in the paper).",
    )

    @property
    def sides(self) -> list[int]:
        """Points along a side of each crop layer's regular grid, the whole image first; needs `points_per_side`."""
        assert self.points_per_side is not None
        factor = self.crop_n_points_downscale_factor
        return [max(1, int(self.points_per_side / factor**layer)) for layer in range(self.crop_n_layers + 1)]

    @property
    def points_by_layer(self) -> list[int]:
        """How many points the grid of each crop layer has, the whole image first."""
        if self.point_grids is not None:
            return [len(grid) for grid in self.point_grids]
        return [side**2 for side in self.sides]

    @model_validator(mode="after")
    def _one_kind_of_grid(self) -> GenerateSettings:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("give either points_per_side or point_grids; the other one is null")
        if self.point_grids is not None:
            if len(self.point_grids) != self.crop_n_layers + 1:
                raise ValueError(
                    f"point_grids has {len(self.point_grids)} grids, "
                    f"crop_n_layers {self.crop_n_layers} needs {self.crop_n_layers + 1}"
                )
            if not all(self.point_grids):
                raise ValueError("point_grids has a grid without a point")
        return self


class DecodeSettings(Section):
    max_pixels: int = Field(
        default=512_000_000, ge=1, description="Images with more pixels get a row `too_large` and are not decoded."
    )
    range: tuple[float, float] | None = Field(
        default=None,
        description="Black and white of 32-bit integer and float images; without it they are `unsupported`.",
    )

    @model_validator(mode="after")
    def _black_below_white(self) -> DecodeSettings:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}; wanted two numbers, black before white")
        return self


class MemorySettings(Section):
    candidates_mb: int | None = Field(
        default=None,
        ge=1,
        description="Logits kept of the candidates of one crop; beyond it survivors are decoded a second time. null: "
        "1024 on CUDA, of the GPU's, else 256.",
    )
    ahead_mb: int = Field(
        default=768,
        ge=1,
        description="Pixels of the images that are decoded ahead of the model, all together: 3 bytes each, and 7 "
        "while they are decoded.",
    )
    image_mb: int = Field(
        default=4096,
        ge=1,
        description="Pixels of a decoded image, 3 bytes each; larger images get a row `too_large` and are not decoded.",
    )
    fraction: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Share of its GPU's memory that a worker may take, where others use the GPU too; null: all. Only "
        "for CUDA devices.",
    )


class ShardSettings(Section):
    images_per_shard: int | None = Field(
        default=None, ge=1, le=100_000, description="Images in a Parquet file; null aims at two minutes of work."
    )


class OutputSettings(Section):
    bbox_style: Literal["exact", "sa1b"] = Field(
        default="exact",
        description="`exact`: COCO boxes; `sa1b`: one pixel short in width and height, as SA-1B's files have them.",
    )
    embed_images: bool = Field(default=False, description="Put the image files themselves into the shards.")


class RunSettings(Section):
    runner: Literal["local", "ray"] = Field(
        default="local",
        description="`local`: this machine's processes; `ray`: actors on a Ray cluster, or on a Ray started here.",
    )
    address: str | None = Field(
        default=None,
        description="Ray's head, such as `10.0.0.1:6379` or `auto`; null takes RAY_ADDRESS, else starts Ray here.",
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that Ray reserves for a worker, fractions too; null reserves one on CUDA, none on a CPU.",
    )
    cpus_per_worker: float | None = Field(
        default=None, ge=0, description="Cores that Ray reserves for a worker; null reserves `run.threads` of them."
    )
    device: str = Field(
        default="auto",
        description="cpu, cuda, cuda:N, mps, or several with commas; auto takes cuda where it is there, else cpu.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Processes that label, in turn on the devices; null takes one a device. One alone is this process. "
        "On Ray: actors, as many as there is room for with null; more than that asks an autoscaler for room.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads of the model in a worker on a CPU; null shares the cores."
    )
    image_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="An image that takes longer, three times when tried alone, gets a row `timeout`; even one worker "
        "is a process then. null: with several workers, 20 times what one image in a hundred exceeds, and two minutes "
        "at least.",
    )
    decode_threads: int = Field(default=2, ge=1, le=64, description="Threads that decode images ahead of the model.")
    decode_ahead: int = Field(default=4, ge=1, le=1024, description="Decoded images that may wait for the model.")


class Config(Section):
    model: ModelSettings = Field(default_factory=ModelSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    decode: DecodeSettings = Field(default_factory=DecodeSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    shards: ShardSettings = Field(default_factory=ShardSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    run: RunSettings = Field(default_factory=RunSettings)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "sa1b": {
        "generate.points_per_side": 32,
        "generate.crop_n_layers": 2,
        "generate.crop_n_points_downscale_factor": 2,
        "generate.min_mask_region_area": 100,
        "generate.max_mask_area_fraction": 0.95,
        "generate.drop_small_masks": True,
        "output.bbox_style": "sa1b",
    },
}


def load_config(
    *, preset: str = "default", file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The settings of a job. `overrides` maps dotted names (`generate.points_per_side`) to values and wins over all.

    Raises ConfigError with a line for everything that is wrong.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}{nearest(preset, PRESETS)}; presets: {', '.join(PRESETS)}")
    dotted = dict(PRESETS[preset])
    if file is not None:
        dotted |= _read(Path(file))
    dotted |= dict(overrides or {})
    return parse(dotted)


def parse(dotted: Mapping[str, Any]) -> Config:
    """Settings from dotted names and values."""
    known = dict(fields())
    wrong = [f"there is no setting {name!r}{nearest(name, known)}" for name in dotted if name not in known]
    nested: dict[str, dict[str, Any]] = {}
    for name, value in dotted.items():
        if name in known:
            section, _, key = name.partition(".")
            nested.setdefault(section, {})[key] = value
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        wrong += [_sentence(cast(Mapping[str, Any], e)) for e in error.errors()]
    else:
        if not wrong:
            return config
    raise ConfigError("\n".join(wrong))


def generate_settings(settings: Mapping[str, Any]) -> GenerateSettings:
    """The `generate` section from keyword arguments named as the reference names them."""
    return parse({f"generate.{name}": value for name, value in settings.items()}).generate


def parse_assignment(text: str) -> tuple[str, Any]:
    """`generate.points_per_side=16` as (name, value); the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set got {text!r}, wanted NAME=VALUE, for example generate.points_per_side=16")
    try:
        return name.strip(), yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {value!r} is not a YAML value: {error}") from error


def fields() -> Iterator[tuple[str, Any]]:
    """Dotted name and pydantic field of every setting, in order."""
    for section, outer in Config.model_fields.items():
        for name, inner in cast(type[Section], outer.annotation).model_fields.items():
            yield f"{section}.{name}", inner


def flatten(config: Config) -> dict[str, Any]:
    """Dotted names and JSON values, in order."""
    dumped = config.model_dump(mode="json")
    return {name: dumped[name.split(".")[0]][name.split(".")[1]] for name, _ in fields()}


def to_yaml(config: Config) -> str:
    """All settings as a YAML file that `--config` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


MASK_REVISION = 3
"""Part of every fingerprint: goes up whenever the same settings give other masks than before."""


def default_points_per_batch(kind: str) -> int:
    """For a kind of device, such as `cuda`: small chunks keep a CPU's caches warm; a GPU wants many points at once."""
    return 16 if kind == "cpu" else 64


def default_encoder_batch(kind: str) -> int:
    """Crops that the image encoder takes at once on a kind of device."""
    return 4 if kind == "cuda" else 1


def default_candidates_mb(kind: str) -> int:
    """MiB of logits that are kept of a crop's candidates: on a GPU those of 1024 points and more."""
    return 1024 if kind == "cuda" else 256


NOT_IN_FINGERPRINT = (
    "memory.", "shards.", "run.runner", "run.address", "run.gpus_per_worker", "run.cpus_per_worker", "run.device",
    "run.workers", "run.image_timeout_s", "run.decode_", "model.weights"
)  # fmt: skip
"""What may change between two runs on one output without changing a mask. The weights count by their digest."""


def masks_depend_on(config: Config, *, weights_digest: str, **pins: Any) -> dict[str, Any]:
    """Everything that changes a mask, by name: what the fingerprint is made of and what a refusal compares.

    `pins`: what was resolved for the run, such as the chunk of prompts and the version of the masks.
    """
    settings = {name: value for name, value in flatten(config).items() if not name.startswith(NOT_IN_FINGERPRINT)}
    return {
        "weights.sha256": weights_digest,
        **settings,
        **{f"pin.{name}": value for name, value in sorted(pins.items())},
    }


def fingerprint(depend_on: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON of `masks_depend_on`."""
    return hashlib.sha256(json.dumps(depend_on, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'`, or nothing when no known name is near."""
    known = list(known)
    by_last = {k.rpartition(".")[2]: k for k in known}
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        near = [by_last[k] for k in difflib.get_close_matches(name.rpartition(".")[2], list(by_last), 1, 0.6)]
    return f"; did you mean {near[0]!r}" if near else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} holds a {type(content).__name__}, wanted sections such as `generate:` with settings under them"
        )
    dotted: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            dotted |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            dotted[str(key)] = value
    return dotted


def _sentence(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    said = str(error["msg"]).removeprefix("Value error, ")
    if len(error["loc"]) < 2:
        return f"{where or 'settings'}: {said}"
    return f"{where} is {error['input']!r}: {said[0].lower()}{said[1:]}"
