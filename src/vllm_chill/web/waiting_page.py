"""What a browser is shown while the target is not ready: a page that says how far it is, and lets the user in then.

The rule: whatever is not this package's own words is escaped, and the page can load and run nothing but itself. A tab
may be left open for days, so by itself a page looks again and never tries again: that takes a person.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from string import Template
from urllib.parse import quote, urlsplit

from aiohttp import hdrs, web

from vllm_chill.api.status import PhaseName, phase_name
from vllm_chill.core.cold_start import about, doing, duration, time_left
from vllm_chill.core.routing import DEFAULT_ROUTES, Route, Routes
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import Asleep, Draining, Failed, Queued, Ready, Target, Unknown, Waking
from vllm_chill.errors import TargetUnknown, WakeFailed
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.web.models_page import ModelsPage
from vllm_chill.web.page import html_headers, template
from vllm_chill.web.targets import chosen, is_ready, name_of, unnamed

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_TEMPLATE = template("waiting_page.html")
_STATUS = f"{Route.PROXY_STATUS.value}?view=page"
_START = f"{Route.PROXY_START.value}?wait=false"
_CHAT = "/v1/chat/completions"

_REFRESH_SECONDS = 3
"""Less than the first pause after a failed wake, so that a page which asks again sees that pause, and stops."""

_RETRY_AFTER_UNKNOWN_SECONDS = 5
_NAME_CHARACTERS = 160
_CAUSE_HEAD, _CAUSE_TAIL = 300, 600
_HOST = re.compile(r"[0-9A-Za-z.\-_:\[\]]{1,255}")
_LOCAL_TARGET = re.compile(r"/(?![/\\])[!-~]*")


def prefers_html(accept: str) -> bool:
    """Whether an Accept (RFC 9110, 12.5.1) names text/html, and nothing else before it that is wanted as much.

    A wildcard names nothing: programs send `*/*`.
    """
    best, best_quality = "", 0.0
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = _quality(parameters)
        if quality > best_quality and "*" not in name:
            best, best_quality = name, quality
    return best == "text/html"


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def is_for_a_person(request: web.BaseRequest) -> bool:
    """Whether a browser asks for a page that it will show."""
    headers = request.headers
    if (
        request.method != "GET"
        or hdrs.ACCEPT not in headers
        or not prefers_html(", ".join(headers.getall(hdrs.ACCEPT)))
    ):
        return False
    # Java's own client accepts HTML first, for want of anything better; a browser's script says that it is one.
    is_program = headers.get(hdrs.USER_AGENT, "").startswith("Java/") or hdrs.UPGRADE in headers
    return not is_program and headers.get("Sec-Fetch-Mode", "navigate") == "navigate"


def is_ahead_of_time(request: web.BaseRequest) -> bool:
    """Whether a browser asks for what the user may never look at."""
    purpose = request.headers.get("Sec-Purpose") or request.headers.get("Purpose") or ""
    return purpose.lower().startswith(("prefetch", "prerender"))


@dataclass(frozen=True, slots=True)
class Told:
    """What the page says of a target at one moment, each in words of its own; empty where there is nothing to say.

    `progress` is the part of the start that is over, 0 to 1, None where that is not known. `action` is the label of
    the button that wakes the target.
    """

    phase: PhaseName
    title: str
    doing: str
    cause: str = ""
    left: str = ""
    elapsed: str = ""
    waiting: str = ""
    progress: float | None = None
    action: str = ""


def told(target: Target, starts: Starts, now: float) -> Told:
    """What there is to say of a target and its starts at `now`."""
    name, waiting = phase_name(target.phase), _waiting(target.waiting)
    match target.phase:
        case Unknown(cause=cause):
            sentence = "How the target is, is not known yet; vllm-chill keeps asking."
            return Told(name, "Not known yet", sentence, _cut(cause or ""), waiting=waiting)
        case Asleep():
            whole = "" if starts.past.whole is None else f" A start takes {about(starts.past.whole)}."
            return Told(
                name,
                "Asleep",
                f"The model sleeps, and its GPU is free. This page does not wake it by itself.{whole}",
                action="Wake it",
            )
        case Queued():
            why = target.held_back or "it is its turn now"
            return Told(name, "In line", f"{why[0].upper()}{why[1:]}.", waiting=waiting)
        case Waking(trouble=trouble):
            return _told_waking(starts, now, trouble, waiting)
        case Ready():
            return Told(name, "Ready", "This page opens now.")
        case Draining(wake_again=again):
            if again or target.waiting:
                return Told(name, "Going to sleep", "It is woken again once it is down.", waiting=waiting)
            return Told(name, "Going to sleep", "It can be woken again.", action="Wake it")
        case Failed(cause=cause, retry_at=retry_at):
            pause = retry_at - now
            if pause > 0:
                return Told(
                    name, "Could not be woken", f"It can be tried again in {duration(max(1, pause))}.", _cut(cause)
                )
            return Told(name, "Could not be woken", "It can be tried again.", _cut(cause), action="Try again")


def _told_waking(starts: Starts, now: float, trouble: str | None, waiting: str) -> Told:
    title, cause = "Waking up", _cut(f"The last trouble was: {trouble}") if trouble else ""
    start, eta = starts.current, starts.eta(now)
    if start is None:
        return Told("waking", title, "", cause, waiting=waiting)
    words, elapsed = doing(start.progress), start.elapsed(now)
    return Told(
        "waking",
        title,
        f"{words[0].upper()}{words[1:]}",
        cause,
        left="" if eta is None else time_left(eta),
        elapsed=f"{duration(elapsed)} so far",
        waiting=waiting,
        progress=None if eta is None else round(elapsed / max(elapsed + eta, 0.001), 3),
    )


def _waiting(count: int) -> str:
    return "" if not count else "1 request waits" if count == 1 else f"{count} requests wait"


def _cut(cause: str) -> str:
    """A cause, without the middle of a long one: it begins with what happened, and ends with the last words."""
    if len(cause) <= _CAUSE_HEAD + _CAUSE_TAIL:
        return cause
    return f"{cause[:_CAUSE_HEAD]}\n…\n{cause[-_CAUSE_TAIL:]}"


class WaitingPage:
    """The page of a target; and where it cannot be told which one is wanted, that of all models."""

    def __init__(self, directory: Directory, routes: Routes = DEFAULT_ROUTES) -> None:
        self._directory = directory
        self._models = ModelsPage(directory)
        self._api_path = _api_path(routes)

    def before(self, proxied: Handler) -> Handler:
        """What handles the requests that wake: the page where it is in place, else `proxied`."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            page = self.instead(request, wakes=True)
            return page if page is not None else await proxied(request)

        return handle

    def instead(self, request: web.BaseRequest, *, wakes: bool) -> web.Response | None:
        """The page, if a browser asks for one while its target is not ready; `wakes`: what it asks for wakes that."""
        served = self._directory.only
        if (served is not None and is_ready(served)) or not is_for_a_person(request):
            return None
        if served is None:
            name = request.query.get("model")
            if name is None and (served := unnamed(self._directory)) is None:
                return self._models.page(wakes=wakes)
            served = served or self._directory.find(name or "")
        if served is None or is_ready(served):
            return None
        if wakes and not is_ahead_of_time(request):
            with contextlib.suppress(WakeFailed, TargetUnknown):  # the page says so
                served.controller.wake_for_nobody()
            if is_ready(served):
                return None  # it was about to be put to sleep
        where = self._where(served)
        page = rendered(_told(served), _name(served), self._example(request, served), wakes=wakes, where=where)
        headers = _HEADERS | {hdrs.RETRY_AFTER: str(_retry_after(served))}
        return web.Response(status=503, body=page.encode(errors="replace"), headers=headers)

    def tell(self, request: web.BaseRequest) -> web.Response:
        """What the page's script asks for, once a second. Raises ModelNotFound."""
        served = chosen(self._directory, request.query.get("model"))
        return web.json_response(asdict(_told(served)), headers={hdrs.CACHE_CONTROL: "no-store"})

    def _where(self, served: Served) -> Where:
        if self._directory.only is not None:
            return Where()
        name = quote(name_of(self._directory, served), safe="")
        return Where(f"{_STATUS}&model={name}", f"{_START}&model_id={name}")

    def _example(self, request: web.BaseRequest, served: Served) -> str:
        known = served.knowledge.models.models
        name = name_of(self._directory, served) if served.entry is not None else known[0].id if known else None
        body: dict[str, object] = {} if name is None else {"model": name[:_NAME_CHARACTERS]}
        if self._api_path == _CHAT:
            body["messages"] = [{"role": "user", "content": "Hello"}]
        scheme = "https" if request.headers.get(hdrs.X_FORWARDED_PROTO) == "https" else request.scheme
        host = request.host if _HOST.fullmatch(request.host) else "HOST"
        url = shlex.quote(f"{scheme}://{host}{self._api_path}")
        return f"curl {url} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(json.dumps(body))}"


