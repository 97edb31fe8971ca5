"""`sam-amg run`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from amg.cli.config import resolve_settings, settings_options


@click.command(
    epilog="""\b
Examples:
  sam-amg run photos --out labels
  sam-amg run photos --out labels --preset sa1b --weights sam-vit-h
  sam-amg run 'scans/**/*.jpg' --out labels --set generate.points_per_side=16
  sam-amg run photos --out labels --config mine.yaml --device cuda:0
  sam-amg run photos --out labels --limit 10 --json > summary.json"""
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder for the output; a second run on it does what is missing."
)
@settings_options
@click.option(
    "--weights", metavar="NAME|PATH", help="Known weights (`sam-amg weights list`) or a checkpoint; sets model.weights."
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto; sets run.device.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Plan the first N images alone.")
@click.option("--strict", is_flag=True, help="Exit with 1 when an image failed in this run.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON on stdout.")
def run(
    inputs: Sequence[str],
    out: str,
    preset: str,
    config_file: str | None,
    assignments: Sequence[str],
    weights: str | None,
    device: str | None,
    limit: int | None,
    strict: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Label images: find every mask in them and write one Parquet row for each image.

    INPUT is an image, a folder (with all that lies below it) or a pattern in quotes. Images that cannot be read get a
    row with a status and a reason. Progress goes to stderr, the summary to stdout.
    """
    named = {"model.weights": weights, "run.device": device}
    overrides = {name: value for name, value in named.items() if value is not None}
    config = resolve_settings(preset, config_file, assignments, overrides)

    # What Pillow finds odd in a file either keeps it from being read, which becomes its row, or does not matter.
    warnings.filterwarnings("ignore", module="PIL")
    # Imported only now, so that a wrong setting is said before torch is loaded.
    from amg.run.local import run_local
    from amg.run.progress import Silent, observer_for

    observer = Silent() if quiet else observer_for(sys.stderr)
    try:
        summary = run_local(inputs, out, config, limit=limit, observer=observer)
    except KeyboardInterrupt:
        observer.finish()
        click.echo("interrupted; finished shards are kept, and the same command goes on with the rest", err=True)
        raise
    finally:
        observer.finish()
    if as_json:
        click.echo(summary.to_json())
    elif not quiet:
        click.echo(summary.render())
    return 1 if strict and summary.failed else 0
