"""`sam-amg verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from amg.shards.verify import Finding


@click.command(
    epilog="""\b
Examples:
  sam-amg verify labels
  sam-amg verify labels --json | jq -r '.findings[].where'
  sam-amg verify labels --quiet && echo sound"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--quiet", is_flag=True, help="Print nothing; the exit status tells.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def verify(folder: str, quiet: bool, as_json: bool) -> int:
    """Read a whole output and hold it against its plan: shards, footers, rows, and every mask.

    Every planned shard must be there, be of this plan, and hold its images once and in order. Every run-length string
    must cover its image, and area, box and ids must be those of the mask. Retries are looked at in the same way. One
    line for each fault: where it is, what came, what was wanted, what to do. A job that is not finished has missing
    shards.

    Exit status: 0 no fault, 1 faults.
    """
    from amg.run.verify import verify_output

    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        if as_json:
            findings.append(finding)
        elif not quiet:
            click.echo(str(finding))

    verified = verify_output(folder, found=found)
    if as_json:
        document = {"out": folder, **asdict(verified), "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2))
    elif not quiet:
        said = "no fault" if not verified.findings else f"{verified.findings} findings"
        retried = f", {verified.retried} retried" if verified.retried else ""
        click.echo(
            f"{folder}: {verified.shards} shards, {verified.rows} images{retried}, {verified.masks} masks: {said}"
        )
    return 1 if verified.findings else 0
