"""Points and boxes as words of a command line, and which of them ask for the same object."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amg.errors import ConfigError
from amg.geometry import Size
from amg.review.prediction import Prompt

Point = tuple[float, float, int]
Corners = tuple[float, float, float, float]


def parse_point(text: str) -> Point:
    """`x,y` or `x,y,label`; the label is 1 (of the object, the default) or 0 (beside it)."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or numbers[2:] not in ([], [0.0], [1.0]):
        raise ConfigError(
            f"--point got {text!r}, wanted x,y or x,y,label in pixels, the label 1 (of the object) or 0 (beside it),"
            " such as 450,600 or 450,600,0"
        )
    return numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1


def parse_box(text: str) -> Corners:
    """`x0,y0,x1,y1`; the first corner lies left of and above the second."""
    numbers = _numbers(text.replace(" ", ","))
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise ConfigError(
            f"--box got {text!r}, wanted x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1, such as 75,275,1725,850"
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def prompts_of(points: Sequence[Point], boxes: Sequence[Corners], *, size: Size, separate: bool) -> list[Prompt]:
    """One prompt for each object; ConfigError for places outside a picture of this size, or prompts without meaning.

    Without boxes all points tell of one object, or with `separate` each of its own. Each box is an object; a point
    tells of the boxes it lies in, of a single box wherever it lies.
    """
    _refuse_outside(points, boxes, size)
    if not points and not boxes:
        raise ConfigError("no --point and no --box came, wanted at least one of them, such as --point 450,600")
    if separate and (boxes or any(label == 0 for *_, label in points)):
        raise ConfigError("--separate makes an object of each point with label 1; leave out boxes and labels 0")
    if separate:
        return [Prompt((point,)) for point in points]
    if not boxes:
        if all(label == 0 for *_, label in points):
            raise ConfigError("only points with label 0 came, which say where the object is not; add one with label 1")
        return [Prompt(tuple(points))]
    if len(boxes) == 1:
        return [Prompt(tuple(points), boxes[0])]
    lost = next((point for point in points if not any(_lies_in(point, box) for box in boxes)), None)
    if lost is not None:
        raise ConfigError(
            f"--point {lost[0]:g},{lost[1]:g} lies in none of the {len(boxes)} boxes, so that it is not clear whose"
            " object it tells of; predict that object by itself"
        )
    return [Prompt(tuple(point for point in points if _lies_in(point, box)), box) for box in boxes]


def _refuse_outside(points: Sequence[Point], boxes: Sequence[Corners], size: Size) -> None:
    width, height = size.width, size.height
    wrong = [f"--point {x:g},{y:g}" for x, y, _ in points if not (0 <= x < width and 0 <= y < height)]
    wrong += [
        f"--box {x0:g},{y0:g},{x1:g},{y1:g}" for x0, y0, x1, y1 in boxes if min(x0, y0) < 0 or x1 > width or y1 > height
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: outside the picture, which is {width} pixels wide and {height} high; wanted x from"
            f" 0 to {width} and y from 0 to {height}, counted from the upper left corner, after the picture was turned"
            " upright"
        )


def _lies_in(point: Point, box: Corners) -> bool:
    (x, y, _), (x0, y0, x1, y1) = point, box
    return x0 <= x <= x1 and y0 <= y <= y1


def _numbers(text: str) -> list[float]:
    """The finite numbers between commas; none where there is anything else."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []
