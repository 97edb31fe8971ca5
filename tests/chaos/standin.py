"""A job without torch: everything is the real thing but the network, whose masks are drawn from the pixels' checksum.

What an image is called says what it does to the process that touches it: `segv-in-model`, `segv-in-read`, `hang`,
`killed` (as by the kernel when memory runs out), `eats-memory` (a MemoryError, which is no crash). A file of the same
name with the ending `.healed` beside it takes that away.
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import PIL.Image

from amg import rle
from amg.config import Config, RunSettings, masks_depend_on
from amg.errors import StorageError
from amg.geometry import plan_crops
from amg.run.job import Hands
from amg.run.local import here
from amg.run.plan import Plan
from amg.run.progress import Observer, Summary
from amg.run.runner import Asked, Settled, run_with
from amg.run.shard import Label, OpenLabel, Result
from amg.sources.inputs import open_source
from amg.sources.source import Source
from amg.values import Failure, Funnel, Image, ImageRef, MaskSet, Status

DIGEST = "0" * 64
SECONDS_PER_IMAGE = "AMG_CHAOS_SECONDS"
POISON = tuple(
    f"{number:04d}-{kind}"
    for number, kind in enumerate(("segv-in-model", "segv-in-read", "killed", "hang", "eats-memory-in-read"))
)
"""One of each kind, next to each other where the shards are of ten."""


def make_photos(folder: Path, count: int, *, names: Sequence[str] = ()) -> Path:
    """`count` tiny images, one in ten of them no image at all, and one more for each of `names`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for name in [f"{n:04d}" for n in range(count)] + list(names):
        file = folder / f"{name}.png"
        if name.endswith("5") and name.isdigit():
            file.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        else:
            PIL.Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(file)
    return folder


class StandIn:
    """A runner of processes of this machine, without torch: a stand-in for the network, and no device to settle."""

    def settle(self, config: Config, plan: Plan | None) -> Settled:
        depends_on = masks_depend_on(config, weights_digest=DIGEST, standin=1)
        devices = ["cpu"] * (config.run.workers or 1)
        return Settled(config, devices, depends_on, config.shards.images_per_shard or 2, 0.02)

    def hands(self, settled: Settled, output: str, *, may_end: bool = False) -> Hands:
        return here(stand_in(), settled, may_end=may_end)


class StandInOnRay(StandIn):
    """The same with actors, on CPUs."""

    def hands(self, settled: Settled, output: str, *, may_end: bool = False) -> Hands:
        from amg.run.on_ray import actors

        return actors(stand_in(), settled, output)


@contextmanager
def on_ray(run: RunSettings) -> Iterator[StandInOnRay]:
    """`amg.run.on_ray.on_ray` with the stand-in."""
    from amg.run.ray_session import connected

    with connected(run):
        yield StandInOnRay()


def run_local(
    inputs: Sequence[str], out: str, config: Config, *, observer: Observer, **asked: Unpack[Asked]
) -> Summary:
    return run_with(StandIn(), open_poisonous(*inputs), out, config, observer=observer, **asked)


def run_on_ray(
    inputs: Sequence[str], out: str, config: Config, *, observer: Observer, **asked: Unpack[Asked]
) -> Summary:
    with on_ray(config.run) as runner:
        return run_with(runner, open_poisonous(*inputs), out, config, observer=observer, **asked)


def stand_in() -> OpenLabel:
    """What takes the network's place."""
    return partial(open_label, float(os.environ.get(SECONDS_PER_IMAGE, "0.02")))


def open_label(seconds_per_image: float, device: str) -> Label:
    assert device == "cpu"

    def label(images: Iterable[Image | Failure]) -> Iterator[Result]:
        for image in images:
            yield image if isinstance(image, Failure) else _label(image, seconds_per_image)

    return label


def notes_its_device(folder: Path, device: str) -> Label:
    """Leaves a file `DEVICE@PROCESS` for each worker that was started."""
    (folder / f"{device}@{os.getpid()}").touch()
    return open_label(0.02, "cpu")


def dies_at_once(device: str) -> Label:
    os._exit(3)


def breaks(device: str) -> Label:
    raise StorageError(f"no room on {device}")


def stops_at_the_end(device: str) -> Label:
    """Labels all images of a shard, and dies before it can be written."""
    label = open_label(0.0, device)

    def wrapped(images: Iterable[Image | Failure]) -> Iterator[Result]:
        yield from label(images)
        os._exit(4)

    return wrapped


def _label(image: Image, seconds: float) -> Result:
    time.sleep(seconds)
    if Path(image.ref.uri).with_suffix(".healed").exists():
        return draw(image, seconds)
    if "segv-in-model" in image.ref.key:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "killed" in image.ref.key:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in image.ref.key:
        time.sleep(3600)
    if "eats-memory" in image.ref.key:
        return Failure(image.ref, Status.OUT_OF_MEMORY, "no memory left")
    return draw(image, seconds)


def draw(image: Image, seconds: float) -> MaskSet:
    """Up to five masks, the same for the same pixels."""
    rng = np.random.default_rng(zlib.crc32(image.pixels_HWC.tobytes()))
    count, pixels = int(rng.integers(0, 6)), image.size.height * image.size.width
    starts = rng.integers(1, pixels // 2, count).astype(np.uint32)
    runs = np.stack([starts, np.full(count, 7, np.uint32), pixels - 7 - starts], 1).astype(np.uint32)
    columns = np.arange(count, dtype=np.int32)
    return MaskSet(
        ref=image.ref,
        size=image.size,
        original=image.original,
        orientation=image.orientation,
        crops=tuple(plan_crops(image.size, n_layers=0, overlap_ratio=0.0)),
        runs_R=runs.reshape(-1),
        offsets_K1=np.arange(0, 3 * count + 1, 3, dtype=np.int64),
        box_K4=np.array([rle.box(each, image.size.height) for each in runs], np.int32).reshape(count, 4),
        area_K=np.full(count, 7, np.int64),
        predicted_iou_K=rng.random(count).astype(np.float32),
        stability_K=rng.random(count).astype(np.float32),
        point_K2=rng.random((count, 2)),
        crop_K=np.zeros(count, np.int32),
        point_index_K=columns,
        mask_index_K=np.zeros(count, np.int8),
        changed_K=np.zeros(count, np.bool_),
        funnel=Funnel(candidates=count, kept=count),
        seconds={"encode": seconds},
    )


@dataclass(frozen=True)
class PoisonousSource:
    """A source whose decoder dies of some files: it does so where the file is read."""

    source: Source

    def refs(self, **reporter: object) -> Iterator[ImageRef]:
        return self.source.refs(**reporter)  # type: ignore[arg-type]

    def read(self, ref: ImageRef) -> bytes | Failure:
        if "segv-in-read" in ref.key:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "stuck-in-read" in ref.key:
            time.sleep(3600)
        if "eats-memory-in-read" in ref.key:
            raise MemoryError
        return self.source.read(ref)


def open_poisonous(*inputs: str) -> PoisonousSource:
    return PoisonousSource(open_source(*inputs))
