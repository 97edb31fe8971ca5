"""From a name to the local folder that holds a model or a processor in the layout of the transformers library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from amg.config import nearest
from amg.errors import ConfigError, WeightsError
from amg.sam.address import parse_address
from amg.sam.weights import KNOWN

SETTINGS_FILES = ("*.json",)
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "force_download")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_folder(
    name: str | Path,
    *,
    files: Sequence[str] = SETTINGS_FILES,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path | None:
    """The local folder of a folder's path or of a name on the model hub; None for weights that lie in a single file.

    Such weights are our own names (`mobile-sam`), addresses (`s3://bucket/sam.pth`) and existing files (`sam.pth`):
    `weights.resolve` finds those. From the hub come the `files` that match, into its usual cache; without a network
    what the cache has is used.
    Raises ConfigError for what is neither, WeightsError where hub and cache do not have it.
    """
    path = Path(name).expanduser()
    if str(name) in KNOWN or parse_address(str(name)) is not None or path.is_file():
        return None
    if path.is_dir():
        return path
    is_hub_name = isinstance(name, str) and HUB_NAME.fullmatch(name) and not name.startswith(".")
    near = "" if "/" in str(name) else nearest(str(name).lower(), KNOWN)  # the hub's names of SAMs have an owner
    if not is_hub_name or path.suffix in FILE_SUFFIXES or near:
        raise ConfigError(
            f"{str(name)!r} is no folder, no file and no name{near}; wanted a folder that save_pretrained wrote, a hub"
            f" name as facebook/sam-vit-huge, a .pth file, or one of {', '.join(KNOWN)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                str(name),
                allow_patterns=list(files),
                cache_dir=cache_dir,
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                etag_timeout=5,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise WeightsError(_unreachable(str(name), revision, error)) from error


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    at = f" at revision {revision}" if revision else ""
    return (
        f"{name}{at} is no local folder and came neither from the hub nor from its cache: {type(error).__name__}:"
        f" {reason}; give the path of a folder with config.json, another cache_dir, a token if the model needs one, or"
        f" one of {', '.join(KNOWN)}"
    )
