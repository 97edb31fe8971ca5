"""From a weights file to a model. Which architecture a file holds is read from its keys and shapes.

Precision and device are decided here, once. Nothing in a file is run: `weights_only`, always.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amg.errors import ConfigError, WeightsError
from amg.sam.config import ARCHITECTURES, SamConfig, VitConfig
from amg.sam.model import Sam, build_sam
from amg.sam.weights import DEFAULT, KNOWN, digest, resolve

WANTED = (
    "wanted an original Segment Anything or MobileSAM checkpoint (a .pth or .pt state dict of vit_b, vit_l, vit_h or"
    f" vit_t); get one with: sam-amg weights fetch {DEFAULT}"
)
FOREIGN = (
    ("hf_token", "SAM-HQ weights, another mask decoder than Segment Anything's"),
    ("image_encoder.trunk.", "SAM 2 weights, another network"),
    ("vision_encoder.", "weights under the names of the transformers library"),
    ("module.", "a state dict whose keys begin with 'module.', as torch.nn.DataParallel saves it"),
)


def load_sam(weights: str | Path = DEFAULT, *, device: str | torch.device = "cpu") -> Sam:
    """The model of a weights file, or of a known name (fetched into the cache first), in evaluation mode.

    Raises WeightsError where the file is not what it should be, ConfigError where file or device is not there.
    """
    device = usable_device(device)
    path = resolve(weights)
    sha256 = digest(path)
    known = KNOWN.get(str(weights))
    if known and known.sha256 != sha256:
        raise WeightsError(
            f"{path} was altered: sha256 {sha256}, {known.name} has {known.sha256}; delete it, run again"
        )

    state = read_state_dict(path)
    config = recognise(state, path)
    with device, _Uninitialised():
        sam = build_sam(config)
    _check_fit(state, sam, path)
    sam.load_state_dict(state)
    sam.weights_digest = sha256
    sam.precision = f"float32 on {device.type}: what the published masks were made with; less changes which come out"
    return sam


class _Uninitialised(TorchFunctionMode):
    """Leaves out the drawing of random weights that the file's replace at once: seconds for the large models."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def usable_device(device: str | torch.device) -> torch.device:
    """`cpu`, `cuda`, `cuda:N` or `mps`, if this machine and this PyTorch have it."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {str(device)!r} is none; wanted cpu, cuda, cuda:N or mps") from error
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(wanted.type, 0)
    if (wanted.index or 0) >= count:
        raise ConfigError(
            f"device {device} is not there: PyTorch {torch.__version__} sees {count} of kind {wanted.type}; use cpu,"
            " another number, or a PyTorch built for it"
        )
    return wanted


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name, on the host."""
    with path.open("rb") as file:
        begins = file.read(4)
    is_zip = zipfile.is_zipfile(path)
    if begins == b"PK\x03\x04" and not is_zip:
        raise WeightsError(f"{path} is truncated: a zip archive whose end is missing ({_size(path)}); load it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign files PyTorch warns about their pickle protocol, then raises
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a parser fed with foreign bytes raises what it likes
        kind = "a zip archive" if is_zip else "no zip archive"
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise WeightsError(
            f"{path} is no checkpoint of tensors: {kind}, {_size(path)}, beginning with {begins!r}; PyTorch says"
            f" {type(error).__name__}: {reason}; {WANTED}"
        ) from error
    if not _is_state_dict(state):
        raise WeightsError(f"{path} holds {_describe(state)}; {WANTED}")
    return state


def recognise(state: Mapping[str, Tensor], path: Path) -> SamConfig:
    """The architecture whose image encoder these keys and shapes are."""
    for marker, what in FOREIGN:
        if any(key.startswith(marker) or f".{marker}" in key for key in state):
            raise WeightsError(f"{path} holds {what}; {WANTED}")
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return ARCHITECTURES["vit_t"]
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        raise WeightsError(f"{path} holds {_describe(state)}; {WANTED}")
    widths = {c.encoder.width: c for c in ARCHITECTURES.values() if isinstance(c.encoder, VitConfig)}
    width = patches.shape[0]
    if width not in widths:
        raise WeightsError(f"{path} holds an image encoder of width {width}, not one of {list(widths)}; {WANTED}")
    return widths[width]


def _check_fit(state: Mapping[str, Tensor], sam: Sam, path: Path) -> None:
    """Refuse a state dict that is not the model's, tensor by tensor, and say where it is not."""
    wanted = sam.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [
        f"{key} {_kind(state[key])} instead of {_kind(tensor)}"
        for key, tensor in wanted.items()
        if key in state and _kind(state[key]) != _kind(tensor)
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("too many", extra), ("of another shape or type", other))
        if names
    ]
    if faults:
        like = f"looks like {sam.name}, but against its {len(wanted)} tensors it has"
        raise WeightsError(f"{path} {like} {'; '.join(faults)}; {WANTED}")


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else tensor.dtype} {tuple(tensor.shape)}"


def _is_state_dict(state: Any) -> bool:
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    return named and len(state) > 0 and all(isinstance(value, Tensor) for value in state.values())


def _describe(state: Any) -> str:
    """What was found in place of a state dict, for a person."""
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    for key in ("model", "state_dict"):
        if _is_state_dict(state.get(key)):
            inner = next((what for marker, what in FOREIGN if any(marker in name for name in state[key])), None)
            return inner or f"a state dict under the key {key!r}, of another network or a training checkpoint"
    names = [str(key) for key in state]
    return f"{len(names)} entries of another network ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"
