"""`vllm-chill wait`: returns when a model is as it is wanted to be; for scripts."""

from __future__ import annotations

import json
import queue
import time
from datetime import timedelta

import click
import durationpy

from vllm_chill.api.status import PhaseName, ProxyStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, Told, url_option
from vllm_chill.cli.completing import model_argument
from vllm_chill.cli.feed import Away, Heard, follow_aside
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.cli.status import words_of
from vllm_chill.errors import AskFailed, CannotBeAsked, ChillError, SettingError, TimeOver

_EPILOG = """\b
Examples:
  vllm-chill wake coder --no-wait && vllm-chill wait coder --timeout 20m
  vllm-chill wait coder --for asleep --timeout 1h
  vllm-chill wait --timeout 0s || echo "not ready now"
"""
_PATIENCE_SECONDS = 10.0


@click.command(short_help="Wait until a model is ready, or asleep.", epilog=_EPILOG)
@model_argument
@click.option(
    "--for",
    "wanted",
    type=click.Choice(["ready", "asleep"]),
    default="ready",
    help="What to wait for. [default: ready]",
)
@click.option("--timeout", metavar="DURATION", default="5m", help="How long; 0s: not at all, only look. [default: 5m]")
@json_option
@url_option
def wait(model: str | None, wanted: PhaseName, timeout: str, as_json: bool, url: str) -> None:
    """Wait until MODEL is ready, and wake nothing. Without MODEL: the model of requests that name none.

    A proxy that goes away is asked again. When the start of the model fails, the wait for it ends at once, with the
    cause and exit status 1; when the time is over, with 5. --json prints the target, as GET /proxy/status has it.
    """
    seconds = _seconds(timeout)
    heard: queue.SimpleQueue[Heard | ChillError] = queue.SimpleQueue()
    over = follow_aside(Proxy(url), heard.put)
    try:
        target = _until(heard, model, wanted, seconds)
    finally:
        over.set()
    if as_json:
        print_json(target)
    else:
        click.echo(f"{target['model'] or target['target']} is {wanted}.")


def _until(
    heard: queue.SimpleQueue[Heard | ChillError], model: str | None, wanted: PhaseName, seconds: float
) -> dict[str, object]:
    """The target, as the proxy tells it, once it is as it is wanted."""
    deadline = time.monotonic() + seconds
    last: Heard | None = None
    while True:
        first = last is None
        left = deadline - time.monotonic()
        try:
            told = heard.get(timeout=_PATIENCE_SECONDS if not seconds else max(left, 0.001))
        except queue.Empty:
            raise _late(last, model, wanted, seconds) from None
        if isinstance(told, ChillError):
            raise told
        last = told
        if isinstance(told, Told):
            target = target_of(told.value, model)
            if target.phase == wanted:
                return _as_told(told, target)
            if target.phase == "failed" and wanted == "ready":
                raise AskFailed(f"{_name(target)} has failed: {target.cause or 'its cause is not known'}")
        if first and seconds == 0:
            raise _late(last, model, wanted, seconds)


def _late(last: Heard | None, model: str | None, wanted: PhaseName, seconds: float) -> AskFailed:
    if isinstance(last, Away):
        return last.error
    if last is None:
        return CannotBeAsked("the proxy has not answered; is vllm-chill running there? (see --url)")
    target = target_of(last.value, model)
    how = target.phase if not seconds else f"{target.phase} after {words_of(seconds)}"
    return TimeOver(f"{_name(target)} is {how}, and not {wanted}")


def target_of(status: ProxyStatus, model: str | None) -> TargetStatus:
    """The target of a model, by any of its names; of None, that of requests that name none. Raises AskFailed."""
    names = {name: target for target in status.targets for name in _names(target)}
    wanted = model if model is not None else status.default_model
    if wanted is not None and wanted in names:
        return names[wanted]
    if len(status.targets) == 1 and (model is None or status.targets[0].model is None):
        return status.targets[0]
    if status.trouble is not None:
        raise AskFailed(f"the models are not known: {status.trouble}")
    known = ", ".join(sorted({_name(target) for target in status.targets})) or "none yet"
    if model is None:
        raise AskFailed(f"no model is that of requests which name none; say which one: {known}")
    raise AskFailed(f'the model "{model}" does not exist; known: {known}')


def _names(target: TargetStatus) -> tuple[str, ...]:
    return (target.target, *([] if target.model is None else [target.model]), *target.served_names)


def _name(target: TargetStatus) -> str:
    return target.model or target.target


def _as_told(told: Told[ProxyStatus], target: TargetStatus) -> dict[str, object]:
    targets: list[dict[str, object]] = json.loads(told.text)["targets"]
    return next(one for one in targets if one["target"] == target.target)


def _seconds(text: str) -> float:
    try:
        duration: timedelta = durationpy.from_str(text.strip())
    except (ValueError, OverflowError):
        duration = timedelta(-1)
    if duration < timedelta(0):
        raise SettingError(f'--timeout: "{text}" is not accepted; give a duration of zero or more, such as 30s or 10m')
    return duration.total_seconds()
