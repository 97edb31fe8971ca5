"""`sam-amg retry`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from amg.cli.config import assigned_settings, named_settings
from amg.cli.labeling import runner_of, watched
from amg.cli.run import run
from amg.cli.statuses import statuses_named
from amg.config import parse

if TYPE_CHECKING:
    from amg.run.progress import Observer
    from amg.run.retry import Retried

AS_IN_RUN = (
    "assignments", "weights", "device", "workers", "runner", "address", "gpus_per_worker", "cpus_per_worker",
    "memory_fraction", "quiet", "as_json", "log",
)  # fmt: skip
"""Parameters that are `run`'s own, by name."""


@click.command(
    epilog="""\b
Examples:
  sam-amg retry labels --status timeout --set run.image_timeout_s=600
  sam-amg retry labels --status too_large,out_of_memory --set memory.image_mb=16000
  sam-amg retry labels --status missing --dry-run
  sam-amg retry labels --status crash,timeout --workers 4 --json > summary.json"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option(
    "--status",
    "statuses",
    multiple=True,
    required=True,
    metavar="STATUS,...",
    help="Label the images that have these now; may be repeated. `sam-amg failures` lists them.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, in numbers, or why it would be refused, and do nothing."
)
@click.option("--strict", is_flag=True, help="Exit with 1 when an image failed again.")
def retry(
    folder: str,
    statuses: Sequence[str],
    assignments: Sequence[str],
    dry_run: bool,
    strict: bool,
    quiet: bool,
    as_json: bool,
    log: str,
    **named: Any,
) -> int:
    """Label images that failed once more.

    DIR is what `sam-amg run` wrote. The settings are the output's own; only where it runs and what it may use can be
    given anew: run.* and memory.*. The new rows go to DIR/retries, and take the place of the old ones for every command
    and for `read_shards`; no file of DIR is changed. `sam-amg compact` makes one clean folder of both.

    Images whose status is crash or timeout are tried one by one, in a worker that they may end. A retry that was
    interrupted goes on with the same command. When it is finished, the same command tries again what failed again.
    """
    given = assigned_settings(assignments) | named_settings(named)
    wanted = statuses_named(statuses)
    where = parse({name: value for name, value in given.items() if name.startswith("run.")}).run
    if dry_run:
        from amg.run.retry import preview_retry

        with runner_of(where) as runner:
            seen = preview_retry(runner, folder, wanted, given)
        click.echo(seen.to_json() if as_json else seen.render())
        return 0

    def label(observer: Observer) -> Retried:
        from amg.run.retry import retry_with

        with runner_of(where) as runner:
            return retry_with(runner, folder, wanted, given, observer=observer)

    retried = watched(label, log=log, quiet=quiet)
    if as_json:
        click.echo(retried.to_json())
    elif not quiet:
        click.echo(retried.render())
    return 1 if strict and retried.summary and retried.summary.failed else 0


retry.params += [parameter for parameter in run.params if parameter.name in AS_IN_RUN]
