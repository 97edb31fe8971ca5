"""What fewer bits in a part of the model do to the masks: the grounds on which `fast` on a GPU rounds what it rounds.

    python -m tests.bench.rounding [--photos FOLDER] [--weights mobile_sam.pt] [--save docs/gpu.json]

Each variant labels the photos, and its masks are matched one to one with those of float32; F1 counts the pairs whose
IoU is at least 0.9. All on a CPU: the encoder's products are bfloat16 ones; in the decoder every result is rounded as
it is made (`Rounding`), which is what a GPU does that sums in float32. A GPU sums in another order; that changes the
last digits of these numbers and not what they say. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import amg
from amg.geometry import Size
from amg.sam.bfloat16 import round_products
from amg.sam.model import Sam
from amg.sam.shared import SharedImage, decode_shared, share
from amg.sam.tinyvit import ConvNorm
from amg.tensors import Embedding, Workspace
from tests import parity, reference_amg
from tests.bench import options, results
from tests.bench.agreement import Agreement, agree, over_all
from tests.bench.options import Options
from tests.reference_amg import Record

GRID = 16

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """What is done to a float32 encoder in place, and the type that the decoder's results are rounded to."""

    encoder: Callable[[nn.Module], None] | None = None
    decoder_dtype: torch.dtype = torch.float32


class RoundedConvNorm(ConvNorm):
    """The product of a convolution, the batch norm folded in, of bfloat16 numbers; the input's type is given back."""

    rounded_weight: Tensor
    bias_C: Tensor

    def fold(self) -> None:
        weight, bias_C = self.folded()
        self.register_buffer("rounded_weight", weight.detach().bfloat16(), persistent=False)
        self.register_buffer("bias_C", bias_C.detach(), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        conv = self.c
        product = F.conv2d(
            x_NCHW.bfloat16(), self.rounded_weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        return product.to(x_NCHW.dtype) + self.bias_C[:, None, None]


def round_all_products(encoder: nn.Module) -> None:
    """Of the linear layers and of the convolutions."""
    round_products(encoder)
    for layer in encoder.modules():
        if isinstance(layer, ConvNorm):
            layer.__class__ = RoundedConvNorm
            cast(RoundedConvNorm, layer).fold()


VARIANTS: Mapping[str, Variant] = {
    "linear layers bfloat16": Variant(encoder=round_products),
    "linear layers and convolutions bfloat16": Variant(encoder=round_all_products),
    "decoder float16": Variant(decoder_dtype=torch.float16),
    "decoder bfloat16": Variant(decoder_dtype=torch.bfloat16),
    "linear layers bfloat16, decoder float16": Variant(encoder=round_products, decoder_dtype=torch.float16),
    "linear layers and convolutions bfloat16, decoder float16": Variant(
        encoder=round_all_products, decoder_dtype=torch.float16
    ),
}


class Rounding(TorchDispatchMode):
    """Rounds every float32 result to the numbers of a smaller type, in place, as it is made."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            for each in tree_leaves(made):
                if isinstance(each, Tensor) and each.dtype == torch.float32:
                    each.copy_(each.to(self.dtype))
        return made


class RoundedDecoder(Sam):
    """A model whose prompts go through `decode_shared`, every number of it rounded to `dtype`."""

    dtype: torch.dtype = torch.float32

    def prepare(self, embedding: Embedding, *, tokens: int = 2, needed: Size | None = None) -> SharedImage:
        _, no_mask_1DGG = self.prompt_encoder()
        images = embedding.features_NDGG, self.prompt_encoder.grid_encoding(), no_mask_1DGG
        with Rounding(self.dtype):
            return share(self.mask_decoder, *(each.clone() for each in images))

    def decode_tokens(
        self, image: Any, sparse_PKD: Tensor, workspace: Workspace | None = None, *, multimask: bool = True
    ) -> tuple[Tensor, Tensor]:
        with Rounding(self.dtype):
            return decode_shared(
                self.mask_decoder, image, sparse_PKD.clone(), workspace or Workspace(), multimask=multimask
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=known, default=list(VARIANTS), help="some of them, with semicolons; all")
    parser.add_argument("--save", type=Path, help="put the row `rounding` into this file")
    options.add_options(parser)
    parsed = parser.parse_args(arguments)
    told = options.from_arguments(parsed)
    document = results.finished("rounding", row(told, parsed.variants), told.threads)
    for text in lines(document):
        print(text)
    results.save({"rounding": document}, parsed.save)
    print(json.dumps(document, default=reference_amg.plain))
    return 0


def known(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"there is no variant {'; '.join(unknown)}; variants: {'; '.join(VARIANTS)}")
    return names


def row(options: Options, variants: list[str]) -> Row:
    torch.set_num_threads(options.threads)
    settings = {"points_per_side": GRID} | options.settings
    exact = amg.load_sam(options.weights)
    sams = {name: varied(exact, VARIANTS[name]) for name in variants}
    found: dict[str, dict[str, Agreement]] = {name: {} for name in variants}
    for path in parity.photos_in(options.photos):
        pixels_HWC = reference_amg.read_rgb(path)
        wanted = label(exact, pixels_HWC, settings)
        for name, sam in sams.items():
            found[name][path.name] = agree(label(sam, pixels_HWC, settings), wanted)
            print(f"  {path.name}, {name}: {line(found[name][path.name])}", flush=True)
    return {"settings": settings, "variants": {name: summarize(photos) for name, photos in found.items()}}


def varied(exact: Sam, variant: Variant) -> Sam:
    """A copy with the variant's arithmetic."""
    encoder, decoder = copy.deepcopy(exact.image_encoder), copy.deepcopy(exact.mask_decoder)
    if variant.encoder is not None:
        variant.encoder(encoder)
    parts = {"image_encoder": encoder, "prompt_encoder": exact.prompt_encoder, "mask_decoder": decoder}
    if variant.decoder_dtype == torch.float32:
        return Sam(**parts, name=exact.name).eval()
    for parameter in decoder.parameters():
        parameter.data = parameter.to(variant.decoder_dtype).float()
    sam = RoundedDecoder(**parts, name=exact.name)
    sam.dtype = variant.decoder_dtype
    return sam.eval()


def label(sam: Sam, pixels_HWC: Any, settings: dict[str, Any]) -> list[Record]:
    return amg.generate_masks(pixels_HWC, sam, **settings).to_dicts(bbox_style="sa1b")


def summarize(photos: Mapping[str, Agreement]) -> Row:
    total = over_all(photos.values())
    return {
        "photos": {name: asdict(each) | {"f1": each.f1} for name, each in photos.items()},
        "agreement": asdict(total),
        "f1": total.f1,
        "worst_f1": min((each.f1 for each in photos.values()), default=1.0),
        "same_count": sum(each.ours == each.theirs for each in photos.values()),
    }


def lines(row: Row) -> list[str]:
    return [
        f"{name}: F1 {each['f1']:.4f} (worst photo {each['worst_f1']:.4f}), {each['agreement']['ours']} masks for "
        f"{each['agreement']['theirs']}, the same count on {each['same_count']} of {len(each['photos'])}"
        for name, each in row["variants"].items()
    ]


def line(found: Agreement) -> str:
    return f"F1 {found.f1:.4f}, {found.ours} masks for {found.theirs}"


if __name__ == "__main__":
    sys.exit(main())
