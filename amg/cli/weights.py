"""`sam-amg weights`: the published checkpoints, listed, fetched, verified."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from amg.errors import WeightsError
from amg.sam.weights import DEFAULT, KNOWN, Checkpoint, cache_folder, cached, fetch, find, verify


@click.group()
def weights() -> None:
    """The published checkpoints: list, fetch, verify.

    They are kept in SAM_AMG_CACHE, else in the platform's cache folder.
    """


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def list_command(as_json: bool) -> None:
    """Name, file, size, licence, whether it is in the cache, and the places it comes from.

    Example: sam-amg weights list --json
    """
    if as_json:
        click.echo(json.dumps([_describe(checkpoint) for checkpoint in KNOWN.values()], indent=2))
        return
    row = "{:<12} {:<22} {:>10}  {:<10} {}"
    click.echo(row.format("NAME", "FILE", "SIZE", "LICENCE", "CACHED"))
    for checkpoint in KNOWN.values():
        size = f"{checkpoint.size_bytes / 1e6:,.1f} MB"
        there = "yes" if cached(checkpoint) else "no"
        click.echo(row.format(checkpoint.name, checkpoint.file, size, checkpoint.licence, there))
        for place in checkpoint.places:
            click.echo(f"    {place}")
    click.echo(f"cache: {cache_folder()}")


@weights.command("fetch")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--quiet", is_flag=True, help="No progress bar and no word about places that failed.")
def fetch_command(names: tuple[str, ...], quiet: bool) -> None:
    """Bring checkpoints into the cache and print their paths; mobile-sam if none is named.

    Example: sam-amg weights fetch sam-vit-b
    """
    for checkpoint in [find(name) for name in names or (DEFAULT,)]:
        click.echo(fetch(checkpoint.name, progress=not quiet))


@weights.command("verify")
@click.argument("names_or_paths", nargs=-1, metavar="[NAME|PATH]...")
def verify_command(names_or_paths: tuple[str, ...]) -> None:
    """Compare digests with the table; everything in the cache if nothing is named. Exit status 1 if one differs.

    Example: sam-amg weights verify mobile-sam ~/sam_vit_b_01ec64.pth
    """
    present = tuple(known.name for known in KNOWN.values() if (cache_folder() / known.file).is_file())
    verdicts = [verify(name_or_path) for name_or_path in names_or_paths or present]
    for verdict in verdicts:
        click.echo(verdict)
    if not verdicts:
        click.echo(f"no checkpoint in {cache_folder()}")
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of {len(verdicts)} files are no known checkpoint;"
            " if it lies in the cache, remove it and run: sam-amg weights fetch NAME"
        )


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    path = cached(checkpoint)
    return asdict(checkpoint) | {"cached": path and str(path)}
