"""`sam-amg predict`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from amg.review.prediction import Answer, Prompt, Written
    from amg.sam.model import Sam
    from amg.values import Image


@click.command(
    epilog="""\b
Examples:
  sam-amg predict car.png --point 450,600 --out car
  sam-amg predict car.png --point 450,600 --point 620,410,0 --out car
  sam-amg predict car.png --box 75,275,1725,850 --box 80,20,300,400 --out cars
  sam-amg predict car.png --box 75,275,1725,850 --point 500,700,0 --out car --overwrite
  sam-amg predict car.png --point 450,600 --out car --json | jq '.objects[].masks[].predicted_iou'"""
)
@click.argument("image", metavar="IMAGE", type=click.Path())
@click.option("--point", "points", multiple=True, metavar="X,Y[,LABEL]", help="A point; may be repeated.")
@click.option("--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1", help="A box; may be repeated.")
@click.option("-o", "--out", required=True, metavar="FOLDER", type=click.Path(), help="Folder to make.")
@click.option("--separate", is_flag=True, help="Each point is an object of its own.")
@click.option(
    "--multimask/--single",
    default=None,
    help="Three masks for each object, or one.  [default: three for a point alone, else one]",
)
@click.option(
    "--weights",
    default="mobile-sam",
    show_default=True,
    metavar="NAME|PATH",
    help="Known weights (`sam-amg weights list`), a checkpoint, a folder or a name on the hub.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="cpu, cuda, cuda:N, mps or auto: cuda where there is one.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier prediction in FOLDER.")
@click.option("--quiet", is_flag=True, help="No summary.")
@click.option("--json", "as_json", is_flag=True, help="Print prediction.json as one line of JSON on stdout.")
def predict(
    image: str,
    points: Sequence[str],
    boxes: Sequence[str],
    out: str,
    separate: bool,
    multimask: bool | None,
    weights: str,
    device: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Ask for the masks of objects in one image, by points and boxes on them.

    Places are pixels of the upright image, x to the right and y down, from its upper left corner. A point's label is 1
    where the point lies on the object (the default) and 0 where it lies beside it.

    \b
    Points alone     all together tell of one object; with --separate each of its own
    Boxes            each box is an object of its own
    Boxes and points a single box and all points tell of one object; of several boxes,
                     a point tells of those it lies in

    A point alone may mean a thing, a part of it or a part of that: the model answers with three masks. Other prompts
    are clear enough for one; the model has an output of its own for it.

    \b
    FOLDER/mask-I-M.png     mask M of object I, 0 and 255
    FOLDER/prediction.json  prompts; of each mask RLE as in COCO, area, box, predicted IoU
    FOLDER/overlay.png      masks and prompts over the image, a panel for each M
    """
    from amg.cli.prompts import parse_box, parse_point, prompts_of
    from amg.review.prediction import refuse_taken, write_prediction

    wanted_points, wanted_boxes = [parse_point(text) for text in points], [parse_box(text) for text in boxes]
    refuse_taken(out, overwrite=overwrite)
    picture = _read(image)
    prompts = prompts_of(wanted_points, wanted_boxes, size=picture.size, separate=separate)
    if multimask is None:
        multimask = all(prompt.box is None and len(prompt.points) == 1 for prompt in prompts)

    sam = _load(weights, device)
    answers = _answers(sam, picture, prompts, multimask=multimask)
    model = {"weights": weights, "architecture": sam.name, "sha256": sam.weights_digest}
    written = write_prediction(
        out, picture, answers, about={"model": model, "multimask": multimask}, overwrite=overwrite
    )
    if as_json:
        click.echo(json.dumps(written.record))
    elif not quiet:
        _tell(written)


def _read(image: str) -> Image:
    """The upright picture; SourceError where it is not there or is none."""
    from amg.decode import decode
    from amg.errors import SourceError
    from amg.sources.paths import to_text
    from amg.sources.read import Reader
    from amg.storage.url import is_remote
    from amg.values import Failure, ImageRef

    ref = ImageRef(row=0, key=Path(image).name, uri=to_text(os.fsencode(image)) if is_remote(image) else image)
    try:
        data = Reader().read(ref) if is_remote(image) else Path(image).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {image}: {error.strerror or error}; wanted one image file") from error
    if isinstance(data, Failure):
        raise SourceError(f"cannot read {image}: {data.reason}; wanted one image file")
    picture = decode(ref, data)
    if isinstance(picture, Failure):
        raise SourceError(f"{image} is no image that can be used ({picture.status}): {picture.reason}")
    return picture


def _load(weights: str, device: str) -> Sam:
    """A folder and a hub's name with its slash go to `SamModel`; of other names `load_sam` knows the nearest right."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if Path(weights).is_dir() or ("/" in weights and not Path(weights).is_file()):
        from amg.sam.sam_model import SamModel

        return SamModel.from_pretrained(weights, device_map=device)
    from amg.sam.load import load_sam

    return load_sam(weights, device=device)


def _answers(sam: Sam, picture: Image, prompts: Sequence[Prompt], *, multimask: bool) -> list[Answer]:
    """The image is encoded once; then one prompt after the other."""
    from amg.review.prediction import Answer
    from amg.sam.predictor import Predictor

    predictor = Predictor(sam)
    predictor.set_image(picture.pixels_HWC)
    answers = []
    for prompt in prompts:
        masks_MHW, iou_M, _ = predictor.predict(
            [[x, y] for x, y, _ in prompt.points] or None,
            [label for *_, label in prompt.points] or None,
            prompt.box,
            multimask_output=multimask,
        )
        answers.append(Answer(prompt, masks_MHW, iou_M))
    return answers


def _tell(written: Written) -> None:
    for number, each in enumerate(written.record["objects"]):
        for mask in each["masks"]:
            area, iou = f"{mask['area']:,} pixels", f"predicted IoU {mask['predicted_iou']:.3f}"
            click.echo(f"object {number}  {mask['file']}  {area}, {iou}")
    click.echo(f"overlay   {written.overlay}")
    click.echo(f"record    {written.record_file}")
