"""The formats by name, and the function that exports to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amg.config import nearest
from amg.errors import ConfigError
from amg.export.coco import Coco
from amg.export.exporter import Exported, Exporter, Shards, appearing
from amg.export.sa1b import Sa1b
from amg.storage.url import local_target

FORMATS: Mapping[str, Exporter] = {"sa1b": Sa1b(), "coco": Coco()}


def export_shards(folder: str, *, to: str, out: str | Path, overwrite: bool = False) -> Exported:
    """Writes the images of `folder` that have masks to `out`, which appears when it is complete.

    Memory does not grow with the number of masks. Raises ConfigError for an unknown format, OutputRefused where `out`
    is not free, FormatError where a shard is damaged, StorageError where there is none or `out` cannot be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}{nearest(to, FORMATS)}; formats: {', '.join(FORMATS)}")
    exporter = FORMATS[to]
    target = local_target(out, "an export")
    shards = Shards(folder)
    with appearing(target, folder=exporter.makes_folder, overwrite=overwrite) as temporary:
        exporter.write(shards, temporary)
    return shards.count()
