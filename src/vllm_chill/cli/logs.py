"""`vllm-chill logs`: what the engine of a model writes, by way of a running proxy."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlencode

import click

from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.core.engine_output import cleaned
from vllm_chill.core.routing import Route

_LINES = 100
_MOST_LINES = 2000
_INTERRUPTED = 130


@click.command(short_help="Print what an engine writes.")
@click.argument("model", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with all that is written, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1, _MOST_LINES),
    default=_LINES,
    show_default=True,
    help="How many of the last lines, of each replica.",
)
@click.option("--replica", help="The only replica whose output counts: a pod's name, or that of a run.")
@url_option
def logs(url: str, model: str | None, lines: int, replica: str | None, *, follow: bool) -> None:
    """Print what the engine of MODEL writes. Without MODEL: that of requests which name none.

    A line such as "==> vllm-7d9c-x2k4p <==" says which replica wrote those after it. Nothing is woken: with -f this
    waits for the next start, and goes on with it.

    Exit status: 0, 1 if the proxy cannot be asked, or 130 after Ctrl-C.
    """
    query = {"lines": str(lines)}
    if follow:
        query["follow"] = "true"
    if model is not None:
        query["model"] = model
    if replica is not None:
        query["replica"] = replica
    try:
        for line in Proxy(url).lines(f"{Route.PROXY_LOGS.value}?{urlencode(query)}"):
            # Cleaned again, as it is this terminal that would suffer.
            sys.stdout.write(f"{cleaned(line)}\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read it has had enough; what is left is not to be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
