"""`sam-amg failures`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from amg.cli.statuses import statuses_named
from amg.errors import ConfigError


@click.command(
    epilog="""\b
Examples:
  sam-amg failures labels
  sam-amg failures labels --status missing,decode_error
  sam-amg failures labels --csv > failures.csv
  sam-amg failures labels --json | jq -r '.[].uri'"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option(
    "--status", "statuses", multiple=True, metavar="STATUS,...", help="Those alone; may be repeated.  [default: all]"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout: key, uri, status, reason.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header line: key, uri, status, reason.")
def failures(folder: str, statuses: Sequence[str], as_json: bool, as_csv: bool) -> None:
    """List the images that have a row but no masks, in the order of the plan, each with its status and reason.

    DIR is what `sam-amg run` wrote; a job may be running on it. Statuses: decode_error, too_large, unsupported,
    missing, timeout, out_of_memory, crash.
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv came together, wanted one of them; leave the other out")
    from amg.run.status import failed_images

    found = failed_images(folder, statuses_named(statuses))
    if as_json:
        separator = "[\n"
        for lost in found:
            click.echo(separator + json.dumps(asdict(lost)), nl=False)
            separator = ",\n"
        click.echo("[]" if separator == "[\n" else "\n]")
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("key", "uri", "status", "reason"))
        writer.writerows((lost.key, lost.uri, lost.status, lost.reason) for lost in found)
    else:
        for lost in found:
            click.echo(f"{lost.status}  {lost.key}: {lost.reason}")
