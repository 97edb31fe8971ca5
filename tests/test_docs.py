"""The pages made from the code say what the code says; commands have help, examples and completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from amg.cli.main import COMMANDS, cli
from amg.config import PRESETS, fields
from docs import generate

HEAVY = ("torch", "pyarrow", "numba", "pydantic", "requests")


def test_the_generated_pages_are_up_to_date() -> None:
    assert generate.stale() == [], "run: make docs"


def test_a_stale_page_is_said_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "docs/cli.md does not say what the code says; run: make docs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    with (tmp_path / "config.md").open("a") as page:
        page.write("more\n")
    assert generate.stale() == ["config.md"]
    assert generate.main(["--cheque"]) == 2


def test_the_pages_name_every_command_setting_and_preset() -> None:
    pages = generate.pages()
    for name in COMMANDS:
        assert f"## sam-amg {name}\n" in pages["cli.md"]
    assert "## sam-amg weights fetch\n" in pages["cli.md"]
    assert max(map(len, pages["cli.md"].splitlines())) <= generate.WIDTH
    for name, field in fields():
        assert f"| `{name}`" in pages["config.md"]
        assert field.description in pages["config.md"]
    assert all(f"`{name}`" in pages["config.md"] for name in PRESETS)


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        below = command.commands if isinstance(command, click.Group) else {}
        found += [(f"{name} {each}", command.commands[each]) for each in below] or [(name, command)]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_examples_that_can_be_parsed(name: str, command: click.Command) -> None:
    options = {text for parameter in command.params for text in parameter.opts if text.startswith("-")}
    text = f"{command.help}\n{command.epilog or ''}"
    examples = [line for line in text.splitlines() if f"sam-amg {name}" in line]
    assert examples, f"no example of sam-amg {name}"
    used = {word.partition("=")[0] for line in examples for word in line.split() if word.startswith("--")}
    assert used <= options | {"--help"}


@pytest.mark.parametrize("name", ["status", "failures", "verify", "export", "show", "run", "retry", "compact"])
def test_json_and_quiet_mean_the_same_everywhere(name: str) -> None:
    command = dict(commands())[name]
    options = {text: parameter for parameter in command.params for text in parameter.opts}
    assert "on stdout" in (getattr(options["--json"], "help", "") or "")
    assert ("--quiet" in options) == (name not in ("status", "failures"))


def complete(words: str, *, shell: str = "bash") -> list[str]:
    """What a shell is told when these words were typed and the last one is to be completed."""
    variables = {
        "_SAM_AMG_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import sys, time\n"
        "from amg.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print([n for n in {HEAVY!r} if n in sys.modules], time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded, _, seconds = done.stderr.rpartition(" ")
    assert "torch" not in loaded
    assert float(seconds) < (0.5 if loaded == "[]" else 3.0)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_completing_commands_imports_none_of_them() -> None:
    assert complete("sam-amg st") == ["status"]
    assert complete("sam-amg e") == ["export"]
    assert complete("sam-amg weights f") == ["fetch"]


def test_completing_options_and_their_values() -> None:
    assert complete("sam-amg export --ov") == ["--overwrite"]
    assert complete("sam-amg export --to c") == ["coco"]
    assert complete("sam-amg run --preset s") == ["sa1b"]
    assert complete("sam-amg run --set generate.points_per_s") == ["generate.points_per_side="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "amg", "completion", shell], capture_output=True, text=True, timeout=60, check=True
    )
    assert "_SAM_AMG_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout
    assert done.stderr == ""


def test_bash_takes_the_script_and_completes_with_it() -> None:
    script = (
        'eval "$("$PYTHON" -m amg completion bash)" && complete -p sam-amg && '
        'sam-amg() { "$PYTHON" -m amg; } && COMP_WORDS=(sam-amg st) COMP_CWORD=1 && '
        "_sam_amg_completion sam-amg; true"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_sam_amg_completion sam-amg" in done.stdout
