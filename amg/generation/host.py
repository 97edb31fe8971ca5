"""Images one after the other, each on all cores; of a model on another device the logits come to the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from amg.config import GenerateSettings, default_points_per_batch
from amg.generation.labeler import Labeler
from amg.generation.memory import Limits, WithinMemory
from amg.generation.search import HostSearch
from amg.lanes import Lanes
from amg.sam.model import Sam
from amg.values import Failure, Image, MaskSet


@dataclass(frozen=True, slots=True)
class OnHost:
    """`room`: how many logits of a crop's candidates are kept."""

    sam: Sam
    settings: GenerateSettings
    room: int
    batch: int = 1

    def one(self, image: Image) -> MaskSet:
        """The masks of one image; raises where it runs out of memory."""
        with self._lanes() as lanes:
            return self._within_memory(lanes).label([image])[0]

    def each(self, items: Iterable[Image | Failure]) -> Iterator[MaskSet | Failure]:
        """A result for each item, which is taken when the one before it is done."""
        with self._lanes() as lanes:
            label = self._within_memory(lanes).label_or_say_why_not
            for item in items:
                result = item if isinstance(item, Failure) else label([item])[0]
                del item  # or a large image would wait for the next one beside it
                yield result

    def _lanes(self) -> Lanes:
        """On a CPU a thread for each core that PyTorch was given; elsewhere one, with work for all of the device."""
        return Lanes(torch.get_num_threads() if self.sam.device.type == "cpu" else 1)

    def _within_memory(self, lanes: Lanes) -> WithinMemory:
        limits = Limits(self.batch, self.settings.points_per_batch or default_points_per_batch(self.sam.device.type))
        search = HostSearch(self.sam, self.settings, self.room, lanes)
        return WithinMemory(Labeler(self.sam, self.settings, search, lanes), limits, remember=False)
