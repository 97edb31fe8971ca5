"""`sam-amg submit`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amg.cli.config import named_settings, resolve_settings
from amg.cli.run import run
from amg.config import Config
from amg.errors import ConfigError

if TYPE_CHECKING:
    from amg.run.submit import Order

AS_IN_RUN = (
    "inputs", "out", "assignments", "config_file", "preset", "weights", "device", "gpus_per_worker", "cpus_per_worker",
    "memory_fraction", "workers", "limit", "strict", "log",
)  # fmt: skip
"""Parameters that are `run`'s own, by name."""


@click.command(
    epilog="""\b
Examples:
  sam-amg submit s3://bucket/photos --out s3://bucket/labels --address http://head:8265
  sam-amg submit s3://bucket/photos --out s3://bucket/labels --weights sam-vit-h --workers 64
  sam-amg submit list.csv --working-dir . --out gs://bucket/labels --config mine.yaml
  sam-amg submit /nfs/photos --out /nfs/labels --shared-disk --with-code
  sam-amg submit s3://bucket/photos --out s3://bucket/labels --pip sam-amg==0.1.0 --env AWS_REGION
  sam-amg submit s3://bucket/photos --out s3://bucket/labels --dry-run"""
)
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    default="http://127.0.0.1:8265",
    show_default=True,
    metavar="URL",
    help="The dashboard of the cluster's head, which takes jobs.",
)
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="A folder whose files the job finds in its own: lists of images, code. Weights, outputs and junk stay here.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="More of it that stays here; may be repeated.")
@click.option(
    "--with-code",
    is_flag=True,
    help="Send this sam-amg along, for a cluster that has its dependencies but not itself, or another version of it.",
)
@click.option(
    "--pip",
    "requirements",
    multiple=True,
    metavar="REQUIREMENT",
    help="Install it on every machine before the job starts; may be repeated.",
)
@click.option(
    "--python",
    default="python",
    show_default=True,
    metavar="PATH",
    help="The Python in which Ray runs on the head, where its PATH names another one.",
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for the job, with its value here if none is given. The dashboard shows it; may be repeated.",
)
@click.option("--shared-disk", is_flag=True, help="Every machine has the named paths, under the same names.")
@click.option("--submission-id", metavar="ID", help="Name of the job; else it follows from inputs, output and masks.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job: print its id and go.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, as JSON, and send nothing.")
def submit(
    inputs: Sequence[str],
    out: str,
    preset: str,
    config_file: str | None,
    assignments: Sequence[str],
    address: str,
    working_dir: Path | None,
    exclude: Sequence[str],
    with_code: bool,
    requirements: Sequence[str],
    python: str,
    variables: Sequence[str],
    shared_disk: bool,
    submission_id: str | None,
    no_wait: bool,
    dry_run: bool,
    limit: int | None,
    strict: bool,
    log: str,
    **named: Any,
) -> int:
    """Run a job on a Ray cluster, and follow it.

    The cluster does what `sam-amg run --runner ray` does with the same options. Its log is printed as it comes, and the
    exit status is the job's. Ctrl-C leaves the job running and says how to come back: the same command finds a job that
    still runs, and starts one that has ended anew, to do what is missing.

    Inputs, output and weights are URLs, because they are read and written by other machines.
    """
    config = resolve_settings(preset, config_file, assignments, _overrides(named))
    asked = _order(
        inputs,
        out,
        config,
        working_dir=working_dir,
        exclude=exclude,
        with_code=with_code,
        shared_disk=shared_disk,
        limit=limit,
        arguments=["--log", log, *(["--strict"] if strict else [])],
        submission_id=submission_id,
        requirements=requirements,
        python=python,
        env=dict(_variable(text) for text in variables),
    )
    if dry_run:
        click.echo(asked.to_json())
        return 0
    return _start_and_follow(asked, address, no_wait)


submit.params[:0] = [parameter for parameter in run.params if parameter.name in AS_IN_RUN]


def _order(
    inputs: Sequence[str],
    out: str,
    config: Config,
    *,
    working_dir: Path | None,
    exclude: Sequence[str],
    with_code: bool,
    shared_disk: bool,
    **options: Any,
) -> Order:
    from amg.run.parcel import pack
    from amg.run.reach import reach
    from amg.run.submit import order

    parcel = pack(working_dir=working_dir, exclude=exclude, with_code=with_code)
    reached = reach(inputs, out, config.model.weights, parcel=parcel, working_dir=working_dir, shared_disk=shared_disk)
    config = config.model_copy(update={"model": config.model.model_copy(update={"weights": reached.weights})})
    return order(reached.inputs, reached.out, config, parcel, **options)


def _start_and_follow(asked: Order, address: str, no_wait: bool) -> int:
    from amg.run.submit import INTERRUPTED, come_back, connect, follow, start

    client = connect(address)
    click.echo(str(asked.parcel), err=True)
    name, is_new = start(client, asked, address=address)
    click.echo(f"{name} {'was started' if is_new else 'runs already, and does the same'} at {address}", err=True)
    later = come_back(name, address, [os.path.basename(sys.argv[0]), *sys.argv[1:]])
    if no_wait:
        click.echo(name)
        click.echo(later, err=True)
        return 0
    try:
        ended = follow(client, name, address=address, echo=lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\n{later}", err=True)
        return INTERRUPTED
    click.echo(f"{name} {ended.status.lower()}{ended.message and ': '}{ended.message}", err=True)
    return ended.exit_status


def _overrides(named: dict[str, Any]) -> dict[str, Any]:
    """The settings among its options; the job runs on the Ray that it is sent to."""
    return {**named_settings(named), "run.runner": "ray", "run.address": None}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or (not equals and name not in os.environ):
        raise ConfigError(f"--env {shlex.quote(text)}: wanted NAME=VALUE, or the name of a variable that is set here")
    return name, value if equals else os.environ[name]
