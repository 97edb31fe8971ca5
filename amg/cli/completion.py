"""`sam-amg completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
To install it:
  bash  sam-amg completion bash > ~/.sam-amg-complete.bash
        echo '. ~/.sam-amg-complete.bash' >> ~/.bashrc
  zsh   sam-amg completion zsh > ~/.sam-amg-complete.zsh
        echo '. ~/.sam-amg-complete.zsh' >> ~/.zshrc      (after compinit)
  fish  sam-amg completion fish > ~/.config/fish/completions/sam-amg.fish

\b
Examples:
  sam-amg completion zsh
  eval "$(sam-amg completion bash)"      in this shell alone"""
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options and paths of sam-amg."""
    from amg.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows no {shell}"
    # `source()` would also start the shell to warn of bash before 4.4
    click.echo(kind.source_template % kind(cli, {}, "sam-amg", "_SAM_AMG_COMPLETE").source_vars())
