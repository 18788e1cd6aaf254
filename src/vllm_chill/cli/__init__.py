"""The command line: `vllm-chill` and its commands, serve before all."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from vllm_chill.cli.output import EXIT_STATUSES, INTERRUPTED, print_error, wants_json
from vllm_chill.errors import AskFailed, SettingError

if TYPE_CHECKING:
    from vllm_chill.cli.serve import Begin

NAME = "vllm-chill"
COMPLETE_VARIABLE = "_VLLM_CHILL_COMPLETE"

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

\b
Exit status, of every command:
""" + "\n".join(f"  {status:>3}  {meaning}" for status, meaning in EXIT_STATUSES.items())

_COMMANDS = {
    "serve": "serve:serve",
    "controller": "controller:controller",
    "status": "status:status",
    "top": "top.command:top",
    "models": "models:models",
    "switch": "models:switch",
    "wake": "models:wake",
    "sleep": "models:sleep",
    "wait": "wait:wait",
    "logs": "logs:logs",
    "decide": "decide:decide_command",
    "savings": "savings:savings",
    "scaling": "scaling:scaling",
    "explain": "explain:explain",
    "doctor": "doctor:doctor",
    "crd": "crd:print_crd",
    "keys": "keys:keys",
    "demo": "demo:demo",
    "completion": "completion:completion",
    "version": "version:version",
}
"""Where each command is: in which module of this package, and under which name."""

_SECTIONS = {
    "Run": ("demo", "serve", "controller"),
    "Look at a running proxy": ("status", "top", "models", "scaling", "savings", "logs"),
    "Operate a running proxy": ("wake", "sleep", "wait", "switch"),
    "Set up": ("doctor", "keys", "crd", "completion"),
}
"""Under which heading the help has a command; those that are not here are under the last one."""


class Commands(click.Group):
    """Commands that are imported when they are used, so that none waits for what another one needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which the help has them."""
        return [name for names in self.sections().values() for name in names]

    def sections(self) -> dict[str, list[str]]:
        """The names under each heading."""
        found = {heading: [name for name in names if name in _COMMANDS] for heading, names in _SECTIONS.items()}
        others = set(_COMMANDS).difference(*found.values())
        return found | {"More": sorted(others)}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in self.sections().items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(
                    [(name, command.get_short_help_str(100)) for name, command in commands if command is not None]
                )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, none of which is imported for it, and the options."""
        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(package_name="vllm-chill", message="vllm-chill %(version)s")
def cli() -> None:
    """Give GPUs back: a reverse proxy that wakes vLLM when a request comes, holds the caller until the model
    is ready, streams the answer, and puts vLLM to sleep when nobody uses it.
    """


def main(begin: Begin | None = None) -> None:
    """Run the command line, and end with a status of `output.EXIT_STATUSES`; an error is a sentence on standard error.

    `begin` is told what `serve` is asked to do, and does it.
    """
    if COMPLETE_VARIABLE in os.environ:
        from vllm_chill.cli.completion import use_line

        use_line()
    try:
        status = cli.main(prog_name=NAME, standalone_mode=False, obj=begin)
    except (SettingError, AskFailed, click.ClickException) as error:
        status = print_error(error, as_json=wants_json(sys.argv[1:]))
    except click.Abort:  # click has ended the line
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)
