"""`sam-amg config`, and the options that every command with settings shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from amg.config import PRESETS, Config, fields, load_config, parse_assignment, to_yaml
from amg.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

KINDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "list",
}


def settings_options(command: Function) -> Function:
    """Adds `--preset --config --set`; `resolve_settings` takes what they give."""
    for option in (
        click.option(
            "--set",
            "assignments",
            metavar="NAME=VALUE",
            multiple=True,
            help="Change one setting; may be repeated.",
            shell_complete=lambda _context, _option, typed: [f"{n}=" for n, _ in fields() if n.startswith(typed)],
        ),
        click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=click.Path(),
            help="YAML file with settings, as `sam-amg config` prints it.",
        ),
        click.option(
            "--preset",
            default="default",
            show_default=True,
            metavar="NAME",
            help=f"Settings to start from: {', '.join(PRESETS)}.",
            shell_complete=lambda _context, _option, typed: [name for name in PRESETS if name.startswith(typed)],
        ),
    ):
        command = option(command)
    return command


def resolve_settings(
    preset: str, config_file: str | None, assignments: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> Config:
    """The settings that the shared options ask for; `overrides` are options with a name of their own, and win.

    Raises one ConfigError for everything that is wrong, assignments that cannot be read among it.
    """
    dotted, wrong = _assigned(assignments)
    try:
        settings = load_config(preset=preset, file=config_file, overrides=dotted | dict(overrides or {}))
    except ConfigError as error:
        raise ConfigError("\n".join([*wrong, str(error)])) from error
    if wrong:
        raise ConfigError("\n".join(wrong))
    return settings


def assigned_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """What `--set` gives, by dotted name; one ConfigError for all that cannot be read."""
    dotted, wrong = _assigned(assignments)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return dotted


def named_settings(named: Mapping[str, Any]) -> dict[str, Any]:
    """Options called as a setting or the last part of its name, by dotted name; those not given are left out."""
    names = [name for name, _ in fields()]
    settings = {name.replace(".", "_"): name for name in names} | {name.rpartition(".")[2]: name for name in names}
    return {settings[name]: value for name, value in named.items() if value is not None}


def _assigned(assignments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What `--set` gives, and what is wrong with the rest of it."""
    dotted: dict[str, Any] = {}
    wrong: list[str] = []
    for text in assignments:
        try:
            name, value = parse_assignment(text)
            dotted[name] = value
        except ConfigError as error:
            wrong.append(str(error))
    return dotted, wrong


@click.command(
    epilog="""\b
Examples:
  sam-amg config                             the defaults, as a file that --config takes
  sam-amg config --preset sa1b > mine.yaml   a start for a file of your own
  sam-amg config --config mine.yaml --set generate.points_per_side=16
  sam-amg config --list                      every setting with default, range and help
  sam-amg config --schema > schema.json      for editors that check YAML while you type"""
)
@settings_options
@click.option(
    "--list", "form", flag_value="list", help="List every setting with its default, its range and what it does."
)
@click.option("--schema", "form", flag_value="schema", help="Print the JSON schema of a config file.")
def config(preset: str, config_file: str | None, assignments: Sequence[str], form: str | None) -> None:
    """Print the settings that a job with these options would have, as YAML.

    Later wins: defaults, --preset, --config, --set. Everything that is wrong is said at once.
    """
    settings = resolve_settings(preset, config_file, assignments)
    if form == "schema":
        click.echo(json.dumps(Config.model_json_schema(), indent=2))
    elif form == "list":
        for name, default, values, description in described_settings(Config.model_json_schema()):
            click.echo(f"{name} = {json.dumps(default)}   ({values})\n    {description}")
    else:
        click.echo(to_yaml(settings), nl=False)


def described_settings(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    """Name, default, allowed values in words and help of every setting in a JSON schema of `Config`."""
    for section, reference in schema["properties"].items():
        properties = schema["$defs"][reference["$ref"].rpartition("/")[2]]["properties"]
        for name, setting in properties.items():
            yield f"{section}.{name}", setting["default"], _values(setting), setting["description"]


def _values(setting: Mapping[str, Any]) -> str:
    """What a setting may be, in words: `integer, 1 to 1024, or null`."""
    if "anyOf" in setting:
        return ", or ".join(_values(choice) for choice in setting["anyOf"])
    if "enum" in setting:
        return " or ".join(setting["enum"])
    if "const" in setting:
        return f"only {setting['const']}"
    if "exclusiveMinimum" in setting:
        return f"{KINDS[setting['type']]} above {setting['exclusiveMinimum']:g}"
    low, high = setting.get("minimum"), setting.get("maximum")
    span = "" if low is None else f", {low:g} or more" if high is None else f", {low:g} to {high:g}"
    return KINDS[setting["type"]] + span
