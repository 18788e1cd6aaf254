"""`vllm-chill top`: the view where there is a terminal, and one picture of it where there is none."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, datetime

import click

from vllm_chill.api.status import ProxyStatus
from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.cli.top.lines import text_of
from vllm_chill.cli.top.summary import Savings, savings_of, summary
from vllm_chill.cli.top.table import SORTS, heading, row, sorted_by
from vllm_chill.core.routing import Route
from vllm_chill.errors import SettingError

_EPILOG = """\b
Keys: arrows select, enter details, w wake, z sleep (it asks first), s sort, q quit.

\b
Examples:
  vllm-chill top
  vllm-chill top --sort waiting
  watch -n 5 vllm-chill top --once
"""


@click.command(short_help="Show a running proxy's targets live.", epilog=_EPILOG)
@click.option("--once", is_flag=True, help="Print it once, as is done where the output is no terminal.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="name", help="What to sort by. [default: name]")
@json_option
@url_option
def top(once: bool, sort: str, as_json: bool, url: str) -> None:
    """Show a running proxy's targets live: their phases, starts and who waits, and what is saved today.

    It needs vllm-chill[top]; --once does not. --json prints the answer of GET /proxy/status once.
    """
    proxy = Proxy(url)
    if not once and not as_json and _is_terminal():
        show(proxy, sort)
        return
    told = proxy.ask("GET", Route.PROXY_STATUS.value, ProxyStatus)
    if as_json:
        print_json(told.text)
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        click.echo(picture(told.value, url, width, sort, savings_of(proxy)))


def _is_terminal() -> bool:
    """Whether there is a terminal that can be drawn on."""
    return sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def show(proxy: Proxy, sort: str) -> None:
    """Show it until the person has enough of it. Raises what the proxy says to whom it does not tell."""
    try:
        from vllm_chill.cli.top.app import Top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        raise SettingError(
            "top: a live view needs textual; install it: pip install 'vllm-chill[top]', or see: vllm-chill top --once"
        ) from None
    app = Top(proxy, sort)
    app.run()
    if app.failed is not None:
        raise app.failed


def picture(status: ProxyStatus, url: str, width: int, sort: str, savings: Savings | None) -> str:
    """The view as text."""
    lines = summary(status, url, width, savings, datetime.now(UTC))
    head = heading(width) if status.targets else None
    lines += [(), head] if head is not None else [()] if status.targets else []
    for target in sorted_by(sort, status.targets):
        lines += row(target, status, width)
    return "\n".join(map(text_of, lines))
