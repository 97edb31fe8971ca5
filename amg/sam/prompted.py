"""Masks for checked prompts on image embeddings: by the plain decoder, or faster by what prompts of one image share.

Letters as in `model_inputs.py`; D channels of the embedding, G its side, M masks of a prompt, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from amg.config import default_points_per_batch
from amg.errors import ConfigError
from amg.geometry import Box, Crop, Size
from amg.lanes import Lanes
from amg.sam.decoder import MaskDecoder
from amg.sam.model import Sam
from amg.sam.model_inputs import Prompts
from amg.tensors import Embedding, Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """`answers`, if they were wanted: what the image tokens take from the prompt's in each block, (X, 1, G * G, D)."""

    logits_NPMLL: Tensor
    iou_NPM: Tensor
    answers: tuple[Tensor, ...] | None = None


def decode(
    sam: Sam,
    features_NDGG: Tensor,
    prompts: Prompts,
    *,
    multimask: bool,
    similarity: Tensor | None = None,
    target: Tensor | None = None,
    record: bool = False,
) -> Decoded:
    """Fast, by what the prompts of an image share, where that is possible; else plainly, and gradients flow.

    `similarity`, `target`: see `SamModel.forward`. `record`: whether answers are wanted.
    """
    if similarity is None and target is None and not record and _may_decode_together(sam, prompts):
        return Decoded(*_decode_together(sam, features_NDGG, prompts, multimask=multimask))
    with _recorded_answers(sam.mask_decoder if record else None) as answers:
        found = _decode_plainly(sam, features_NDGG, prompts, multimask=multimask, similarity=similarity, target=target)
    return Decoded(*found, tuple(answers) if record else None)


def _decode_plainly(
    sam: Sam,
    features_NDGG: Tensor,
    prompts: Prompts,
    *,
    multimask: bool,
    similarity: Tensor | None,
    target: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, P, M, L, L) and IoU (N, P, M)."""
    n, p = prompts.images, prompts.per_image
    sparse_XKD, dense_YDGG = embed(sam, prompts)
    sparse_XKD = sparse_XKD.expand(n * p, -1, -1)
    logits_XMLL, iou_XM = sam.mask_decoder(
        features_NDGG if len(features_NDGG) == n * p else features_NDGG.repeat_interleave(p, 0),
        sam.prompt_encoder.grid_encoding(),
        sparse_XKD,
        dense_YDGG if len(dense_YDGG) in (1, n * p) else dense_YDGG.repeat_interleave(p, 0),
        multimask=multimask,
        similarity=similarity,
        target=None if target is None else _for_tokens(target, n, p, sam.mask_decoder.tokens(sparse_XKD[:1])),
    )
    return logits_XMLL.unflatten(0, (n, p)), iou_XM.unflatten(0, (n, p))


@torch.no_grad()
def _decode_together(sam: Sam, features_NDGG: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
    """As `_decode_plainly` for prompts of points and boxes, in a fraction of its time and memory; without gradients."""
    n, p = prompts.images, prompts.per_image
    sparse_XKD, _ = embed(sam, prompts)
    sparse_NPKD = sparse_XKD.expand(n * p, -1, -1).unflatten(0, (n, p))
    whole = Crop(Box(0, 0, sam.side, sam.side), layer=0, index=0)
    embedding = Embedding(features_NDGG, (whole,) * n, (Size(sam.side, sam.side),) * n)
    cores = torch.get_num_threads() if sam.device.type == "cpu" else 1
    chunk = max(1, min(default_points_per_batch(sam.device.type), -(-p // cores)))
    with Lanes(cores if p > chunk else 1) as lanes:
        found = [_decode_image(sam, embedding[i], sparse_NPKD[i].split(chunk), lanes, multimask) for i in range(n)]
    return torch.stack([logits for logits, _ in found]), torch.stack([iou for _, iou in found])


def _decode_image(
    sam: Sam, embedding: Embedding, chunks: Sequence[Tensor], lanes: Lanes, multimask: bool
) -> tuple[Tensor, Tensor]:
    prepared = sam.prepare(embedding, tokens=chunks[0].shape[1])

    def decode(sparse_CKD: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
        logits_CMLL, iou_CM = sam.decode_tokens(prepared, sparse_CKD, workspace, multimask=multimask)
        return logits_CMLL.clone(), iou_CM  # the next chunk is written to the same place

    logits, ious = zip(*lanes.map(decode, chunks), strict=True)
    return torch.cat(logits), torch.cat(ious)


def _may_decode_together(sam: Sam, prompts: Prompts) -> bool:
    """Not where gradients are wanted or a mask is given, nor where autocast or a compiler sees to the arithmetic."""
    decoder = sam.mask_decoder
    compiled = torch.compiler.is_compiling() or not isinstance(decoder, MaskDecoder) or decoder._compiled_call_impl
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled(sam.device.type) or compiled
    return prompts.masks_Y1LL is None and not plain


def embed(sam: Sam, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Tokens (X, K, D), or (1, 0, D) where there are none; what masks add, (1 or Y, D, G, G)."""
    masks = prompts.masks_Y1LL
    dtype = sam.mask_decoder.iou_token.weight.dtype
    masks = None if masks is None else masks.to(dtype)
    return sam.prompt_encoder(prompts.xy_XK2, prompts.labels_XK, prompts.boxes_X4, masks)


@contextmanager
def _recorded_answers(decoder: MaskDecoder | None) -> Iterator[list[Tensor]]:
    """Collects what the image tokens take from the prompt's in each block of a decoder, if one is given."""
    answers: list[Tensor] = []
    blocks = [] if decoder is None else decoder.transformer.blocks
    hooks = [
        block.cross_attn_image_to_token.register_forward_hook(
            lambda _, args, told_XID: answers.append(told_XID[:, None])
        )
        for block in blocks
    ]
    try:
        yield answers
    finally:
        for hook in hooks:
            hook.remove()


def _for_tokens(target: Tensor, n: int, p: int, tokens_1TD: Tensor) -> Tensor:
    wanted = (n, p, *tokens_1TD.shape[1:])
    try:
        return target.to(tokens_1TD.dtype).broadcast_to(wanted).flatten(0, 1)
    except RuntimeError as error:
        raise ConfigError(
            f"target_embedding: shape {tuple(target.shape)}; wanted {wanted} (images, prompts, tokens, channels), or"
            " what broadcasts to it"
        ) from error
