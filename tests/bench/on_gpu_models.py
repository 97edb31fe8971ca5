"""The models of the benchmark on a GPU, the same for three libraries: a file of weights, and what each makes of it.

`vit_t` is MobileSAM. The others have an encoder of random weights, which gives masks that nobody would keep; so their
decoder is MobileSAM's, and it is fed with MobileSAM's embedding of the same pixels. The encoder works all the same, and
what it gave is put aside. MobileSAM's embedding is made once, while the caller warms up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.geometry import Box, Size
from amg.sam import load
from amg.sam.config import ARCHITECTURES, Architecture, VitConfig
from amg.sam.keys import to_transformers
from amg.sam.model import Sam, build_sam
from amg.tensors import Batch, Embedding
from tests import reference_amg

TINY = Architecture("tiny", VitConfig(width=32, depth=2, heads=2, global_blocks=(1,)))
"""For a run on a CPU that shows that all of it works."""

MODELS: Mapping[str, Architecture] = {**ARCHITECTURES, "tiny": TINY}
WITH_REAL_WEIGHTS = "vit_t"

Job = Mapping[str, Any]


def write_weights(name: str, mobile: Path, target: Path) -> Path:
    """A weights file of the original package: of random numbers for the encoder, MobileSAM's for the rest."""
    from tests.sam_reference import draw_weights

    if name == WITH_REAL_WEIGHTS:
        return mobile
    with load.Uninitialised():
        sam = build_sam(MODELS[name])
    drawn = draw_weights(sam.image_encoder, seed=3)
    given = load.read_original(mobile)
    rest = {key: value for key, value in given.items() if not key.startswith("image_encoder.")}
    torch.save({**{f"image_encoder.{key}": value for key, value in drawn.items()}, **rest}, target)
    return target


class FedSam(Sam):
    """A `Sam` that hands on another model's embeddings, kept by crop: for photos that are all the same."""

    teacher: Sam
    kept: dict[tuple[Box, Size], Tensor]

    def encode(self, batch: Batch) -> Embedding:
        super().encode(batch)
        found = []
        for n, key in enumerate((crop.box, size) for crop, size in zip(batch.crops, batch.resized, strict=True)):
            if key not in self.kept:
                one = Batch(batch.pixels_N3SS[n : n + 1], batch.crops[n : n + 1], batch.resized[n : n + 1])
                self.kept[key] = self.teacher.encode(one).features_NDGG
            found.append(self.kept[key])
        return Embedding(torch.cat(found), batch.crops, batch.resized)


class HandOn:
    """The same for a module of another library that encodes one crop after the other; `start` before each photo."""

    def __init__(self, teacher: Sam) -> None:
        self._teacher, self._kept, self._next = teacher, list[Tensor](), 0

    def start(self) -> None:
        self._next = 0

    def __call__(self, _module: object, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if self._next == len(self._kept):
            pixels_13SS = given[0] if given else named["pixel_values"]
            self._kept.append(self._teacher.image_encoder(pixels_13SS))
        features_1DGG = self._kept[self._next]
        self._next += 1
        if isinstance(output, Tensor):
            return features_1DGG
        return type(output)(last_hidden_state=features_1DGG)


def ours(job: Job) -> Sam:
    """Our model on the job's device, with its precision and its kernels; fed where its encoder is random."""
    device = torch.device(job["device"])
    sam = opened(job, device)
    if job["model"] != WITH_REAL_WEIGHTS:
        sam.__class__ = FedSam
        sam.teacher, sam.kept = teacher(job), {}
    return sam


def opened(job: Job, device: torch.device) -> Sam:
    """As from a file; the tiny one, which is no published architecture, by PyTorch's operators alone."""
    if job["model"] != TINY.name:
        return load.load_sam(job["file"], device=device, precision=job["precision"], kernels=job["kernels"])
    sam = build_sam(TINY)
    sam.load_state_dict(torch.load(job["file"], weights_only=True))
    if job["precision"] == "fast":
        load.use_fewer_bits(sam, device)
    return sam.to(device)


def teacher(job: Job) -> Sam:
    return load.load_sam(job["weights"], device=job["device"])


def segment_anything(job: Job) -> tuple[Any, Callable[[], None]]:
    """The original package's model, and what is called before each photo."""
    if job["model"] == WITH_REAL_WEIGHTS:
        return reference_amg.load_reference(Path(job["file"])).to(job["device"]), lambda: None
    from segment_anything.build_sam import _build_sam

    encoder = MODELS[job["model"]].encoder
    assert isinstance(encoder, VitConfig)
    shape = encoder.width, encoder.depth, encoder.heads, list(encoder.global_blocks)
    model = _build_sam(*shape, checkpoint=job["file"]).to(job["device"])
    hand_on = HandOn(teacher(job))
    model.image_encoder.register_forward_hook(hand_on, with_kwargs=True)
    return model, hand_on.start


def transformers(job: Job) -> tuple[Any, Callable[[], None]]:
    """Transformers' model, and what is called before each photo. It has no MobileSAM."""
    import transformers as library

    library.utils.logging.disable_progress_bar()
    encoder = MODELS[job["model"]].encoder
    assert isinstance(encoder, VitConfig), f"transformers has no encoder for {job['model']}"
    vision = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "global_attn_indexes": list(encoder.global_blocks),
        "mlp_dim": encoder.width * encoder.mlp_ratio,
    }
    with load.Uninitialised():
        model = library.SamModel(library.SamConfig(vision_config=vision))
    fit = model.load_state_dict(to_transformers(torch.load(job["file"], weights_only=True)), strict=False)
    assert not fit.unexpected_keys, fit.unexpected_keys
    assert all("positional_embedding" in key for key in fit.missing_keys), fit.missing_keys
    hand_on = HandOn(teacher(job))
    model.vision_encoder.register_forward_hook(hand_on, with_kwargs=True)
    return model.to(job["device"]).eval(), hand_on.start
