"""`vllm-chill status`: asks a running proxy how its target is."""

from __future__ import annotations

import http.client
import json
import sys
from datetime import timedelta
from urllib.parse import urlsplit

import click
import durationpy
from pydantic import ValidationError

from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.errors import SettingError

_TIMEOUT_SECONDS = 10


@click.command(short_help="Tell the state of a running proxy.")
@click.option(
    "--url",
    default="http://127.0.0.1:8080",
    envvar="VLLM_CHILL_URL",
    help="The proxy to ask. [VLLM_CHILL_URL; default: http://127.0.0.1:8080]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the proxy's answer as JSON.")
def status(url: str, as_json: bool) -> None:
    """Tell the state of a running proxy: its target, the phase, who waits, and when it sleeps.

    Exit status: 0, or 1 if the proxy cannot be asked.
    """
    try:
        answer = _ask(url)
    except (OSError, http.client.HTTPException, ValidationError) as error:
        reason = "it does not answer as vllm-chill does" if isinstance(error, ValidationError) else error
        click.echo(f"vllm-chill: {url} cannot be asked: {reason}; is vllm-chill running there? (see --url)", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(answer.model_dump(), indent=2))
        return
    for target in answer.targets:
        click.echo(_describe(target))
    if answer.draining:
        click.echo("This proxy is shutting down.")


def _ask(url: str) -> ProxyStatus:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f'--url: "{url}" is not accepted; give a URL such as http://127.0.0.1:8080')
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/proxy/status")
        return ProxyStatus.model_validate_json(connection.getresponse().read())
    finally:
        connection.close()


def _describe(target: TargetStatus) -> str:
    rows = [
        ("target", target.target),
        ("phase", target.phase + (f", for {_words(target.phase_seconds)}" if target.phase_seconds else "")),
        ("cause", target.cause),
        ("waiting", str(target.waiting)),
        ("in flight", str(target.in_flight)),
        ("idle for", _words(target.idle_seconds)),
        ("sleeps in", _words(target.sleeps_in_seconds)),
        ("replicas", None if target.replicas is None else str(target.replicas)),
        ("endpoints", ", ".join(target.endpoints) or None),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows if value is not None)


def _words(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return str(durationpy.to_str(timedelta(seconds=round(seconds)))) if round(seconds) else "0s"
