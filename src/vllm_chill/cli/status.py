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

from vllm_chill.api.status import PastStartStatus, ProxyStatus, StartStatus, TargetStatus
from vllm_chill.core.cold_start import STAGE_NAMES, STAGE_WORDS, duration, time_left
from vllm_chill.core.target import Stage
from vllm_chill.errors import SettingError

_TIMEOUT_SECONDS = 10
_STAGE_WORDS = {STAGE_NAMES[stage]: words for stage, words in STAGE_WORDS.items()}


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
        click.echo(describe(target))
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


def describe(target: TargetStatus) -> str:
    """The status for a person: a row for each thing there is to say."""
    rows = [
        ("target", target.target),
        ("phase", target.phase + (f", for {_words(target.phase_seconds)}" if target.phase_seconds else "")),
        ("cause", target.cause),
        ("start", None if target.start is None else _start(target.start)),
        ("waiting", str(target.waiting)),
        ("in flight", str(target.in_flight)),
        ("idle for", _words(target.idle_seconds)),
        ("sleeps in", _words(target.sleeps_in_seconds)),
        ("replicas", None if target.replicas is None else str(target.replicas)),
        ("endpoints", ", ".join(target.endpoints) or None),
        ("last start", None if target.last_start is None else _last_start(target.last_start, target.cause)),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows if value is not None)


def _start(start: StartStatus) -> str:
    parts = [_with_detail(start.stage, start.detail), f"{duration(start.elapsed_seconds)} so far"]
    if start.eta_seconds is not None and start.stage != STAGE_NAMES[Stage.ANSWERING]:
        parts.append(time_left(start.eta_seconds))
    return ", ".join(parts)


def _last_start(start: PastStartStatus, told: str | None) -> str:
    """Its outcome, and a row for each stage. `told` is a cause that is said elsewhere."""
    summary = f"{start.outcome} after {_precisely(start.total_seconds)}"
    if start.stopped_at is not None:
        summary += f", {_with_detail(start.stopped_at, start.detail)}"
    if start.cause is not None and start.cause != told:
        summary += f": {start.cause}"
    width = max((len(_doing(stage)) for stage in start.stages), default=0)
    rows = (f"{_doing(stage):<{width}}  {_precisely(seconds):>6}" for stage, seconds in start.stages.items())
    return "\n".join([summary, *(f"{'':<10}   {row}" for row in rows)])


def _with_detail(stage: str, detail: str | None) -> str:
    return f"{_doing(stage)} ({detail})" if detail else _doing(stage)


def _doing(stage: str) -> str:
    return _STAGE_WORDS.get(stage, stage)  # a newer proxy may have more of them


def _precisely(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _words(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return str(durationpy.to_str(timedelta(seconds=round(seconds)))) if round(seconds) else "0s"
