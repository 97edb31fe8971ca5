"""Reading and writing what `from_pretrained` and `save_pretrained` are given: folders, hub names, weights files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.errors import ConfigError, WeightsError
from amg.sam.checkpoint import read_state_dict, sam_of, weights_files
from amg.sam.config_section import CONFIG_FILE, read_json
from amg.sam.conversion import config_of
from amg.sam.folder import HUB_OPTIONS, PICKLED_FILES, SAFETENSORS_FILES, SETTINGS_FILES, resolve_folder
from amg.sam.keys import TIED_POSITIONS, to_transformers
from amg.sam.load import read_original, recognise, usable_device
from amg.sam.pretrained_config import SamConfig
from amg.sam.weights import checked_file, digest

ACCEPTED = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "weights_only")
"""Arguments of transformers that mean nothing here: loading is lean, safe and runs no foreign code anyway."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A checkpoint that was read: `path` the folder or file, `state` under transformers' names.

    `sha256` is None for weights in several files.
    """

    path: Path
    config: SamConfig
    state: Mapping[str, Tensor]
    sha256: str | None


def open_source(
    name: str | Path, *, config: SamConfig | None = None, use_safetensors: bool | None = None, **options: Any
) -> Source:
    """What a name stands for; `config` in place of the one found there. Options: those of `resolve_folder`."""
    hub = _hub_options(options)
    folder = resolve_folder(name, files=(*SETTINGS_FILES, *SAFETENSORS_FILES), **hub)
    if folder is None:
        path, sha256 = checked_file(name)
        state = read_original(path)
        return Source(path, config or config_of(recognise(state, path)), to_transformers(state), sha256)
    config = config or SamConfig.from_dict(read_json(folder / CONFIG_FILE))
    files = weights_files(folder, use_safetensors=use_safetensors)
    if not files and not Path(name).expanduser().is_dir():
        folder = resolve_folder(name, files=(*SETTINGS_FILES, *PICKLED_FILES), **hub) or folder
        files = weights_files(folder, use_safetensors=use_safetensors)
    if not files:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir()))
        raise WeightsError(f"{folder} has no weights, it has {there}; wanted model.safetensors or pytorch_model.bin")
    state = {key: tensor for file in files for key, tensor in read_state_dict(file).items()}
    sha256 = digest(files[0]) if len(files) == 1 else None
    return Source(folder, config, to_transformers(sam_of(state, folder)), sha256)


def save(
    state: Mapping[str, Tensor], config: SamConfig, folder: Path, *, pickled: bool, max_shard_size: int | str = "5GB"
) -> None:
    """Write a folder in transformers' layout; the tied tensor is written once, as there.

    What may be done with the weights is what may be done with `config.json`: safetensors leaves files to their owner.
    """
    from huggingface_hub import save_torch_state_dict

    if folder.is_file():
        raise ConfigError(f"{folder} is a file; wanted a folder to write config.json and the weights into")
    dtype = next(str(tensor.dtype) for tensor in state.values() if tensor.is_floating_point())
    values = {name: value for name, value in config.to_dict().items() if name != "torch_dtype"}  # dtype's older name
    written = {"architectures": ["SamModel"], "dtype": dtype.removeprefix("torch.")}
    SamConfig.from_dict(values, **written).save_pretrained(folder)
    state = {key: tensor.contiguous() for key, tensor in state.items() if key != TIED_POSITIONS}
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, safe_serialization=not pickled)
    for file in weights_files(folder, use_safetensors=not pickled):
        shutil.copymode(folder / CONFIG_FILE, file)


def chosen_dtype(asked: torch.dtype | str | None, source: Source) -> torch.dtype:
    """The one asked for; None and "auto": the one that the configuration names, else that of the weights."""
    if asked in (None, "auto"):
        named = getattr(source.config, "dtype", None) or getattr(source.config, "torch_dtype", None)
        asked = named or next(tensor.dtype for tensor in source.state.values() if tensor.is_floating_point())
    dtype = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(
            f"dtype {asked!r}; wanted torch.float32, torch.float16, torch.bfloat16, their names or 'auto'"
        )
    return dtype


def single_device(device_map: Any) -> torch.device:
    """The one device of a `device_map`; ConfigError for anything that spreads a model over several."""
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        device_map = f"cuda:{device_map}"
    if not isinstance(device_map, str | torch.device) or device_map in ("auto", "balanced", "sequential"):
        raise ConfigError(
            f"device_map {device_map!r}; a SAM fits on one device: wanted its name, such as 'cuda:0' or 'cpu'"
        )
    return usable_device(device_map)


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in options if name not in (*HUB_OPTIONS, *ACCEPTED)]
    if unknown:
        raise ConfigError(
            f"from_pretrained: no argument {', '.join(unknown)}; wanted config, dtype, device_map, use_safetensors or"
            f" {', '.join(HUB_OPTIONS)}"
        )
    attention = options.get("attn_implementation")
    if attention not in (None, "sdpa", "eager"):
        raise ConfigError(f"attn_implementation {attention!r}; attention is PyTorch's own, 'sdpa': leave it out")
    return {name: value for name, value in options.items() if name in HUB_OPTIONS}
