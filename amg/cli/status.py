"""`sam-amg status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from amg.run.status import JobStatus


@click.command(
    epilog="""\b
Examples:
  sam-amg status labels
  sam-amg status labels --json
  watch sam-amg status labels      while a job runs"""
)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON on stdout.")
def status(folder: str, as_json: bool) -> None:
    """How far a job is: images planned, done and left, by status, masks, rate, and what the plan is for.

    DIR is what `sam-amg run --out` writes to. Everything is read from there, so that it does not matter whether a job
    is running, where, or how many of them. The rate is that of the last shards.
    """
    from amg.run.status import job_status

    state = job_status(folder)
    click.echo(state.to_json() if as_json else "\n".join(_lines(state)))


def _lines(state: JobStatus) -> Iterator[str]:
    yield f"{state.out}: {state.planned} images planned, {state.done} done, {state.left} left"
    for name, count in state.rows.items():
        yield f"  {name:<13} {count}"
    labeled = state.rows.get("ok", 0)
    yield f"  {'masks':<13} {state.masks}" + (f", {state.masks / labeled:.1f} an image" if labeled else "")
    yield f"  {'shards':<13} {state.shards_done} of {state.shards_planned}"
    for retry in state.retries:
        yield f"  {f'retry g{retry.generation}':<13} {', '.join(retry.statuses)}: {retry.done} of {retry.images} images"
    if state.images_per_second is not None:
        yield f"  {'rate':<13} {state.images_per_second:.3g} images/s{_left(state)}"
    if state.seconds_since_last_shard is not None:
        yield f"  {'last shard':<13} {_about(state.seconds_since_last_shard)} ago"
    yield f"  {'weights':<13} {state.weights}"
    chosen = ", ".join(f"{name}={value}" for name, value in state.settings.items())
    yield f"  {'settings':<13} {chosen or 'the defaults'}"
    yield f"  {'plan':<13} {state.fingerprint[:12]}"
    for text in state.damaged:
        yield f"  {'damaged':<13} {text}"


def _left(state: JobStatus) -> str:
    return f", {_about(state.seconds_left)} left at that rate" if state.left and state.seconds_left is not None else ""


def _about(seconds: float) -> str:
    """One number and its unit: an estimate is not known to the second."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"
