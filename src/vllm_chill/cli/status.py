"""`vllm-chill status`: asks a running proxy how its targets are."""

from __future__ import annotations

from datetime import timedelta

import click
import durationpy

from vllm_chill.api.status import PastStartStatus, PeersStatus, ProxyStatus, StartStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.core.cold_start import STAGE_NAMES, STAGE_WORDS, duration, time_left
from vllm_chill.core.engine_output import cleaned
from vllm_chill.core.routing import Route
from vllm_chill.core.target import Stage

_STAGE_WORDS = {STAGE_NAMES[stage]: words for stage, words in STAGE_WORDS.items()}


_EPILOG = """\b
Examples:
  vllm-chill status
  vllm-chill status --url http://chill.ai-apps --json | jq '.targets[].phase'
"""


@click.command(short_help="Tell how a running proxy's targets are.", epilog=_EPILOG)
@json_option
@url_option
def status(url: str, as_json: bool) -> None:
    """Tell how a running proxy's targets are: the phase of each, who waits, and when it sleeps.

    --json prints the answer of GET /proxy/status.
    """
    told = Proxy(url).ask("GET", Route.PROXY_STATUS.value, ProxyStatus)
    if as_json:
        print_json(told.text)
    else:
        click.echo(tell(told.value))


def tell(answer: ProxyStatus) -> str:
    """The status for a person: a paragraph for each target, with an empty line between them."""
    paragraphs = [describe(target) for target in answer.targets]
    if answer.trouble is not None:
        paragraphs.append(f"The models are not known: {answer.trouble}.")
    elif not answer.targets:
        paragraphs.append("There is no model yet.")
    if answer.default_model is not None and len(answer.targets) > 1:
        paragraphs.append(f"Requests that name no model get {answer.default_model}.")
    if answer.peers is not None and (sentence := words_of_peers(answer.peers)) is not None:
        paragraphs.append(sentence)
    if answer.configuration is not None and answer.configuration.error is not None:
        paragraphs.append(f"The configuration before holds on: {cleaned(answer.configuration.error).rstrip('.')}.")
    if answer.configuration is not None and (names := answer.configuration.needs_restart):
        paragraphs.append(f"What has changed of {', '.join(names)} counts after a restart.")
    if answer.draining:
        paragraphs.append("This proxy is shutting down.")
    return ("\n\n" if len(answer.targets) > 1 else "\n").join(paragraphs)


def words_of_peers(peers: PeersStatus) -> str | None:
    """A sentence on the other proxies; None if there is nothing to say."""
    if peers.trouble is not None:
        return f"Nothing is put to sleep: other proxies cannot be told who is served here: {peers.trouble}."
    if not peers.others:
        return None
    others = f"{len(peers.others)} other {'proxy serves' if len(peers.others) == 1 else 'proxies serve'} this too"
    leads = "this one puts it to sleep" if peers.leads else f"{peers.leader or 'nobody yet'} puts it to sleep"
    return f"{others}; {leads}."


def describe(target: TargetStatus) -> str:
    """One target for a person: a row for each thing there is to say."""
    return "\n".join(f"{name:<10} {value}" for name, value in rows_of(target))


def rows_of(target: TargetStatus) -> list[tuple[str, str]]:
    """Each thing there is to say of a target, with what it is called."""
    rows = [
        ("model", target.model),
        ("served as", ", ".join(target.served_names) or None),
        ("group", target.group),
        ("target", target.target),
        ("phase", target.phase + (f", for {words_of(target.phase_seconds)}" if target.phase_seconds else "")),
        ("cause", target.cause),
        ("waits for", ", ".join(target.waits_for) or None),
        ("start", None if target.start is None else words_of_start(target.start)),
        ("output", f"\n{'':<10} ".join(map(cleaned, target.output)) if target.output else None),
        ("waiting", str(target.waiting)),
        ("in flight", str(target.in_flight)),
        ("idle for", words_of(target.idle_seconds)),
        ("sleeps in", words_of(target.sleeps_in_seconds)),
        ("replicas", replicas_of(target.replicas, target.ready_replicas, target.desired_replicas)),
        ("scaling", target.scaling),
        ("endpoints", ", ".join(target.endpoints) or None),
        ("last start", None if target.last_start is None else _last_start(target.last_start, target.cause)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def replicas_of(current: int | None, ready: int | None, desired: int | None) -> str | None:
    """How many replicas there are, with how many are ready and wanted where that is another number; None if it is not
    known.
    """
    if current is None:
        return None
    there = str(current) if ready in (None, current) else f"{ready} of {current} ready"
    return there if desired in (None, current) else f"{there}, {desired} wanted"


def words_of_start(start: StartStatus) -> str:
    """A cold start under way: its stage, and the time."""
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


def words_of(seconds: float | None) -> str | None:
    """A time as people write it, in whole seconds: `2m10s`."""
    if seconds is None:
        return None
    return str(durationpy.to_str(timedelta(seconds=round(seconds)))) if round(seconds) else "0s"
