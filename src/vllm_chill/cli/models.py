"""`vllm-chill models | switch | wake | sleep`: which models a running proxy has, and which of them run."""

from __future__ import annotations

import json
import sys

import click
from msgspec import to_builtins

from vllm_chill.api.choice import AvailableModel, AvailableModels, OperationDone, Switched
from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, url_option
from vllm_chill.cli.status import words_of
from vllm_chill.cli.tables import aligned, cut
from vllm_chill.core.cold_start import about, duration, time_left
from vllm_chill.core.routing import Route

_DETAIL_CHARACTERS = 80
_COLUMNS = ("MODEL", "SERVED AS", "STATE", "REPLICAS", "IN FLIGHT", "WAITING", "")
_NUMBERS = range(3, 6)


@click.command(short_help="List the models of a running proxy.")
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print the proxy's answer as JSON.")
def models(url: str, as_json: bool) -> None:
    """List the models of a running proxy: what requests call each, how it is, and who uses it.

    Exit status: 0, or 1 if the proxy cannot be asked.
    """
    proxy = Proxy(url)
    available = proxy.get(Route.PROXY_AVAILABLE.value, AvailableModels)
    if as_json:
        click.echo(json.dumps(to_builtins(available), indent=2))
        return
    click.echo(table(available, proxy.get(Route.PROXY_STATUS.value, ProxyStatus)))


@click.command(short_help="Make a model that of requests which name none.")
@click.argument("model")
@click.option("--wake", is_flag=True, help="Wake it too; else the next request for it does.")
@click.option("--wait", is_flag=True, help="Return once the models before it sleep and, with --wake, it is ready.")
@url_option
def switch(url: str, model: str, wake: bool, wait: bool) -> None:
    """Make MODEL the model of requests that name none, until the proxy is started anew.

    The model before it, and those of its group, sleep once their answers have ended: no stream is cut. MODEL is any of
    its names.

    Exit status: 0, or 1 if the proxy cannot be asked or cannot do it.
    """
    query = "?wait=true" if wait else ""
    body = {"model_id": model, "wake": wake}
    answer = Proxy(url).post(Route.PROXY_SWITCH.value + query, body, Switched, waits=wait)
    click.echo(f"{answer.message} {answer.note}")


@click.command(short_help="Wake a model.")
@click.argument("model", required=False)
@click.option("--no-wait", is_flag=True, help="Return at once, and not when it is ready.")
@url_option
def wake(url: str, model: str | None, no_wait: bool) -> None:
    """Wake MODEL, and return when it is ready. Without MODEL: the model of requests that name none.

    Exit status: 0, or 1 if the proxy cannot be asked or the model cannot be woken.
    """
    if not no_wait and sys.stderr.isatty():
        click.echo("Waiting until it is ready; Ctrl-C ends the wait and not the wake.", err=True)
    query = "?wait=false" if no_wait else ""
    click.echo(_operate(url, Route.PROXY_START, query, model, waits=not no_wait))


@click.command(short_help="Put a model to sleep.")
@click.argument("model", required=False)
@url_option
def sleep(url: str, model: str | None) -> None:
    """Put MODEL to sleep once its answers have ended. Without MODEL: the model of requests that name none.

    Exit status: 0, or 1 if the proxy cannot be asked or the model does not sleep.
    """
    click.echo(_operate(url, Route.PROXY_STOP, "", model, waits=True))


def _operate(url: str, route: Route, query: str, model: str | None, *, waits: bool) -> str:
    body = {} if model is None else {"model_id": model}
    return Proxy(url).post(route.value + query, body, OperationDone, waits=waits).message


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