def _told(served: Served) -> Told:
    target = served.controller.target
    return told(target, served.starts.settle(target), served.controller.now())


def _retry_after(served: Served) -> int:
    now = served.controller.now()
    match served.controller.target.phase:
        case Unknown():
            return _RETRY_AFTER_UNKNOWN_SECONDS
        case Failed(retry_at=retry_at):
            return max(1, math.ceil(retry_at - now))
        case _:
            return served.starts.retry_after(now)


def _name(served: Served) -> str:
    ref, names = str(served.controller.target.ref), served.knowledge.models.names
    if served.entry is not None:
        ref, names = served.entry.name, ", ".join(served.entry.names)
    shown = f"{names} ({ref})" if names and names != ref else ref
    return shown if len(shown) <= _NAME_CHARACTERS else f"{shown[: _NAME_CHARACTERS - 1]}…"


@dataclass(frozen=True, slots=True)
class Where:
    """Where a page asks how its target is, and where its button has it woken."""

    status: str = _STATUS
    start: str = _START


def rendered(now: Told, name: str, example: str, *, wakes: bool, where: Where | None = None) -> str:
    """The page. `name` is whose it is, `example` a command for who is no browser; `wakes`: to load it again wakes."""
    where = where or Where()
    looks = not (wakes and now.phase in ("failed", "asleep"))  # by itself it may look again, but not try again
    words = {field: html.escape(str(value)) for field, value in asdict(now).items()} | {
        "name": html.escape(name),
        "example": html.escape(example),
        "wakes": "yes" if wakes else "no",
        "status": html.escape(where.status),
        "doing_hidden": "" if now.doing else " hidden",
        "cause_hidden": "" if now.cause else " hidden",
        "progress": _progress(now),
        "action": _action(now, where, wakes=wakes, looks=looks),
        "refresh": f'<noscript><meta http-equiv="refresh" content="{_REFRESH_SECONDS}"></noscript>' if looks else "",
    }
    return _PAGE.substitute(words)


