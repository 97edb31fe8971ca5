"""The overlay of a prediction: a panel for each of the model's masks, the prompts drawn where they were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from amg import rle
from amg.geometry import Size
from amg.review.colours import HUES, palette
from amg.review.overlay import DrawnMask, blend, paint, scale_to_fit

if TYPE_CHECKING:
    from amg.review.prediction import Answer, Prompt

MAX_SIDE = 1024
GAP = 8
SMOOTH = 3
"""Markers are drawn this much larger and made small again, which smooths their edges."""

PAPER, INK = (255, 255, 255), (32, 32, 32)
LABEL_COLOURS = {1: (22, 160, 74), 0: (214, 40, 40)}
BOX_COLOUR = (255, 196, 0)
FIRST_HUE, HUE_STEP = 7, 4
"""A single object is blue, which few things are; the next ones go round the wheel in steps that visit every hue."""


def overlay(pixels_HWC: NDArray[np.uint8], answers: Sequence[Answer]) -> NDArray[np.uint8]:
    """Side by side, panel m with mask m of every object; a caption below tells the predicted IoU of a single object.

    With several objects, each prompt carries the object's number.
    """
    size = Size(*pixels_HWC.shape[:2])
    shown = scale_to_fit(size, MAX_SIDE)
    picture = PIL.Image.fromarray(pixels_HWC).resize((shown.width, shown.height), PIL.Image.Resampling.LANCZOS)
    markers = _markers([answer.prompt for answer in answers], size, shown)
    panels = [_panel(np.asarray(picture), answers, m, markers, size) for m in range(len(answers[0].iou_M))]
    return np.concatenate([part for panel in panels for part in (_gap(panel), panel)][1:], axis=1)


def _panel(
    picture_HWC: NDArray[np.uint8], answers: Sequence[Answer], m: int, markers: PIL.Image.Image, size: Size
) -> NDArray[np.uint8]:
    shown = Size(*picture_HWC.shape[:2])
    runs = [rle.from_mask(answer.masks_MHW[m]) for answer in answers]
    drawn = [DrawnMask(runs_R, rle.area(runs_R)) for runs_R in runs]
    layer_HWC = paint(drawn, size, shown, colours_K3=_colours(len(drawn)))
    panel_HWC = blend(blend(picture_HWC, layer_HWC), np.asarray(markers))
    several = len(answers) > 1
    if several and len(answers[0].iou_M) == 1:
        return panel_HWC
    told = f"mask {m}" + ("" if several else f", predicted IoU {answers[0].iou_M[m]:.3f}")
    return np.concatenate([panel_HWC, _caption(told, shown)])


def _colours(count: int) -> NDArray[np.float64]:
    """One for each object, the same in every panel: the palette's darker wheel, then its others."""
    darkest_first = np.roll(palette().reshape(-1, HUES, 3), -1, axis=0)
    at_K = np.arange(count)
    return darkest_first[at_K // HUES % len(darkest_first), (FIRST_HUE + HUE_STEP * at_K) % HUES]


def _caption(text: str, shown: Size) -> NDArray[np.uint8]:
    """A white strip with the text in its middle, in letters that fit the panel."""
    points = min(_font_points(shown), max(6, int(1.8 * shown.width / len(text))))
    strip = PIL.Image.new("RGB", (shown.width, 2 * points), PAPER)
    place = (shown.width / 2, points)
    ImageDraw.Draw(strip).text(place, text, fill=INK, anchor="mm", font=ImageFont.load_default(points))
    return np.asarray(strip)


def _gap(panel_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.full((len(panel_HWC), GAP, 3), PAPER, np.uint8)


def _markers(prompts: Sequence[Prompt], size: Size, shown: Size) -> PIL.Image.Image:
    """A transparent layer of the size `shown`: boxes, points above them, numbers where there are several objects."""
    scale = np.array([shown.width / size.width, shown.height / size.height]) * SMOOTH
    layer = PIL.Image.new("RGBA", (shown.width * SMOOTH, shown.height * SMOOTH))
    draw = ImageDraw.Draw(layer)
    radius = SMOOTH * max(3.0, max(shown.width, shown.height) / 110)
    for prompt in prompts:
        if prompt.box is not None:
            _draw_box(draw, np.array(prompt.box).reshape(2, 2) * scale, radius)
    for number, prompt in enumerate(prompts):
        for x, y, label in prompt.points:
            _draw_point(draw, (np.array([x, y]) + 0.5) * scale, label, radius)
        if len(prompts) > 1:
            _draw_number(draw, _anchor(prompt) * scale, number, SMOOTH * _font_points(shown))
    return layer.resize((shown.width, shown.height), PIL.Image.Resampling.BOX)


def _draw_box(draw: ImageDraw.ImageDraw, corners_22: NDArray[np.float64], radius: float) -> None:
    """Its line lies inside the box, so that a box along the picture's edge is seen."""
    (x0, y0), (x1, y1) = corners_22
    width = max(SMOOTH, round(radius / 4))
    draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=(*INK, 255), width=2 * width)
    inner = (x0 + width / 2, y0 + width / 2, x1 - 1 - width / 2, y1 - 1 - width / 2)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        draw.rectangle(inner, outline=(*BOX_COLOUR, 255), width=width)


def _draw_point(draw: ImageDraw.ImageDraw, xy_2: NDArray[np.float64], label: int, radius: float) -> None:
    """A disc with a plus for a point of the object, with a minus for one beside it."""
    x, y = xy_2
    for r, colour in ((radius, PAPER), (radius * 0.8, LABEL_COLOURS[label])):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))
    arm, half = radius * 0.5, radius * 0.12
    draw.rectangle((x - arm, y - half, x + arm, y + half), fill=(*PAPER, 255))
    if label == 1:
        draw.rectangle((x - half, y - arm, x + half, y + arm), fill=(*PAPER, 255))


def _draw_number(draw: ImageDraw.ImageDraw, xy_2: NDArray[np.float64], number: int, points: int) -> None:
    x, y = xy_2[0] + points / 2, xy_2[1] + points / 2
    font = ImageFont.load_default(points)
    draw.text(
        (x, y),
        str(number),
        fill=(*PAPER, 255),
        stroke_fill=(*INK, 255),
        stroke_width=points // 8,
        anchor="lt",
        font=font,
    )


def _anchor(prompt: Prompt) -> NDArray[np.float64]:
    """Where an object's number belongs: the box's first corner, else the first point."""
    return np.array(prompt.box[:2] if prompt.box is not None else prompt.points[0][:2])


def _font_points(shown: Size) -> int:
    return max(9, round(max(shown.width, shown.height) / 48))
