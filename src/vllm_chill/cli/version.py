"""`vllm-chill version`: which version the command line is; a proxy's own is in its status."""

from __future__ import annotations

import click

from vllm_chill.cli.output import json_option, print_json


@click.command(short_help="Print the version.")
@json_option
def version(as_json: bool) -> None:
    """Print the version of this program; that of a running proxy is in its status."""
    from importlib.metadata import version as version_of

    found = version_of("vllm-chill")
    if as_json:
        print_json({"version": found})
    else:
        click.echo(f"vllm-chill {found}")
