"""`sam-amg run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from amg.cli.config import resolve_settings, settings_options
from amg.cli.labeling import runner_of, watched
from amg.config import Config

if TYPE_CHECKING:
    from amg.run.progress import Observer, Summary


@click.command(
    epilog="""\b
Examples:
  sam-amg run photos --out labels
  sam-amg run photos --out labels --dry-run
  sam-amg run photos --out labels --preset sa1b --weights sam-vit-h
  sam-amg run 'scans/**/*.jpg' --out labels --set generate.points_per_side=16
  sam-amg run photos --out labels --config mine.yaml --device cuda:0,cuda:1
  sam-amg run photos --out labels --limit 10 --json > summary.json
  sam-amg run s3://bucket/photos --out s3://bucket/labels --runner ray --device cuda"""
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder for the output; a second run on it does what is missing."
)
@settings_options
@click.option(
    "--weights",
    metavar="NAME|PATH|URL",
    help="Known weights (`sam-amg weights list`), a checkpoint or its address; sets model.weights.",
)
@click.option(
    "--device", metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto, several with commas; sets run.device."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that label, in turn on the devices; sets run.workers.",
)
@click.option(
    "--runner",
    type=click.Choice(["local", "ray"]),
    help="This machine's processes, or Ray: a cluster, or one that is started here; sets run.runner.",
)
@click.option("--address", metavar="HOST:PORT", help="Ray's head, or `auto`; sets run.address.")
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    metavar="N",
    help="On Ray, fractions too; sets run.gpus_per_worker.",
)
@click.option(
    "--cpus-per-worker",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Cores of a worker on Ray; sets run.cpus_per_worker.",
)
@click.option(
    "--memory-fraction",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Of its GPU's memory that a worker may take; sets memory.fraction.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Plan the first N images alone.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, in numbers, or why it would be refused, and do nothing."
)
@click.option("--strict", is_flag=True, help="Exit with 1 when an image of the output failed, in this run or before.")
@click.option("--overwrite", is_flag=True, help="Remove an output of this program that lies in DIR, after asking.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one line of JSON on stdout.")
@click.option(
    "--log",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How progress is told on stderr; json: one object a line for each image and shard.",
)
def run(
    inputs: Sequence[str],
    out: str,
    preset: str,
    config_file: str | None,
    assignments: Sequence[str],
    weights: str | None,
    device: str | None,
    workers: int | None,
    runner: str | None,
    address: str | None,
    gpus_per_worker: float | None,
    cpus_per_worker: float | None,
    memory_fraction: float | None,
    limit: int | None,
    dry_run: bool,
    strict: bool,
    overwrite: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
    log: str,
) -> int:
    """Label images: find every mask in them and write one Parquet row for each image.

    INPUT is an image, a folder (with all that lies below it), a pattern in quotes or a list of images, on this machine
    or at s3://, gs:// or az://. Images that cannot be read get a row with a status and a reason. Progress goes to
    stderr, the summary to stdout. Ctrl-C ends a run in order, a second one at once; in both cases the same command goes
    on with what is missing.

    With several devices or --workers, an image that crashes its worker twice when tried alone (three times where the
    worker may have been killed by somebody else) gets a row `crash`, and the rest is labeled.
    """
    named: Mapping[str, Any] = {
        "model.weights": weights,
        "run.device": device,
        "run.workers": workers,
        "run.runner": runner,
        "run.address": address,
        "run.gpus_per_worker": gpus_per_worker,
        "run.cpus_per_worker": cpus_per_worker,
        "memory.fraction": memory_fraction,
    }
    overrides = {name: value for name, value in named.items() if value is not None}
    config = resolve_settings(preset, config_file, assignments, overrides)
    if dry_run:
        return _preview(inputs, out, config, limit, overwrite, as_json)
    if overwrite and not yes:
        _ask_to_remove(out)

    def label(observer: Observer) -> Summary:
        from amg.run.runner import run_with
        from amg.sources.inputs import open_source

        source = open_source(*inputs)
        with runner_of(config.run) as runner:
            return run_with(runner, source, out, config, limit=limit, overwrite=overwrite, observer=observer)

    summary = watched(label, log=log, quiet=quiet)
    if as_json:
        click.echo(summary.to_json())
    elif not quiet:
        click.echo(summary.render())
    return 1 if strict and (summary.failed or _failed_before(out)) else 0


def _preview(inputs: Sequence[str], out: str, config: Config, limit: int | None, overwrite: bool, as_json: bool) -> int:
    from amg.run.runner import preview_with
    from amg.sources.inputs import open_source

    source = open_source(*inputs)
    with runner_of(config.run) as runner:
        seen = preview_with(runner, source, out, config, limit=limit, overwrite=overwrite)
    click.echo(seen.to_json() if as_json else seen.render())
    return 0


def _ask_to_remove(out: str) -> None:
    """Asked at once, as long as somebody looks; what is there is removed when the job is about to start."""
    from amg.run.overwrite import is_output, refuse_foreign
    from amg.storage.url import open_store

    folder = open_store(out).url
    refuse_foreign(folder)
    if is_output(folder):
        click.confirm(f"Remove the shards, the plan and all else that sam-amg wrote in {folder}?", abort=True, err=True)


def _failed_before(out: str) -> bool:
    """Whether any shard of the output says that it holds a failure, whichever run made it."""
    from amg.run.status import job_status

    return any(status != "ok" and count for status, count in job_status(out).rows.items())
