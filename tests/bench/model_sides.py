"""The children that hold our model against transformers': a ViT-B of random weights, the same for both.

A random encoder gives masks that nobody would keep. For mask generation the decoder is therefore MobileSAM's, and it is
fed with MobileSAM's embedding of the photo: the ViT-B encodes the photo, which takes its time, and what it gave is put
aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from tests import parity, reference_amg
from tests.bench.agreement import record
from tests.bench.children import Measured, measure

Job = Mapping[str, Any]

SIDE = 1024
POINTS = 64
CALLS = ("encoder", "masks")


def prepare_vit_b(folder: Path, weights: Path, photo: Path) -> Path:
    """Write transformers' ViT-B with MobileSAM's decoder to `folder`, and MobileSAM's embedding of the photo.

    Returns the file of the embedding.
    """
    from amg.geometry import Size, plan_crops
    from amg.sam.keys import to_transformers
    from amg.sam.processor import to_batch

    model = random_vit_b()
    mobile = to_transformers(torch.load(weights, map_location="cpu", weights_only=True))
    rest = {key: value for key, value in mobile.items() if not key.startswith("vision_encoder.")}
    fit = model.load_state_dict(rest, strict=False)
    left_random = [key for key in fit.missing_keys if not key.startswith("vision_encoder.")]
    assert not left_random and not fit.unexpected_keys, f"the decoder does not fit: {left_random} {fit.unexpected_keys}"
    model.save_pretrained(folder)

    pixels_HWC = reference_amg.read_rgb(photo)
    whole = plan_crops(Size(*pixels_HWC.shape[:2]), n_layers=0, overlap_ratio=0.0)
    features_1DGG = parity.load_ours(weights).encode(to_batch(pixels_HWC, whole)).features_NDGG
    embedding = folder / "embedding.npy"
    np.save(embedding, features_1DGG.numpy())
    return embedding


def random_vit_b() -> Any:
    """Transformers' `SamModel` at its default size, every parameter drawn so that activations stay near one."""
    import transformers

    from amg.sam.load import Uninitialised
    from tests.sam_reference import draw_weights

    transformers.utils.logging.disable_progress_bar()
    with Uninitialised():
        model = transformers.SamModel(transformers.SamConfig())
    draw_weights(model, seed=3)
    return model.eval()


def vit_b_ours(job: Job) -> Measured:
    """`amg.MaskGeneration` on the photo; the result is its masks as records."""
    import amg

    image = PIL.Image.open(job["photo"]).convert("RGB")
    model = amg.SamModel.from_pretrained(job["folder"])
    replace_embedding(model, Path(job["embedding"]))
    generator = amg.MaskGeneration(model)
    tiny = image.resize((48, 32))
    return measure(
        lambda: partial(generator, image, **job["arguments"]),
        warm_up=lambda: generator(tiny, points_per_crop=2, pred_iou_thresh=0.0, stability_score_thresh=0.0),
        to_json=records,
    )


def vit_b_pipeline(job: Job) -> Measured:
    """The `mask-generation` pipeline of transformers on the photo; the result is its masks as records."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    image = PIL.Image.open(job["photo"]).convert("RGB")
    model = transformers.SamModel.from_pretrained(job["folder"]).eval()
    replace_embedding(model, Path(job["embedding"]))
    generator = transformers.pipeline(
        "mask-generation", model=model, image_processor=transformers.SamImageProcessor(), device="cpu"
    )
    return measure(lambda: partial(generator, image, **job["arguments"]), to_json=records)


def replace_embedding(model: Any, embedding: Path) -> None:
    """Let the encoder do its work, then hand on another embedding."""
    features_1DGG = torch.from_numpy(np.load(embedding))

    def hand_on(_module: object, _given: object, output: Any) -> Any:
        assert output.last_hidden_state.shape == features_1DGG.shape
        return type(output)(last_hidden_state=features_1DGG)

    model.vision_encoder.register_forward_hook(hand_on)


def records(outputs: dict[str, Any]) -> list[reference_amg.Record]:
    return [
        record(np.asarray(mask), float(score)) for mask, score in zip(outputs["masks"], outputs["scores"], strict=True)
    ]


def library_ours(job: Job) -> Measured:
    import amg

    return library(job, amg.SamModel)


def library_transformers(job: Job) -> Measured:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return library(job, transformers.SamModel)


def library(job: Job, model_class: Any) -> Measured:
    """`job["call"]` of the model: one image through the encoder, or 64 points on it to masks.

    What it gave goes to the file `job["outputs"]`, for the comparison.
    """
    model = model_class.from_pretrained(job["folder"]).eval()
    work = calls(model)[job["call"]]
    kept: list[Tensor] = []

    def call() -> None:
        with torch.inference_mode():
            kept[:] = [work()]

    measured = measure(lambda: call, warm_up=call, repeats=job["repeats"])
    np.save(job["outputs"], kept[0].numpy())
    return replace(measured, result=list(kept[0].shape))


def calls(model: Any) -> dict[str, Callable[[], Tensor]]:
    """The timed calls, on inputs that are the same for both libraries."""
    generator = torch.Generator().manual_seed(7)
    pixels_13SS = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    features_1DGG = torch.randn(1, 256, SIDE // 16, SIDE // 16, generator=generator)
    points_1P12 = torch.rand(1, POINTS, 1, 2, generator=generator) * SIDE
    return dict(
        zip(
            CALLS,
            (
                lambda: model.get_image_embeddings(pixels_13SS),
                lambda: model(image_embeddings=features_1DGG, input_points=points_1P12).pred_masks,
            ),
            strict=True,
        )
    )
