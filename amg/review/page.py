"""The contact sheet as HTML. Its looks and its script are in `sheet.html`; here are the parts that repeat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from amg import __version__
from amg.geometry import Size
from amg.values import Status

TINY = 160
"""Pictures smaller than this are enlarged without smoothing, so that their pixels can be seen."""


@dataclass(frozen=True, slots=True)
class Card:
    """One labeled image. `layer` and `photo` are data URIs; without a photo, `note` says why."""

    key: str
    size: Size
    shown: Size
    masks: int
    funnel: Mapping[str, int]
    layer: str
    photo: str | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """One image without masks, and why."""

    key: str
    status: str
    reason: str


def render_page(title: str, cards: Sequence[Card], lost: Sequence[Lost], *, rows: Mapping[str, int], masks: int) -> str:
    """The whole page. `rows` counts all images of the output by status, `masks` all its masks."""
    parts = {
        "title": escape(title),
        "facts": _facts(cards, rows, masks),
        "cards": "\n".join(map(_card, cards)) or '<p class="empty">No labeled image to show.</p>',
        "failures": _failures(lost, rows),
        "version": escape(__version__),
    }
    template = files("amg.review").joinpath("sheet.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template)


def _facts(cards: Sequence[Card], rows: Mapping[str, int], masks: int) -> str:
    labeled, total = rows.get(Status.OK, 0), sum(rows.values())
    facts = [("images", f"{total:,}"), ("masks", f"{masks:,}")]
    if labeled:
        facts.append(("masks an image", f"{masks / labeled:,.1f}"))
    facts.append(("failed", f"{total - labeled:,}"))
    if len(cards) < labeled:
        facts.append(("shown here", f"{len(cards):,}"))
    return "\n".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def _card(card: Card) -> str:
    tiny = " tiny" if max(card.shown.height, card.shown.width) < TINY else ""
    key = escape(card.key)
    photo = (
        f'<img class="photo" alt="{key}" src="{card.photo}">'
        if card.photo
        else f'<p class="note">{escape(card.note)}</p>'
    )
    stack = "stack" if card.photo else "stack gone"
    masks = "1 mask" if card.masks == 1 else f"{card.masks:,} masks"
    return f"""<article class="card" data-key="{key}">
<div class="frame{tiny}"><button class="open" aria-label="Enlarge {key}">
<span class="{stack}">{photo}<img class="layer" alt="" src="{card.layer}"></span></button>
<button class="flip" aria-pressed="false" title="Photo or masks">Photo</button></div>
<h2>{key}</h2>
<p class="meta"><span>{card.size.width:,} × {card.size.height:,}</span><span>{masks}</span></p>
{_funnel(card.funnel)}
</article>"""


def _funnel(funnel: Mapping[str, int]) -> str:
    candidates = funnel.get("candidates") or 0
    if not candidates:
        return ""
    bars = []
    for name, count in funnel.items():
        if count:
            share = 100 * count / candidates
            kind, minus = name.partition("_")[0], "−" if name.startswith("dropped_") else ""
            bar = f'<i style="width:{share:.2f}%"></i><b>{minus}{count:,}</b>'
            bars.append(f'<div class="{escape(kind)}"><dt>{_words(name)}</dt><dd>{bar}</dd></div>')
    head = f"{candidates:,} candidates, {funnel.get('kept') or 0:,} kept"
    return f"<details><summary>{head}</summary><dl>{''.join(bars)}</dl></details>"


def _words(name: str) -> str:
    """`dropped_predicted_iou` as `predicted IoU`."""
    words = name.removeprefix("dropped_").replace("_", " ")
    return escape(re.sub(r"\bnms\b", "NMS", re.sub(r"\biou\b", "IoU", words)))


def _failures(lost: Sequence[Lost], rows: Mapping[str, int]) -> str:
    if not lost:
        return ""
    counts = ", ".join(f"{count:,} {escape(status)}" for status, count in sorted(rows.items()) if status != Status.OK)
    lines = "\n".join(
        f'<tr><td class="key">{escape(one.key)}</td><td><span class="status">{escape(one.status)}</span></td>'
        f"<td>{escape(one.reason)}</td></tr>"
        for one in lost
    )
    more = sum(rows.values()) - rows.get(Status.OK, 0) - len(lost)
    rest = f'<p class="more">and {more:,} more</p>' if more > 0 else ""
    return f"""<section class="failures"><h2>Failures</h2><p class="more">{counts}</p>
<div class="scroll"><table><thead><tr><th>Image</th><th>Status</th><th>Reason</th></tr></thead><tbody>
{lines}
</tbody></table></div>{rest}</section>"""
