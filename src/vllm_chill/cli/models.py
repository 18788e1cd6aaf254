"""`vllm-chill models | switch | wake | sleep`: which models a running proxy has, and which of them run."""

from __future__ import annotations

import sys

import click

from vllm_chill.api.choice import AvailableModel, AvailableModels, OperationDone, Switched
from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, Told, url_option
from vllm_chill.cli.completing import model_argument, model_names
from vllm_chill.cli.output import json_option, print_json
from vllm_chill.cli.status import words_of
from vllm_chill.cli.tables import aligned, cut
from vllm_chill.core.cold_start import about, duration, time_left
from vllm_chill.core.routing import Route

_MODELS_EPILOG = """\b
Examples:
  vllm-chill models
  vllm-chill models --json | jq -r '.models[] | select(.state == "ready").name'
"""
_SWITCH_EPILOG = """\b
Examples:
  vllm-chill switch coder
  vllm-chill switch coder --wake --wait
"""
_WAKE_EPILOG = """\b
Examples:
  vllm-chill wake
  vllm-chill wake coder --no-wait && vllm-chill wait coder --timeout 20m
"""
_SLEEP_EPILOG = """\b
Examples:
  vllm-chill sleep coder
"""
_DETAIL_CHARACTERS = 80
_COLUMNS = ("MODEL", "SERVED AS", "STATE", "REPLICAS", "IN FLIGHT", "WAITING", "")
_NUMBERS = range(3, 6)


@click.command(short_help="List the models of a running proxy.", epilog=_MODELS_EPILOG)
@json_option
@url_option
def models(url: str, as_json: bool) -> None:
    """List the models of a running proxy: what requests call each, how it is, and who uses it.

    --json prints the answer of GET /proxy/models/available.
    """
    proxy = Proxy(url)
    available = proxy.ask("GET", Route.PROXY_AVAILABLE.value, AvailableModels)
    if as_json:
        print_json(available.text)
    else:
        click.echo(table(available.value, proxy.get(Route.PROXY_STATUS.value, ProxyStatus)))


@click.command(short_help="Make a model that of requests which name none.", epilog=_SWITCH_EPILOG)
@click.argument("model", shell_complete=model_names)
@click.option("--wake", is_flag=True, help="Wake it too; else the next request for it does.")
@click.option("--wait", is_flag=True, help="Return once the models before it sleep and, with --wake, it is ready.")
@json_option
@url_option
def switch(url: str, model: str, wake: bool, wait: bool, as_json: bool) -> None:
    """Make MODEL the model of requests that name none, until the proxy is started anew.

    The model before it, and those of its group, sleep once their answers have ended: no stream is cut. MODEL is any of
    its names. --json prints the answer of POST /proxy/models/switch.
    """
    query = "?wait=true" if wait else ""
    body = {"model_id": model, "wake": wake}
    told = Proxy(url).ask("POST", Route.PROXY_SWITCH.value + query, Switched, body, waits=wait)
    if as_json:
        print_json(told.text)
    else:
        click.echo(f"{told.value.message} {told.value.note}")


@click.command(short_help="Wake a model.", epilog=_WAKE_EPILOG)
@model_argument
@click.option("--no-wait", is_flag=True, help="Return at once, and not when it is ready.")
@json_option
@url_option
def wake(url: str, model: str | None, no_wait: bool, as_json: bool) -> None:
    """Wake MODEL, and return when it is ready. Without MODEL: the model of requests that name none.

    It waits for as long as the proxy holds a caller. --json prints the answer of POST /proxy/operations/start.
    """
    if not no_wait and sys.stderr.isatty():
        click.echo("Waiting until it is ready; Ctrl-C ends the wait and not the wake.", err=True)
    query = "?wait=false" if no_wait else ""
    _print(_operate(url, Route.PROXY_START, query, model, waits=not no_wait), as_json=as_json)


@click.command(short_help="Put a model to sleep.", epilog=_SLEEP_EPILOG)
@model_argument
@json_option
@url_option
def sleep(url: str, model: str | None, as_json: bool) -> None:
    """Put MODEL to sleep once its answers have ended. Without MODEL: the model of requests that name none.

    --json prints the answer of POST /proxy/operations/stop.
    """
    _print(_operate(url, Route.PROXY_STOP, "", model, waits=True), as_json=as_json)


def _operate(url: str, route: Route, query: str, model: str | None, *, waits: bool) -> Told[OperationDone]:
    body = {} if model is None else {"model_id": model}
    return Proxy(url).ask("POST", route.value + query, OperationDone, body, waits=waits)


def _print(told: Told[OperationDone], *, as_json: bool) -> None:
    if as_json:
        print_json(told.text)
    else:
        click.echo(told.value.message)


def table(available: AvailableModels, status: ProxyStatus) -> str:
    """The models for a person: a row for each, and what is to be said of all of them."""
    how = {target.model or target.target: target for target in status.targets}
    rows = [_row(model, how.get(model.name), status.default_model) for model in available.models]
    if not rows:
        return "There is no model yet."
    lines = aligned([_COLUMNS, *rows], _NUMBERS)
    if status.default_model is not None and len(rows) > 1:
        lines += ["", "* gets the requests that name no model"]
    return "\n".join(lines)


def _row(model: AvailableModel, target: TargetStatus | None, default: str | None) -> tuple[str, ...]:
    names = (model.servedModelName, *model.aliases, model.name)
    numbers = (None,) * 3 if target is None else (_replicas(target), target.in_flight, target.waiting)
    return (
        f"{model.name}{' *' if default is not None and default in names else ''}",
        model.servedModelName or "-",
        model.state,
        *("-" if number is None else str(number) for number in numbers),
        cut(_detail(model, target), _DETAIL_CHARACTERS),
    )


def _replicas(target: TargetStatus) -> int | str | None:
    """How many there are; those that are ready of them, where not all are."""
    ready = target.ready_replicas
    return target.replicas if ready in (None, target.replicas) else f"{ready}/{target.replicas}"


def _detail(model: AvailableModel, target: TargetStatus | None) -> str:
    """What there is to say of it besides its state: how long it takes yet, or why it is so."""
    if model.state == "asleep":
        return "" if model.eta_seconds is None else f"a start takes {about(model.eta_seconds)}"
    if target is None:
        return ""
    if model.state == "waking":
        left = "" if model.eta_seconds is None else time_left(model.eta_seconds)
        return left or ("" if target.start is None else f"{duration(target.start.elapsed_seconds)} so far")
    if target.waits_for:
        return f"waits for {', '.join(target.waits_for)}"
    if target.idle_seconds is not None:
        idle = f"idle for {words_of(target.idle_seconds)}"
        sleeps = words_of(target.sleeps_in_seconds)
        return idle if sleeps is None else f"{idle}, sleeps in {sleeps}"
    return target.cause or ""
