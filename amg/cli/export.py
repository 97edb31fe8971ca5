"""`sam-amg export`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


def _formats(_context: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    return [name for name in ("sa1b", "coco") if name.startswith(typed)]


@click.command(
    epilog="""\b
Examples:
  sam-amg export labels --to coco --out labels.json
  sam-amg export labels --to sa1b --out labels-sa1b
  sam-amg export labels --to coco --out labels.json --overwrite --json"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--to", required=True, metavar="FORMAT", help="sa1b or coco.", shell_complete=_formats)
@click.option("--out", required=True, metavar="PATH", type=click.Path(), help="Folder (sa1b) or file (coco) to make.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export at PATH.")
@click.option("--quiet", is_flag=True, help="No summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON on stdout.")
def export(folder: str, to: str, out: str, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Write the annotations of an output in another format.

    \b
    sa1b  a folder with one JSON file for each image, as SA-1B is published; boxes are
          SA-1B's, one pixel short in width and height
    coco  one JSON file with run-length masks, exact boxes and the category "object";
          score is the predicted IoU

    DIR is what `sam-amg run` wrote. Images without masks because they failed are left out and counted. PATH appears
    when it is complete.
    """
    from amg.export.formats import export_shards
    from amg.run.plan import read_plan
    from amg.storage.url import open_store

    exported = export_shards(folder, to=to, out=out, overwrite=overwrite)
    plan = read_plan(open_store(folder)) if not folder.endswith(".parquet") else None
    missing = plan.n_images - exported.images - sum(exported.left_out.values()) if plan else 0
    if missing > 0 and not quiet:
        click.echo(f"{missing} planned images have no row yet and are not in it; sam-amg status {folder}", err=True)
    if as_json:
        click.echo(json.dumps({"to": to, "out": out, **asdict(exported)}))
    elif not quiet:
        click.echo(f"{exported.images} images, {exported.masks} masks to {out}")
        if exported.left_out:
            counted = ", ".join(f"{count} {status}" for status, count in exported.left_out.items())
            click.echo(f"left out: {counted}; sam-amg failures {folder} lists them")
