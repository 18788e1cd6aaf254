"""LoRA adapters that are loaded when they are asked for: which replica has which, and how it comes to have another.

The rule: an adapter is loaded once into each replica, for all who wait for it, and what a replica had goes with it.
"""

from __future__ import annotations

import asyncio
import json
import re

from vllm_chill.core.catalogue import Adapter
from vllm_chill.core.readiness import Answered, Refused
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import AdapterFailed, AnswerableError, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.probe import Prober
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.upstream import UpstreamPool

_SHOWN_CHARACTERS = 500
_ALREADY = re.compile(rb"already\b.{0,10}\bloaded|already exists", re.IGNORECASE)
_Key = tuple[Endpoint, Adapter, str | None]
_REFUSES_CALLER = frozenset({401, 403})


class Adapters:
    """The adapters of all replicas. Invariant: what is in `_loaded` was loaded into a replica that has not departed."""

    def __init__(self, pool: UpstreamPool, timeouts: RelayTimeouts) -> None:
        self._engine = Prober(pool)
        self._access = pool.access
        self._timeouts = timeouts
        self._loaded: dict[tuple[Endpoint, str], str] = {}
        self._loading: dict[_Key, asyncio.Task[AnswerableError | None]] = {}
        pool.on_close = self.forget

    def has(self, endpoint: Endpoint, adapter: Adapter) -> bool:
        """Whether the replica has it."""
        return self._loaded.get((endpoint, adapter.name)) == adapter.path

    async def load(self, endpoint: Endpoint, adapter: Adapter, authorization: str | None) -> None:
        """Return once the replica has it. `authorization` is the caller's, for an engine that wants a key and has not
        one from this proxy.

        Raises UpstreamRefused and UpstreamReset if the replica cannot be reached, and AdapterFailed with the engine's
        words. An engine that refuses the caller is asked no more: it will say so to the caller itself.
        """
        if (own := self._access.authorization) is not None:
            authorization = own.decode("latin-1") or None
        key = endpoint, adapter, authorization
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(endpoint, adapter, authorization))
            task.add_done_callback(lambda done: self._over(key, done))
        failure = await asyncio.shield(task)
        if failure is not None:
            raise failure

    def _over(self, key: _Key, task: asyncio.Task[AnswerableError | None]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint's replica is going, and what it had with it."""
        for loaded in [key for key in self._loaded if key[0] == endpoint]:
            del self._loaded[loaded]
        for loading in [key for key in self._loading if key[0] == endpoint]:
            del self._loading[loading]

    async def _load(self, endpoint: Endpoint, adapter: Adapter, authorization: str | None) -> AnswerableError | None:
        """What went wrong; a value, as perhaps nobody waits for it any more."""
        task = asyncio.current_task()
        key = endpoint, adapter, authorization
        again = (endpoint, adapter.name) in self._loaded
        request = _request(endpoint, adapter, authorization, again=again)
        timeouts = self._timeouts
        answer = await self._engine.put(endpoint, request, timeouts.connect_seconds, timeouts.response_seconds)
        match answer:
            case Answered(status=200):
                pass
            case Answered(status=400 | 409, body=body) if _ALREADY.search(body) and not again:
                pass
            case Answered(status=status) if status in _REFUSES_CALLER:
                return None
            case Answered(status=status, body=body):
                return AdapterFailed(f'the adapter "{adapter.name}" could not be loaded: {_why(status, body)}')
            case Refused():
                return UpstreamRefused(f"{endpoint} took no connection; see whether the model server is running")
            case _:
                return UpstreamReset(f'{endpoint} did not say whether it has loaded the adapter "{adapter.name}"')
        if self._loading.get(key) is task:
            self._loaded[endpoint, adapter.name] = adapter.path
        return None


def _request(endpoint: Endpoint, adapter: Adapter, authorization: str | None, *, again: bool) -> bytes:
    """As vLLM takes it (vllm/entrypoints/serve/lora); `again` has it take other weights under a name that it has."""
    document: dict[str, object] = {"lora_name": adapter.name, "lora_path": adapter.path}
    if again:
        document["load_inplace"] = True
    body = json.dumps(document).encode()
    lines = [
        "POST /v1/load_lora_adapter HTTP/1.1",
        f"Host: {endpoint}",
        "User-Agent: vllm-chill",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if authorization is not None:
        lines.append(f"Authorization: {authorization}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _why(status: int, body: bytes) -> str:
    """What the engine says; without a word of its own it has no such route."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if isinstance(message, str) and message.strip():
        words = " ".join(message.split()).rstrip(".")
        return words if len(words) <= _SHOWN_CHARACTERS else words[: _SHOWN_CHARACTERS - 1] + "…"
    if status in (404, 405):
        return "the engine loads none while it runs; start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    return f"the engine answered with status {status}; its log says more"