def page_of(request: web.BaseRequest) -> str | None:
    """The path and query of the page whose button was pressed where no script runs; None if it was not that."""
    if not prefers_html(request.headers.get(hdrs.ACCEPT, "")):
        return None
    try:
        page = urlsplit(request.headers.get(hdrs.REFERER, ""))
    except ValueError:
        return None
    target = f"{page.path}?{page.query}" if page.query else page.path
    return target if page.netloc == request.host and _LOCAL_TARGET.fullmatch(target) else None


def _api_path(routes: Routes) -> str:
    """A path to show in an example: the one that everybody knows, if it wakes here."""
    if routes.route_of("POST", _CHAT) is Route.PROXIED or not routes.wake_paths:
        return _CHAT
    return routes.wake_paths[0].rstrip("*")


def _progress(now: Told) -> str:
    if now.phase != "waking":
        return " hidden"
    return "" if now.progress is None else f' value="{now.progress}"'


def _action(now: Told, where: Where, *, wakes: bool, looks: bool) -> str:
    label, hidden = html.escape(now.action), "" if now.action else " hidden"
    if wakes:
        again = "" if looks or label else '\n<noscript><p><a href="">Look again</a></p></noscript>'
        return f'<p><a class="act" id="act" href=""{hidden}>{label}</a></p>{again}'
    start = html.escape(where.start)
    return f'<form method="post" action="{start}"><button class="act" id="act"{hidden}>{label}</button></form>'


_PAGE = Template(_TEMPLATE)
_HEADERS = html_headers(_TEMPLATE)
