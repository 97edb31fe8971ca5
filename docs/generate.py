"""Writes docs/cli.md and docs/config.md from the code: python -m docs.generate [--check]"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from amg.cli.config import described_settings
from amg.cli.main import cli
from amg.config import NOT_IN_FINGERPRINT, PRESETS, Config

HERE = Path(__file__).parent
WIDTH = 100
NOTE = "<!-- Made by `make docs` from the code; changes here are lost. -->"


def pages() -> dict[str, str]:
    """The content of every generated page, by file name."""
    return {"cli.md": cli_page(), "config.md": config_page()}


def stale() -> list[str]:
    """The names of the pages that do not say what the code says."""
    return [name for name, text in pages().items() if not (HERE / name).is_file() or (HERE / name).read_text() != text]


def cli_page() -> str:
    """The help of every command, as it is printed."""
    parts = ["# The command", NOTE, "What `--help` prints, for every command."]
    for title, text in helps(cli, None, "sam-amg"):
        parts += [f"## {title}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """(command line, help text) of a command and of those below it, in their own order."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent=parent, info_name=name, **settings)
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None, each
            yield from helps(below, context, each)


def config_page() -> str:
    """Every setting by section, and what the presets change."""
    parts = [
        "# Settings",
        NOTE,
        "A YAML file for `--config` has these sections; `--set section.name=value` changes one setting. Later wins: "
        "defaults, `--preset`, `--config`, `--set`. `sam-amg config` prints the result.",
        "Settings marked \\* may differ between two runs on one output. Any other one changes masks or files: a run "
        "that differs in it is refused.",
    ]
    rows = list(described_settings(Config.model_json_schema()))
    for section, field in Config.model_fields.items():
        parts.append(f"## {section}")
        about = vars(field.annotation).get("__doc__")
        parts += [" ".join(about.split())] if about else []
        lines = [_row(*row) for row in rows if row[0].startswith(f"{section}.")]
        parts.append("\n".join([_line("setting", "default", "values", "what it does"), "|---|---|---|---|", *lines]))
    return "\n\n".join([*parts, "## Presets", *_presets({row[0]: row[1] for row in rows})]) + "\n"


def _presets(defaults: Mapping[str, Any]) -> Iterator[str]:
    for name, changes in PRESETS.items():
        if not changes:
            yield f"`{name}` is the defaults."
            continue
        lines = [
            _line(f"`{setting}`", _code(value), _code(defaults[setting]) if defaults[setting] != value else "the same")
            for setting, value in changes.items()
        ]
        yield f"`{name}`:"
        yield "\n".join([_line("setting", name, "default"), "|---|---|---|", *lines])


def _row(name: str, default: Any, values: str, description: str) -> str:
    free = "\\*" if name.startswith(NOT_IN_FINGERPRINT) else ""
    return _line(f"`{name}`{free}", _code(default), values, description)


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str]) -> int:
    """Writes the pages; with --check exits 1 when one is stale, and writes nothing."""
    if arguments not in ([], ["--check"]):
        print(f"got {' '.join(arguments)}, wanted nothing or --check", file=sys.stderr)
        return 2
    if arguments:
        for name in (names := stale()):
            print(f"docs/{name} does not say what the code says; run: make docs", file=sys.stderr)
        return 1 if names else 0
    for name, text in pages().items():
        (HERE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
