"""The top of `sam-amg`: which commands there are, and what becomes of their errors.

A command's module is imported when the command is used, not before: `sam-amg --help` imports click and nothing heavy.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem

from amg import __version__
from amg.errors import AmgError
from amg.run.gpu_memory import keep_whole

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is defined, and the line that lists it."""

    module: str
    attribute: str
    summary: str


COMMANDS: Mapping[str, Entry] = {
    "run": Entry("amg.cli.run", "run", "Label images: photos in, masks in Parquet out."),
    "submit": Entry("amg.cli.submit", "submit", "Run a job on a Ray cluster, and follow it."),
    "status": Entry("amg.cli.status", "status", "How far a job is, from its output alone."),
    "failures": Entry("amg.cli.failures", "failures", "List the images without masks, and why."),
    "show": Entry("amg.cli.show", "show", "Draw masks over their images, on one HTML page."),
    "predict": Entry("amg.cli.predict", "predict", "Ask for masks of one image by points and boxes."),
    "export": Entry("amg.cli.export", "export", "Write the annotations as SA-1B or COCO JSON."),
    "verify": Entry("amg.cli.verify", "verify", "Hold an output against its plan, mask by mask."),
    "retry": Entry("amg.cli.retry", "retry", "Label images that failed once more."),
    "compact": Entry("amg.cli.compact", "compact", "Write an output anew: larger files, newest rows."),
    "weights": Entry("amg.cli.weights", "weights", "List, fetch and verify checkpoints."),
    "config": Entry("amg.cli.config", "config", "Print the settings of a job, or all there are."),
    "completion": Entry("amg.cli.completion", "completion", "Print the script by which a shell completes."),
}


class LazyGroup(click.Group):
    """A group that lists `COMMANDS` and imports one of them only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command), f"{entry.module}.{entry.attribute} is no click command: {command!r}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table; click's own way would import every command that fits."""
        names = [
            CompletionItem(name, help=entry.summary) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            ctx.fail(f"there is no command {name!r}; {guess}commands: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  sam-amg run photos --out labels
  sam-amg status labels
  sam-amg show labels
  sam-amg export labels --to coco --out labels.json
  sam-amg COMMAND --help""",
)
@click.version_option(__version__, prog_name="sam-amg", message="%(prog)s %(version)s")
def cli() -> None:
    """Find every object in a folder of images with Segment Anything, and keep the masks in Parquet.

    With --json a command prints one JSON document on stdout and nothing else there; with --quiet it prints
    errors alone.

    Exit status: 0 done, and every image has a row; 1 the job could not finish, --strict and failures, or verify found
    a fault; 2 wrong usage or settings, or an output that belongs to another job; 130 interrupted.
    """


def main() -> int:
    """The exit status of the command line in `sys.argv`. Errors nobody foresaw keep their traceback."""
    # Threads that spin while they wait lose five times the speed as soon as another process wants their core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_whole()
    try:
        status = cli.main(prog_name="sam-amg", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AmgError as error:
        click.echo("error: " + str(error).replace("\n", "\n       "), err=True)
        return error.exit_status
    return status if isinstance(status, int) else 0
