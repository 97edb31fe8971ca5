"""`sam-amg compact`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from amg.cli.main import INTERRUPTED
from amg.run.signals import interruptible

if TYPE_CHECKING:
    from amg.run.compact import Compacted


@click.command(
    epilog="""\b
Examples:
  sam-amg compact labels --out labels-clean
  sam-amg compact labels --out labels-clean --target-mb 512
  sam-amg compact labels --out labels-so-far --partial
  sam-amg compact s3://bucket/labels --out s3://bucket/labels-clean --json"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--out", required=True, metavar="DIR2", help="Folder for the new output: empty, or of this compaction.")
@click.option(
    "--target-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=256.0,
    show_default=True,
    metavar="MB",
    help="Put shards together up to this size of a file.",
)
@click.option("--partial", is_flag=True, help="Take an output that is not finished; what is missing stays to be done.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON on stdout.")
def compact(folder: str, out: str, target_mb: float, partial: bool, quiet: bool, as_json: bool) -> int:
    """Write an output anew in fewer, larger files, with the newest row of every image.

    DIR is what `sam-amg run` wrote, with its retries; it stays as it is. DIR2 is an output like it: every command works
    on it, a further `sam-amg run` too. A compaction that was interrupted goes on with the same command, as long as
    nothing in DIR has changed.
    """
    from amg.run.compact import compact as write

    with interruptible(), _progress(quiet) as (start, made):
        try:
            compacted = write(folder, out, target_bytes=int(target_mb * 1e6), partial=partial, start=start, made=made)
        except KeyboardInterrupt as stop:
            click.echo("interrupted; finished files are kept, and the same command goes on with the rest", err=True)
            return getattr(stop, "exit_status", INTERRUPTED)
    if as_json:
        click.echo(json.dumps(asdict(compacted)))
    elif not quiet:
        click.echo("\n".join(_lines(compacted)))
    return 0


def _lines(compacted: Compacted) -> Iterator[str]:
    counted = ", ".join(f"{count} {status}" for status, count in compacted.rows.items())
    yield f"{compacted.images} images ({counted}), {compacted.masks} masks"
    yield f"  {compacted.files_before} files became {compacted.files} in {compacted.out.rstrip('/')}/data"
    if compacted.written < compacted.files:
        yield f"  {compacted.files - compacted.written} of them were there before"
    if compacted.left:
        yield f"  {compacted.left} planned images have no row yet; `sam-amg run` with --out {compacted.out} labels them"


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Callable[[int], object], Callable[[int], object]]]:
    """A bar of images on a terminal: what starts it, and what moves it."""
    from tqdm import tqdm

    with tqdm(disable=quiet or not sys.stderr.isatty(), file=sys.stderr, unit="images") as bar:
        yield bar.reset, bar.update
