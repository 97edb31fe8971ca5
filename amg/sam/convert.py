"""Checkpoints from one layout to the other: the original package's .pth file, and the folder of transformers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from amg.errors import ConfigError, OutputRefused
from amg.sam.config import ARCHITECTURES
from amg.sam.keys import to_original
from amg.sam.sam_model import SamModel
from amg.sam.sam_processor import SamProcessor
from amg.storage.appearing import appearing

FILE_SUFFIXES = (".pth", ".pt")
FOLDER_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


def convert_weights(source: str | Path, target: str | Path, *, overwrite: bool = False) -> Path:
    """Write the SAM that `source` names (anything `SamModel.from_pretrained` takes) in the layout of `target`'s name.

    A name ending in .pth or .pt is a file with the original package's names, any other a folder with the weights as
    safetensors, the configurations of model and processor. The numbers are those of the source, and so is their type.
    A file holds no configuration, so it can only be made of the published architectures.
    Raises ConfigError for others, OutputRefused where `target` is not free, StorageError where it cannot be written.
    """
    target = Path(target)
    to_file = target.suffix in FILE_SUFFIXES
    refuse = partial(_refuse_taken, to_file=to_file, overwrite=overwrite)
    refuse(target)  # before a model is loaded
    model = SamModel.from_pretrained(source, dtype="auto")
    if to_file and model.name not in ARCHITECTURES:
        raise ConfigError(
            f"{source} is none of the published architectures ({', '.join(ARCHITECTURES)}), and a {target.suffix} file"
            " has no place for its configuration: wanted the name of a folder"
        )
    with appearing(target, refuse=refuse, advice="make room or give another name") as making:
        if to_file:
            state = {name: tensor.contiguous() for name, tensor in to_original(model.state_dict()).items()}
            torch.save(state, making)
        else:
            model.save_pretrained(making)
            SamProcessor.from_pretrained(source).save_pretrained(making)
    return target


def _refuse_taken(target: Path, *, to_file: bool, overwrite: bool) -> None:
    if target.suffix in (".safetensors", ".bin", ".onnx"):
        raise ConfigError(
            f"{target}: wanted a name ending in .pth (the original layout, one file) or a folder (that of transformers)"
        )
    if not os.path.lexists(target):
        return
    if to_file == target.is_dir():
        raise OutputRefused(f"{target} is a {'folder' if to_file else 'file'}; give another name")
    held = [] if to_file else sorted(path.name for path in target.iterdir())
    foreign = next((name for name in held if name not in FOLDER_FILES and not name.endswith(".safetensors")), None)
    if foreign is not None:
        raise OutputRefused(f"{target} holds {foreign}, which no conversion wrote; give another name")
    if (to_file or held) and not overwrite:
        raise OutputRefused(f"{target} is there already; give another name, or --overwrite")
