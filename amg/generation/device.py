"""Images on a GPU: a few under way at once, so that it has work while the host waits, cuts, draws and encodes.

Each thread takes a group of images whose crops share batches of the encoder, and has a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from amg.config import GenerateSettings, default_points_per_batch
from amg.generation.labeler import Labeler
from amg.generation.memory import Limits, WithinMemory
from amg.generation.search import DeviceSearch
from amg.lanes import Lanes
from amg.masks.on_device import device_kernels
from amg.sam.model import Sam
from amg.streams import Busy, Streams
from amg.tensors import Workspace
from amg.values import Failure, Image, MaskSet

GROUPS = 3
"""One that is read and cut, one on the GPU, one that is drawn."""

GROUP_BYTES = 64 * 2**20
"""Pixels after which a group is large enough, so that large images wait alone."""


@dataclass(frozen=True, slots=True)
class OnDevice:
    """`room`: how many logits of a crop's candidates are kept. `batch`: crops the encoder takes at once."""

    sam: Sam
    settings: GenerateSettings
    room: int
    batch: int

    def one(self, image: Image) -> MaskSet:
        """The masks of one image; raises where it runs out of memory."""
        with Streams(self.sam.device).own():
            return self._within_memory().label([image])[0]

    def each(self, items: Iterable[Image | Failure]) -> Iterator[MaskSet | Failure]:
        """A result for each item, in order; some items are taken before the results of those before them."""
        label, streams = self._within_memory().label_or_say_why_not, Streams(self.sam.device)

        def label_group(group: Sequence[Image | Failure], _: Workspace) -> list[MaskSet | Failure]:
            images = [item for item in group if isinstance(item, Image)]
            with streams.own():
                labeled = iter(label(images) if images else [])
            return [next(labeled) if isinstance(item, Image) else item for item in group]

        with Lanes(GROUPS) as lanes:
            for results in lanes.stream(label_group, _groups(items, self.batch)):
                yield from results

    def _within_memory(self) -> WithinMemory:
        chunk = self.settings.points_per_batch or default_points_per_batch(self.sam.device.type)
        lanes, busy, kernels = Lanes(1), Busy(self.sam.device), device_kernels(self.sam.kernels)
        search = DeviceSearch(self.sam, self.settings, self.room, lanes, busy, kernels)
        labeler = Labeler(self.sam, self.settings, search, lanes, busy, kernels)
        return WithinMemory(labeler, Limits(self.batch, chunk), remember=True)


def _groups(items: Iterable[Image | Failure], size: int) -> Iterator[list[Image | Failure]]:
    """So many items each; fewer where they are large, and at the end."""
    group: list[Image | Failure] = []
    for item in items:
        group.append(item)
        if len(group) >= size or sum(i.pixels_HWC.nbytes for i in group if isinstance(i, Image)) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group
