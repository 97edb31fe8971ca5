"""From files to a state dict: what is in a file, which SAM it holds, and under which names.

Nothing in a file is run: `weights_only`, always.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.errors import WeightsError
from amg.sam.config_section import read_json
from amg.sam.keys import ANCHOR, PARTS, POSITIONS, TIED_POSITIONS, prefixes
from amg.sam.weights import DEFAULT

WANTED = (
    "wanted a Segment Anything or MobileSAM checkpoint (vit_b, vit_l, vit_h or vit_t) under the original names or those"
    f" of transformers; get one with: sam-amg weights fetch {DEFAULT}"
)
FOREIGN = (
    ("hf_token", "SAM-HQ weights, another mask decoder than Segment Anything's"),
    ("hq_token", "SAM-HQ weights, another mask decoder than Segment Anything's"),
    ("image_encoder.trunk.", "SAM 2 weights, another network"),
    ("vision_encoder.backbone.", "SAM 2 weights, another network"),
    ("memory_attention.", "SAM 2 weights, another network"),
)
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
"""Under which key training programs put the weights beside the optimizer's state."""
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name, on the host: a pickle (.pth, .pt, .bin) or safetensors."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = _unpickled(path)
    if _is_state_dict(state):
        return state
    for key in WRAPPERS:
        if isinstance(state, Mapping) and _is_state_dict(state.get(key)):
            return state[key]
    raise WeightsError(f"{path} holds {_describe(state)}; {WANTED}")


def weights_files(folder: Path, *, use_safetensors: bool | None = None) -> list[Path]:
    """The files with the weights of a transformers folder, one or its shards; safetensors before pickles.

    Empty when there is none; `use_safetensors` True leaves the pickles out, False the safetensors.
    """
    names = [SAFETENSORS] * (use_safetensors is not False) + [PICKLED] * (use_safetensors is not True)
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    return []


def sam_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of the one SAM in a state dict, their names beginning with its parts.

    A prefix goes (`module.`, `model.`, `sam.`); tensors beside the parts are left out with a warning. WeightsError,
    with what it is, where there is no SAM, or another one.
    """
    for marker, what in FOREIGN:
        if any(key.startswith(marker) or f".{marker}" in key for key in state):
            raise WeightsError(f"{path} holds {what}; {WANTED}")
    found = prefixes(state)
    if len(found) != 1:
        what = _describe(state) if not found else f"{len(found)} SAMs, under {', '.join(map(repr, found))}; keep one"
        raise WeightsError(f"{path} holds {what}; {WANTED}")
    prefix = found[0]
    starts = tuple(f"{prefix}{part}." for part in PARTS)
    beside = [key for key in state if not key.startswith(starts) and not key.endswith(("pixel_mean", "pixel_std"))]
    if beside:
        warnings.warn(
            f"{path}: {len(beside)} tensors ({_names(beside)}) beside the model's are left out",
            UserWarning,
            stacklevel=3,
        )
    sam = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(starts)}
    if TIED_POSITIONS in sam and POSITIONS in sam and not torch.equal(sam[TIED_POSITIONS], sam[POSITIONS]):
        raise WeightsError(f"{path}: {POSITIONS} and {TIED_POSITIONS} differ; wanted the same tensor under both names")
    return sam


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, path: Path, name: str) -> None:
    """Refuse a state dict that is not the model's, tensor by tensor, and say where it is not."""
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [
        f"{key} {_kind(state[key])} instead of {_kind(tensor)}"
        for key, tensor in wanted.items()
        if key in state and _kind(state[key]) != _kind(tensor)
    ]
    faults = [
        f"{len(names)} {what} ({_names(names)})"
        for what, names in (("missing", missing), ("too many", extra), ("of another shape or type", other))
        if names
    ]
    if faults:
        like = f"looks like {name}, but against its {len(wanted)} tensors it has"
        raise WeightsError(f"{path} {like} {'; '.join(faults)}; {WANTED}")


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        begins = file.read(4)
    is_zip = zipfile.is_zipfile(path)
    if begins == b"PK\x03\x04" and not is_zip:
        raise WeightsError(f"{path} is truncated: a zip archive whose end is missing ({_size(path)}); load it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign files PyTorch warns about their pickle protocol, then raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a parser fed with foreign bytes raises what it likes
        kind = "a zip archive" if is_zip else "no zip archive"
        reason = next(iter(str(error).splitlines()), "").partition(". ")[0][:120]
        raise WeightsError(
            f"{path} is no checkpoint of tensors: {kind}, {_size(path)}, beginning with {begins!r}; PyTorch says"
            f" {type(error).__name__}: {reason}; {WANTED}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({_size(path)}): {error}; load it again") from error


def _shards(index: Path) -> list[Path]:
    """The files that an index names; they lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files; load the folder again")
    names = sorted(set(weight_map.values()))
    paths = [index.parent / Path(name).name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(f"{index.parent} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:3])}")
    return paths


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else tensor.dtype} {tuple(tensor.shape)}"


def _is_state_dict(state: Any) -> bool:
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    return named and len(state) > 0 and all(isinstance(value, Tensor) for value in state.values())


def _describe(state: Any) -> str:
    """What was found in place of a SAM's state dict, for a person."""
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    return f"{len(state)} entries of another network ({_names([str(key) for key in state])}), none of them {ANCHOR}"


def _names(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"
