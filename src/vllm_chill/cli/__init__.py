"""The command line: `vllm-chill serve | status | models | switch | wake | sleep | crd | demo | version`."""

from __future__ import annotations

import sys

import click

from vllm_chill.cli.asking import AskFailed
from vllm_chill.cli.crd import print_crd
from vllm_chill.cli.demo import demo
from vllm_chill.cli.models import models, sleep, switch, wake
from vllm_chill.cli.serve import serve
from vllm_chill.cli.status import status
from vllm_chill.errors import SettingError

_EPILOG = """\b
Try it on this machine, with nothing to install:
  vllm-chill demo
\b
In front of a vLLM on this machine, which runs only while it is used:
  vllm-chill serve --backend process -- vllm serve Qwen/Qwen3-0.6B --port {port}
\b
In front of the Deployment ai-apps/vllm and its Service vllm-svc:
  vllm-chill serve --namespace ai-apps --deployment vllm --target-host vllm-svc
"""


@click.group(
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


for command in (serve, status, models, switch, wake, sleep, print_crd, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line; a setting that cannot be used ends it with status 2 and a line for each, a proxy that
    cannot do what is asked of it with status 1.
    """
    try:
        cli(standalone_mode=True)
    except SettingError as error:
        for line in error.message.splitlines():
            click.echo(f"vllm-chill: {line}", err=True)
        sys.exit(2)
    except AskFailed as error:
        click.echo(f"vllm-chill: {error.message}", err=True)
        sys.exit(1)
