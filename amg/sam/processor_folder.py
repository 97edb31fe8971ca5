"""The settings of a processor in a folder: the new layout (`processor_config.json`) and the old one, read and written.

New: `{"image_processor": {...}, "processor_class": "SamProcessor"}`. Old: `preprocessor_config.json` is the inner part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amg.errors import ConfigError, WeightsError
from amg.sam.folder import resolve_folder

NEW, OLD = "processor_config.json", "preprocessor_config.json"
READABLE = ("SamImageProcessor", "SamImageProcessorFast", "SamImageProcessorPil")
WHERE = ("cache_dir", "revision", "token", "local_files_only", "force_download")
"""Arguments of `from_pretrained` that say where to look, not what to do."""


def read_settings(name: str | Path, *, subfolder: str = "", **where: Any) -> dict[str, Any]:
    """The image processor's settings for a folder, a file of settings, a hub name, or weights in a single file.

    The latter have no settings of their own and get an empty dict: the defaults. The new layout wins over the old.
    Raises ConfigError for settings of another processor or damaged ones, WeightsError where there are none.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        return _checked(_read(path), path)
    folder = resolve_folder(name, **where)
    if folder is None:
        return {}
    folder = folder / subfolder
    if (folder / NEW).is_file():
        outer = _read(folder / NEW)
        if "image_processor" in outer:
            return _checked(outer, folder / NEW)
    if (folder / OLD).is_file():
        return _checked(_read(folder / OLD), folder / OLD)
    raise WeightsError(
        f"{folder} has neither {NEW} nor {OLD}; wanted a folder that a processor's save_pretrained wrote; the defaults"
        " are those of SamProcessor(SamImageProcessor())"
    )


def write_settings(folder: str | Path, settings: Mapping[str, Any], *, file: str) -> list[str]:
    """Writes one of the two layouts; the folder is made if need be. Returns the path written, in a list."""
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; wanted a folder to save into")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [str(path)]


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds a {type(settings).__name__}; wanted an object with the processor's settings")
    return settings


def _checked(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    inner = settings.get("image_processor", settings)
    kind = inner.get("image_processor_type") if isinstance(inner, dict) else type(inner).__name__
    if kind is not None and kind not in READABLE:
        raise ConfigError(f"{path} is for {kind}; wanted the settings of a SamImageProcessor")
    return {name: value for name, value in inner.items() if name != "image_processor_type"}
