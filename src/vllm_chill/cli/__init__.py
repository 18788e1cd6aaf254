"""The command line: `vllm-chill` and its commands, serve before all."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from vllm_chill.errors import AskFailed, SettingError

if TYPE_CHECKING:
    from vllm_chill.cli.serve import Begin

_EPILOG = """\b
Try it on this machine, with nothing to install:
  vllm-chill demo
\b
In front of a vLLM on this machine, which runs only while it is used:
  vllm-chill serve --backend process -- vllm serve Qwen/Qwen3-0.6B --port {port}
\b
In front of several models on this machine, which a request chooses by their names:
  vllm-chill serve --backend process --models models.yaml
\b
In front of the Deployment ai-apps/vllm and its Service vllm-svc:
  vllm-chill serve --namespace ai-apps --deployment vllm --target-host vllm-svc
"""


_COMMANDS = {
    "serve": "serve:serve",
    "controller": "controller:controller",
    "status": "status:status",
    "models": "models:models",
    "switch": "models:switch",
    "wake": "models:wake",
    "sleep": "models:sleep",
    "logs": "logs:logs",
    "decide": "decide:decide_command",
    "scaling": "scaling:scaling",
    "explain": "explain:explain",
    "crd": "crd:print_crd",
    "keys": "keys:keys",
    "demo": "demo:demo",
}
"""Where each command is: in which module of this package, and under which name."""


class _Commands(click.Group):
    """Commands that are imported when they are used, so that none waits for what another one needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(package_name="vllm-chill", message="vllm-chill %(version)s")
def cli() -> None:
    """Give GPUs back: a reverse proxy that wakes vLLM when a request comes, holds the caller until the model
    is ready, streams the answer, and puts vLLM to sleep when nobody uses it.
    """


@cli.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    click.echo(f"vllm-chill {version_of('vllm-chill')}")


def main(begin: Begin | None = None) -> None:
    """Run the command line; a setting that cannot be used ends it with status 2 and a line for each, a proxy that
    cannot do what is asked of it with status 1. `begin` is told what `serve` is asked to do, and does it.
    """
    try:
        cli(standalone_mode=True, obj=begin)
    except SettingError as error:
        for line in error.message.splitlines():
            click.echo(f"vllm-chill: {line}", err=True)
        sys.exit(2)
    except AskFailed as error:
        click.echo(f"vllm-chill: {error.message}", err=True)
        sys.exit(1)
