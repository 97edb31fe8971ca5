"""What travels to a cluster with a job: one small zip with its settings, a folder of the user's, perhaps this package.

Ray keeps the zip in its head's memory, and every machine unpacks it: no place for weights, images or outputs.
"""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from amg.errors import ConfigError
from amg.run.plan import PLAN_FILE

SETTINGS_FILE = "sam-amg-job.yaml"
MOST_BYTES = 256 << 20
"""Half of what Ray takes in one message; from here on it warns."""
WEIGHTS = ("*.pth", "*.pt", "*.ckpt", "*.safetensors", "*.bin", "*.onnx")
JUNK = (
    ".git", ".hg", ".svn", ".venv", "venv", ".uv", "node_modules", "__pycache__", "*.py[co]", "*.egg-info", ".*_cache",
    ".cache", ".ipynb_checkpoints", ".DS_Store", ".env", "*.inprogress",
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows: the same files are the same bytes, and sent once


@dataclass(frozen=True, slots=True)
class Parcel:
    """`files` by their name in the zip, in order; `left_out` says which names, or how many of a kind, stay at home."""

    files: Mapping[str, Path | bytes]
    left_out: Sequence[str] = ()

    @property
    def size_bytes(self) -> int:
        return sum(_size(content) for content in self.files.values())

    def __str__(self) -> str:
        left = f"; left at home: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{len(self.files)} files, {self.size_bytes / 1e6:.1f} MB, travel with the job{left}"

    def with_settings(self, settings: str) -> Parcel:
        """The same and the settings (YAML)."""
        return replace(self, files={**self.files, SETTINGS_FILE: settings.encode()})

    def holds(self, path: str) -> bool:
        """Whether a file, or a folder with files in it, is among them."""
        return any(name == path or name.startswith(f"{path}/") for name in self.files)

    def write(self, target: Path) -> None:
        """The zip; the same files give the same bytes."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for name, content in self.files.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if _is_executable(content) else 0o100644) << 16
                packed.writestr(entry, content if isinstance(content, bytes) else content.read_bytes())


def pack(*, working_dir: Path | None = None, exclude: Sequence[str] = (), with_code: bool = False) -> Parcel:
    """What lies in `working_dir` without weights, junk, outputs and `exclude`, and this package's own code.

    `exclude`: shell patterns for a name or for a path below `working_dir`. ConfigError where it is too much for Ray.
    """
    files: dict[str, Path | bytes] = {}
    left_out = _LeftOut()
    if working_dir is not None:
        files |= _tree(working_dir, exclude, left_out)
    if SETTINGS_FILE in files:
        raise ConfigError(f"{working_dir} has a {SETTINGS_FILE}, the name under which the settings travel; rename it")
    if with_code:
        files |= {f"amg/{name}": path for name, path in _tree(Path(__file__).parents[1], (), _LeftOut()).items()}
    parcel = Parcel(dict(sorted(files.items())), left_out.lines())
    if parcel.size_bytes > MOST_BYTES:
        raise ConfigError(_too_much(parcel, working_dir))
    return parcel


@dataclass(slots=True)
class _LeftOut:
    weights: int = 0
    weights_bytes: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        weights = f"{self.weights} files of weights ({self.weights_bytes / 1e6:,.0f} MB)"
        rest = [name if count == 1 else f"{count} {name}" for name, count in sorted(self.names.items())]
        return [weights] * bool(self.weights) + rest


def _tree(top: Path, exclude: Sequence[str], left_out: _LeftOut) -> dict[str, Path]:
    """The files below a folder by their POSIX path. What a link points to comes along; a linked folder does not."""
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(top):
        here = PurePosixPath(Path(folder).relative_to(top).as_posix())
        stay = [name for name in folders if _stays(here / name, exclude) or Path(folder, name, PLAN_FILE).is_file()]
        left_out.names.update(stay)
        folders[:] = sorted(set(folders) - set(stay))
        for name in sorted(files):
            path = Path(folder, name)
            if not path.is_file():
                continue
            if _matches(here / name, WEIGHTS):
                left_out.weights += 1
                left_out.weights_bytes += path.stat().st_size
            elif _stays(here / name, exclude):
                left_out.names[name] += 1
            else:
                found[str(here / name)] = path
    return found


def _stays(path: PurePosixPath, exclude: Sequence[str]) -> bool:
    return _matches(path, (*JUNK, *exclude))


def _matches(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, p.rstrip("/")) for p in patterns for text in (path.name, str(path)))


def _too_much(parcel: Parcel, working_dir: Path | None) -> str:
    lines = [f"  {size / 1e6:10,.1f} MB  {name}" for name, size in _largest(parcel)]
    return (
        f"{working_dir} is {parcel.size_bytes / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:,.0f} MB may travel with a job; its"
        " largest folders and files:\n" + "\n".join(lines) + "\nLeave them out with --exclude NAME, or put them into"
        " object storage and name them by URL"
    )


def _largest(parcel: Parcel, count: int = 8) -> Iterator[tuple[str, int]]:
    """Files, and folders at the top as a whole, by size."""
    sizes: Counter[str] = Counter()
    for name, content in parcel.files.items():
        sizes[name] += _size(content)
        if "/" in name:
            sizes[f"{name.partition('/')[0]}/"] += _size(content)
    yield from sizes.most_common(count)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _is_executable(content: Path | bytes) -> bool:
    return not isinstance(content, bytes) and os.access(content, os.X_OK)
