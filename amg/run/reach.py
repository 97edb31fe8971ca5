"""What the machines of a cluster can reach of that which was named here: URLs, what travels along, a shared disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from amg.errors import ConfigError
from amg.run.parcel import Parcel
from amg.sam import weights as known_weights
from amg.storage.url import is_remote

ADVICE = (
    "give URLs (s3://, gs://, az://); a list of images may lie in the --working-dir, which travels along; where every"
    " machine has this disk under the same name, add --shared-disk"
)


@dataclass(frozen=True, slots=True)
class Reached:
    """Inputs, output and weights under the names by which the cluster finds them."""

    inputs: Sequence[str]
    out: str
    weights: str


def reach(
    inputs: Sequence[str], out: str, weights: str, *, parcel: Parcel, working_dir: Path | None, shared_disk: bool
) -> Reached:
    """The names as the cluster understands them. ConfigError that lists everything it could not find there."""
    found = [_in_parcel(name, parcel, working_dir) for name in inputs]
    if shared_disk:
        here = [there or _absolute(name) for name, there in zip(inputs, found, strict=True)]
        return Reached(here, _absolute(out), known_weights.pinned(weights))
    wrong = [name for name, there in zip(inputs, found, strict=True) if there is None]
    wrong += [] if is_remote(out) else [f"--out {out}"]
    wrong += _unreachable(weights)
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise ConfigError(f"paths of this machine are none of the cluster's:\n{lines}\n{ADVICE}")
    return Reached([name for name in found if name is not None], out, weights)


def _in_parcel(name: str, parcel: Parcel, working_dir: Path | None) -> str | None:
    """A URL as it is, a path below the working directory relative to it; None for what only this machine has."""
    if is_remote(name):
        return name
    if working_dir is None:
        return None
    top = Path(_absolute(str(working_dir)))
    for path in (Path(os.path.abspath(top / _path(name))), Path(_absolute(name))):
        if path.is_relative_to(top) and parcel.holds(path.relative_to(top).as_posix()):
            return path.relative_to(top).as_posix()
    return None


def _unreachable(weights: str) -> list[str]:
    if weights in known_weights.KNOWN or is_remote(weights):
        return []
    path = known_weights.resolve(weights)
    name = f"s3://BUCKET/{path.name}#sha256={known_weights.digest(path)}"
    return [f"--weights {weights}; once it is in object storage: --weights '{name}'"]


def _path(name: str) -> str:
    return unquote(urlsplit(name).path) if name.startswith("file://") else name


def _absolute(name: str) -> str:
    return name if is_remote(name) else os.path.abspath(os.path.expanduser(_path(name)))
