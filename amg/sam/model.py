"""`Sam`: an image encoder, a prompt encoder and a mask decoder, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amg.errors import ConfigError
from amg.geometry import Size
from amg.sam.config import Architecture, TinyVitConfig
from amg.sam.decoder import MaskDecoder
from amg.sam.factored import decode_factored
from amg.sam.factored_image import FactoredImage, can_factor, factor
from amg.sam.fused import FusedImage, can_fuse, decode_fused, in_type
from amg.sam.precision import Kernels
from amg.sam.prompt import FOREGROUND, PromptEncoder, close
from amg.sam.shared import SharedImage, decode_shared, share
from amg.sam.tf32 import in_exact_float32
from amg.sam.tinyvit import TinyVit
from amg.sam.vit import Vit
from amg.tensors import Batch, Embedding, MaskLogits, Points, Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What prompts of any kind give: `logits_PMLL` float32 over the padded model square, `iou_PM` not clamped."""

    logits_PMLL: Tensor
    iou_PM: Tensor


PreparedImage = FactoredImage | FusedImage | SharedImage


class Sam(nn.Module):
    """The three parts, finished and passed in; `state_dict` has the keys of the original checkpoints.

    `name` is the architecture, `weights_digest` the sha256 of the file the weights came from (None: from no file),
    `precision` says in words which arithmetic was chosen and why; `kernels`, what works on masks and prompts on a GPU,
    `fused_in` the type of the operands of the products in those kernels.
    """

    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        name: str = "custom",
        weights_digest: str | None = None,
        precision: str = "as built",
        kernels: Kernels = "torch",
        fused_in: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.name = name
        self.weights_digest = weights_digest
        self.precision = precision
        self.kernels: Kernels = kernels
        self.fused_in = fused_in

    @property
    def device(self) -> torch.device:
        return self.mask_decoder.iou_token.weight.device

    @property
    def side(self) -> int:
        """The side S of the model's square input."""
        return self.prompt_encoder.side

    @torch.no_grad()
    @in_exact_float32
    def encode(self, batch: Batch) -> Embedding:
        """The image embedding of every crop.

        On a CPU a TinyViT leaves the padding out; on a GPU the shape of a batch would then change its numbers.
        """
        encoder, pixels_N3SS = self.image_encoder, batch.pixels_N3SS
        if isinstance(encoder, TinyVit) and pixels_N3SS.device.type == "cpu":
            covered = Size(max(size.height for size in batch.resized), max(size.width for size in batch.resized))
            features_NDGG = encoder(pixels_N3SS, covered)
        else:
            features_NDGG = encoder(pixels_N3SS)
        return Embedding(features_NDGG, batch.crops, batch.resized)

    @torch.no_grad()
    @in_exact_float32
    def prepare(self, embedding: Embedding, *, tokens: int = 2, needed: Size | None = None) -> PreparedImage:
        """What all prompts on one crop share; made once per crop, about the cost of some points.

        `tokens`: how many each prompt has, a point being two with its padding. `needed`: rows and columns of logits
        that will be looked at; what `decode` leaves in the others is undefined.
        """
        assert len(embedding) == 1, f"{len(embedding)} crops: take one, `embedding[n]`"
        _, no_mask_1DGG = self.prompt_encoder()
        features_1DGG, position_1DGG, no_mask_1DGG = self._for_decoder(
            embedding.features_NDGG, self.prompt_encoder.grid_encoding(), no_mask_1DGG
        )
        if self.kernels == "torch" and can_factor(self.mask_decoder, features_1DGG, tokens):
            return factor(self.mask_decoder, features_1DGG, position_1DGG, no_mask_1DGG, needed)
        shared = share(self.mask_decoder, features_1DGG, position_1DGG, no_mask_1DGG)
        if self.kernels == "triton" and can_fuse(self.mask_decoder, tokens):
            return FusedImage(in_type(shared, self.fused_in), needed)
        return shared

    @torch.no_grad()
    @in_exact_float32
    def decode(self, image: PreparedImage, points: Points, workspace: Workspace | None = None) -> MaskLogits:
        """Three masks for each point, as one foreground click; fastest in small chunks (16 points on a CPU).

        With the same `workspace` for one chunk after the other its memory is taken from the system once; the logits lie
        in it: the next `decode` overwrites them.
        """
        unit_P12 = self.prompt_encoder.to_unit(points.xy_P2[:, None]).to(self.device)
        labels_P1 = torch.full((len(points), 1), FOREGROUND, device=self.device)
        sparse_P2D = self.prompt_encoder.embed_points(*close(unit_P12, labels_P1))
        logits_PMLL, iou_PM = self.decode_tokens(image, sparse_P2D, workspace)
        return MaskLogits(logits_PMLL.float(), iou_PM.float(), points)

    @torch.no_grad()
    @in_exact_float32
    def decode_tokens(
        self, image: PreparedImage, sparse_PKD: Tensor, workspace: Workspace | None = None, *, multimask: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As `decode`, for prompts that are embedded already, without masks: logits (P, M, L, L) and IoU (P, M)."""
        workspace = workspace or Workspace()
        (sparse_PKD,) = self._for_decoder(sparse_PKD)
        if isinstance(image, FactoredImage):
            return decode_factored(self.mask_decoder, image, sparse_PKD, workspace, multimask=multimask)
        if isinstance(image, FusedImage):
            return decode_fused(
                self.mask_decoder, image.shared, sparse_PKD, workspace, multimask=multimask, needed=image.needed
            )
        return decode_shared(self.mask_decoder, image, sparse_PKD, workspace, multimask=multimask)

    @torch.no_grad()
    @in_exact_float32
    def predict(
        self,
        embedding: Embedding,
        *,
        xy_PK2: Tensor | None = None,
        labels_PK: Tensor | None = None,
        boxes_P4: Tensor | None = None,
        masks_P1LL: Tensor | None = None,
        multimask: bool = True,
    ) -> Prediction:
        """Masks for prompts of any kind on one crop: points with labels (1, 0, -1), boxes (x0, y0, x1, y1), masks.

        Coordinates are in the model frame, masks are logits of an earlier prediction. Three masks, or the single one.
        """
        assert len(embedding) == 1, f"{len(embedding)} crops: take one, `embedding[n]`"
        sparse_PKD, dense_PDGG = self.prompt_encoder(xy_PK2, labels_PK, boxes_P4, masks_P1LL)
        position_1DGG = self.prompt_encoder.grid_encoding()
        given = self._for_decoder(embedding.features_NDGG, position_1DGG, sparse_PKD, dense_PDGG)
        logits_PMLL, iou_PM = self.mask_decoder(*given, multimask=multimask)
        return Prediction(logits_PMLL.float(), iou_PM.float())

    def _for_decoder(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the type of the mask decoder, which may have fewer bits than what comes before it."""
        dtype = self.mask_decoder.iou_token.weight.dtype
        return tuple(tensor.to(dtype) for tensor in tensors)


def check_sam(sam: object) -> None:
    """ConfigError for what is no model: its name, say, or another package's."""
    if not all(hasattr(sam, name) for name in ("device", "encode", "prepare", "decode")):
        kind = f"{type(sam).__module__}.{type(sam).__qualname__}".removeprefix("builtins.")
        raise ConfigError(
            f"sam: a {kind}; wanted a model, as amg.load_sam('mobile-sam') or amg.SamModel.from_pretrained gives it"
        )


def build_sam(config: Architecture) -> Sam:
    """A model of this architecture in evaluation mode, its weights not loaded yet."""
    if isinstance(config.encoder, TinyVitConfig):
        image_encoder = TinyVit(config.encoder, channels=config.channels)
    else:
        image_encoder = Vit(config.encoder, side=config.side, channels=config.channels)
    prompt_encoder = PromptEncoder(
        channels=config.channels, mask_channels=config.mask_channels, side=config.side, grid=config.grid
    )
    mask_decoder = MaskDecoder(config.decoder, channels=config.channels)
    sam = Sam(image_encoder=image_encoder, prompt_encoder=prompt_encoder, mask_decoder=mask_decoder, name=config.name)
    return sam.eval()
