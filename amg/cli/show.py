"""`sam-amg show`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click


@click.command(
    epilog="""\b
Examples:
  sam-amg show labels                                 then open labels/review/index.html
  sam-amg show labels --limit 100 --max-side 640
  sam-amg show labels --key street/0017.jpg --key street/0018.jpg --max-side 2048
  sam-amg show labels --out pictures"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--out", metavar="FOLDER", type=click.Path(), help="Where the pictures go.  [default: DIR/review]")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=24,
    show_default=True,
    metavar="N",
    help="Draw the first N labeled images.",
)
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Draw this image instead; may be repeated.")
@click.option(
    "--max-side",
    type=click.IntRange(min=16),
    default=1024,
    show_default=True,
    metavar="PIXELS",
    help="Longest side of a picture.",
)
@click.option("--quiet", is_flag=True, help="Do not print where the page is.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON on stdout: page, pictures, rows by status."
)
def show(
    folder: str, out: str | None, limit: int, keys: Sequence[str], max_side: int, quiet: bool, as_json: bool
) -> None:
    """Draw the masks of an output over their images.

    DIR is what `sam-amg run` wrote. Makes one HTML page that holds its pictures in itself and can be sent around, and
    the same pictures as JPEG files. Images that failed are listed with their reasons.
    """
    from amg.review.view import write_review

    review = write_review(folder, out=out, limit=limit, keys=keys, max_side=max_side)
    if as_json:
        pictures = [str(picture) for picture in review.pictures]
        click.echo(json.dumps({"page": str(review.page), "pictures": pictures, "rows": dict(review.rows)}))
        return
    if quiet:
        return
    click.echo(f"page      {review.page}")
    if review.pictures:
        click.echo(f"pictures  {len(review.pictures)} in {review.pictures[0].parent}")
