"""Which models there are, which run, and which one requests get that name none: /proxy/models/*.

The rule: a switch cuts nothing. What has to make room goes to sleep once its answers have ended.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from msgspec import to_builtins

from vllm_chill.api.choice import (
    AvailableModel,
    AvailableModels,
    RunningModel,
    RunningModels,
    SwitchAsked,
    Switched,
    available_model,
    running_config,
)
from vllm_chill.core.routing import Route
from vllm_chill.core.target import Queued, Ready, Waking
from vllm_chill.errors import AnswerableError, BadRequest, ChillError, NoCatalogue, SwitchFailed
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.web import asked
from vllm_chill.web.targets import chosen, name_of, state_of, unnamed

_EXAMPLE = '{"model_id": "NAME"}'


class Switching(Protocol):
    """Whoever knows which models exclude each other, and has one take the place of others."""

    def rivals(self, name: str) -> tuple[str, ...]:
        """The models that cannot be awake while this one is."""

    def waits_for(self, name: str) -> tuple[str, ...]:
        """The models that have to sleep before this one, which is wanted, can be woken."""

    async def switch(self, name: str, *, wake: bool, wait: bool) -> None:
        """Put to sleep, once their answers have ended, the model that was switched to before and this one's rivals;
        with `wake`, wake this one then. With `wait`, return when that is so. Raises a ChillError if it cannot be.
        """


class ModelsApi:
    """The models of one proxy. `switching` is None where it has one target and no catalogue."""

    def __init__(self, directory: Directory, switching: Switching | None) -> None:
        self._directory = directory
        self._switching = switching

    async def available(self, _: web.BaseRequest) -> web.Response:
        """Every model, and how it is."""
        self._directory.require_read()
        models = [_available(served) for served in self._directory]
        return web.json_response(to_builtins(AvailableModels(models=models, count=len(models))))

    async def running(self, _: web.BaseRequest) -> web.Response:
        """The model of requests that name none, and all that have their GPUs."""
        active = unnamed(self._directory)
        model = None if active is None else _available(active)
        answer = RunningModels(
            active_model=None if active is None or model is None else self._active_name(active, model),
            running=active is not None and active.controller.runs,
            state=None if model is None else model.state,
            config=None if active is None or model is None else running_config(active.entry, model),
            models=[_running(served) for served in self._directory if served.controller.runs],
        )
        return web.json_response(to_builtins(answer))

    async def switch(self, request: web.BaseRequest) -> web.Response:
        """Make a model that of requests which name none, and have its rivals make room."""
        if self._switching is None or self._directory.only is not None:
            has = f": {self._directory.only.name}" if self._directory.only is not None else ""
            raise NoCatalogue(f"this proxy has one target{has}; --models gives it models to switch between.")
        wait = asked.flag(request, "wait", default=False)
        wish = await asked.body(request, SwitchAsked, _EXAMPLE)
        if wish is None:
            raise BadRequest(f"the body is empty; send JSON such as {_EXAMPLE}")
        served = chosen(self._directory, wish.model_id)
        name = name_of(self._directory, served)
        leaving = self._rivals(served)
        self._directory.default = name
        try:
            await self._switching.switch(served.name, wake=wish.wake, wait=wait)
        except AnswerableError:
            raise
        except ChillError as error:
            raise SwitchFailed(f"{name} is the model of requests that name none now, but: {error.message}") from None
        answer = Switched(
            message=f"Switched: {name} is the model of requests that name none.",
            active_model=name,
            note=" ".join(_notes(served, [name_of(self._directory, one) for one in leaving if one.controller.runs])),
        )
        return web.json_response(to_builtins(answer))

    def _active_name(self, active: Served, model: AvailableModel) -> str:
        return name_of(self._directory, active) if active.entry is not None else model.servedModelName or model.name

    def _rivals(self, served: Served) -> list[Served]:
        assert self._switching is not None
        rivals = set(self._switching.rivals(served.name))
        former = unnamed(self._directory)
        if former is not None and former is not served:
            rivals.add(former.name)
        return [other for other in self._directory if other.name in rivals]


def _available(served: Served) -> AvailableModel:
    return available_model(served.entry, served.controller.target, served.knowledge.models, state_of(served))


def _running(served: Served) -> RunningModel:
    target, model = served.controller.target, _available(served)
    return RunningModel(
        name=model.name,
        servedModelName=model.servedModelName,
        state=model.state,
        replicas=target.observed.replicas if target.observed is not None else None,
        waiting=target.waiting,
        in_flight=target.in_flight,
    )


def _notes(served: Served, leaving: list[str]) -> list[str]:
    notes = []
    if leaving:
        goes, its = ("goes", "its") if len(leaving) == 1 else ("go", "their")
        notes.append(f"{' and '.join(leaving)} {goes} to sleep once {its} answers have ended.")
    match served.controller.target.phase:
        case Ready():
            notes.append("It is ready.")
        case Waking() | Queued():
            notes.append(f"It is being woken; GET {Route.PROXY_STATUS.value} tells how far it is.")
        case _:
            notes.append("The next request for it wakes it.")
    return notes
