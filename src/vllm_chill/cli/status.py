"""`vllm-chill status`: asks a running proxy how its targets are."""

from __future__ import annotations

import json
from datetime import timedelta

import click
import durationpy
from msgspec import to_builtins

from vllm_chill.api.status import PastStartStatus, PeersStatus, ProxyStatus, StartStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.core.cold_start import STAGE_NAMES, STAGE_WORDS, duration, time_left
from vllm_chill.core.engine_output import cleaned
from vllm_chill.core.routing import Route
from vllm_chill.core.target import Stage

_STAGE_WORDS = {STAGE_NAMES[stage]: words for stage, words in STAGE_WORDS.items()}


@click.command(short_help="Tell the state of a running proxy.")
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print the proxy's answer as JSON.")
def status(url: str, as_json: bool) -> None:
    """Tell the state of a running proxy: its targets, each with its phase, who waits, and when it sleeps.

    Exit status: 0, or 1 if the proxy cannot be asked.
    """
    answer = Proxy(url).get(Route.PROXY_STATUS.value, ProxyStatus)
    if as_json:
        click.echo(json.dumps(to_builtins(answer), indent=2))
        return
    click.echo(tell(answer))


def tell(answer: ProxyStatus) -> str:
    """The status for a person: a paragraph for each target, with an empty line between them."""
    paragraphs = [describe(target) for target in answer.targets]
    if answer.trouble is not None:
        paragraphs.append(f"The models are not known: {answer.trouble}.")
    elif not answer.targets:
        paragraphs.append("There is no model yet.")
    if answer.default_model is not None and len(answer.targets) > 1:
        paragraphs.append(f"Requests that name no model get {answer.default_model}.")
    if answer.peers is not None and (sentence := _peers(answer.peers)) is not None:
        paragraphs.append(sentence)
    if answer.configuration is not None and answer.configuration.error is not None:
        paragraphs.append(f"The configuration before holds on: {cleaned(answer.configuration.error).rstrip('.')}.")
    if answer.configuration is not None and (names := answer.configuration.needs_restart):
        paragraphs.append(f"What has changed of {', '.join(names)} counts after a restart.")
    if answer.draining:
        paragraphs.append("This proxy is shutting down.")
    return ("\n\n" if len(answer.targets) > 1 else "\n").join(paragraphs)


def _peers(peers: PeersStatus) -> str | None:
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
    rows = [
        ("model", target.model),
        ("served as", ", ".join(target.served_names) or None),
        ("group", target.group),
        ("target", target.target),
        ("phase", target.phase + (f", for {words_of(target.phase_seconds)}" if target.phase_seconds else "")),
        ("cause", target.cause),
        ("waits for", ", ".join(target.waits_for) or None),
        ("start", None if target.start is None else _start(target.start)),
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
    return "\n".join(f"{name:<10} {value}" for name, value in rows if value is not None)


def replicas_of(current: int | None, ready: int | None, desired: int | None) -> str | None:
    """How many replicas there are, with how many are ready and wanted where that is another number; None if it is not
    known.
    """
    if current is None:
        return None
    there = str(current) if ready in (None, current) else f"{ready} of {current} ready"
    return there if desired in (None, current) else f"{there}, {desired} wanted"


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


def words_of(seconds: float | None) -> str | None:
    """A time as people write it, in whole seconds: `2m10s`."""
    if seconds is None:
        return None
    return str(durationpy.to_str(timedelta(seconds=round(seconds)))) if round(seconds) else "0s"
