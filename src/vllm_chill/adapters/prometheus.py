"""A Prometheus, asked for one number or for many series: what a rule of a policy takes from anywhere else than the
replicas, and what engines say of their load where it scrapes them.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from vllm_chill.adapters.prometheus_access import CredentialFiles, Credentials, PrometheusAccess, tls_failure
from vllm_chill.core.saturation.series import Series
from vllm_chill.errors import BackendUnavailable

_SECONDS = 10.0
_PAUSES = (0.25, 0.5, 1.0)
_NUMBER_BYTES = 1 << 20
_VECTOR_BYTES = 64 << 20
_MANY_BYTES = 64 << 10  # from here on, reading it would hold the event loop up
_AT_A_TIME = 8
_AGGREGATE = "aggregate it, as in sum(…)"
_LINE = 200


class _Passing(BackendUnavailable):
    """What may be over in a moment, and is tried again."""


class Prometheus:
    """What speaks Prometheus' HTTP API: Prometheus itself, Thanos, Mimir, VictoriaMetrics. For `async with`.

    `access` says how it is reached, and may be an address alone. A question has `seconds` for all of its tries, with
    these pauses between them, in seconds; no more than eight are asked at a time, and others wait for their turn.
    Raises SettingError for an address that is none.
    """

    def __init__(
        self, access: PrometheusAccess | str, *, seconds: float = _SECONDS, pauses: Sequence[float] = _PAUSES
    ) -> None:
        self._access = PrometheusAccess(access) if isinstance(access, str) else access
        self._files = CredentialFiles(self._access)
        self._name = self._access.name
        self._seconds = seconds
        self._pauses = pauses
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def value(self, expression: str) -> float | None:
        """What the expression is now; None if there is no such series, or its value is no finite number.

        Raises BackendUnavailable: it does not answer, it refuses the expression, or that has several values.
        """
        return one_number(expression, await self._ask(expression, _NUMBER_BYTES))

    async def vector(self, expression: str) -> list[Series]:
        """The series that the expression has now, NaN and infinities among them.

        Raises BackendUnavailable: it does not answer, it refuses the expression, or that is no instant vector.
        """
        answer = await self._ask(expression, _VECTOR_BYTES)
        if len(answer) < _MANY_BYTES:
            return all_series(expression, answer)
        return await asyncio.to_thread(all_series, expression, answer)

    async def _ask(self, expression: str, most_bytes: int) -> bytes:
        async with self._turns:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._seconds
            for pause in self._pauses:
                try:
                    return await self._try(expression, most_bytes, deadline - loop.time())
                except _Passing:
                    if loop.time() + pause >= deadline:
                        raise
                await asyncio.sleep(pause)
            return await self._try(expression, most_bytes, deadline - loop.time())

    async def _try(self, expression: str, most_bytes: int, seconds: float) -> bytes:
        credentials = await asyncio.to_thread(self._files.read) if self._files.any else self._files.read()
        try:
            status, body = await self._answer(expression, most_bytes, seconds, credentials)
        except TimeoutError:
            raise BackendUnavailable(
                f"{self._name} did not answer within {self._seconds:g} s; see whether it is overloaded, or out of reach"
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise self._failure(error, credentials) from None
        if len(body) > most_bytes:
            raise BackendUnavailable(f'{self._name} has too much to answer to "{expression}"; {_AGGREGATE}')
        if status in (401, 403):
            raise BackendUnavailable(f"{self._name} refuses to be asked ({status}); {self._token_hint}")
        if status == 429 or status >= 500:
            raise _Passing(f"{self._name} answers with status {status}{_said(body)}; see whether it is overloaded")
        # What it does not understand, it says why in the same form; anything else speaks for what stands before it.
        if status not in (200, 400, 422) or (status != 200 and not body.lstrip().startswith(b"{")):
            raise BackendUnavailable(f"{self._name} answers with status {status}{_said(body)}; is it a Prometheus?")
        return body

    async def _answer(
        self, expression: str, most_bytes: int, seconds: float, credentials: Credentials
    ) -> tuple[int, bytes]:
        async with self._session.post(
            f"{self._access.url.rstrip('/')}/api/v1/query",
            # It is told for how long it is waited for, and works on the expression no longer than that.
            data={"query": expression, "timeout": f"{self._seconds:g}s"},
            headers=credentials.headers,
            ssl=credentials.tls or True,
            server_hostname=self._access.server_name if credentials.tls else None,
            timeout=aiohttp.ClientTimeout(total=max(seconds, 0.001)),
            allow_redirects=False,
        ) as response:
            body = bytearray()
            while len(body) <= most_bytes and (more := await response.content.read(most_bytes)):
                body += more
            return response.status, bytes(body)

    def _failure(self, error: Exception, credentials: Credentials) -> BackendUnavailable:
        why = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.__cause__ or error
        trouble = "" if credentials.problem is None else f"; {credentials.problem}"
        if isinstance(why, ssl.SSLError):
            return BackendUnavailable(tls_failure(self._access, why) + trouble)
        match why:
            case aiohttp.ServerDisconnectedError() | ConnectionResetError() if credentials.tls is not None:
                text, way = "it closes the connection", "see whether it wants another certificate of its clients"
            case aiohttp.ServerDisconnectedError() | ConnectionResetError():
                text, way = "it closes the connection", "see whether its address begins with https://"
            case OSError():
                # Those of names that are not found have numbers, and words, of their own.
                text = os.strerror(why.errno) if why.errno and why.errno > 0 else why.strerror or type(why).__name__
                way = "see whether it runs, and whether this is its address"
            case _:
                text, way = str(why) or type(why).__name__, "see whether this is its address"
        return _Passing(f"{self._name} cannot be reached: {text}; {way}{trouble}")

    @property
    def _token_hint(self) -> str:
        if self._access.token is not None:
            return "give a bearer token that it takes"
        if self._access.token_file is None:
            return "give the file of a bearer token that it takes"
        return f"see whether the token in {self._access.token_file} is one that it takes"


def one_number(expression: str, answer: bytes) -> float | None:
    """The number in Prometheus' answer to an instant query; None if there is none, or it is not finite.

    Raises BackendUnavailable.
    """
    kind, result = _result(expression, answer)
    if kind not in ("vector", "scalar"):
        raise BackendUnavailable(f'"{expression}" gives a {kind} and not a number; take an instant vector or a scalar')
    if kind == "vector" and len(result) > 1:
        raise BackendUnavailable(f'"{expression}" gives {len(result)} series and not one; {_AGGREGATE}')
    if not result:
        return None
    try:
        value = float(result[1] if kind == "scalar" else result[0]["value"][1])
    except _MISSHAPEN:
        raise _not_a_prometheus(expression) from None
    return value if math.isfinite(value) else None


def all_series(expression: str, answer: bytes) -> list[Series]:
    """The series in Prometheus' answer to an instant query. Raises BackendUnavailable."""
    kind, result = _result(expression, answer)
    if kind != "vector":
        raise BackendUnavailable(f'"{expression}" gives a {kind} and not series; take an instant vector')
    try:
        return [Series(dict[str, str](one["metric"]), float(one["value"][1]), float(one["value"][0])) for one in result]
    except _MISSHAPEN:
        raise _not_a_prometheus(expression) from None


_MISSHAPEN = (ValueError, TypeError, KeyError, IndexError, RecursionError)


def _result(expression: str, answer: bytes) -> tuple[str, list[Any]]:
    try:
        said = msgspec.json.decode(answer)
        if said["status"] != "success":
            raise BackendUnavailable(f'the expression "{expression}" is refused: {said["error"]}')
        kind, result = said["data"]["resultType"], said["data"]["result"]
    except _MISSHAPEN:
        raise _not_a_prometheus(expression) from None
    if not isinstance(kind, str) or not isinstance(result, list):
        raise _not_a_prometheus(expression)
    return kind, result


def _not_a_prometheus(expression: str) -> BackendUnavailable:
    return BackendUnavailable(f'the answer to "{expression}" is not that of a Prometheus')


def _said(body: bytes) -> str:
    """What an answer that is none says in its first line, for people."""
    try:
        text = str(msgspec.json.decode(body)["error"])
    except _MISSHAPEN:
        text = body[: 4 * _LINE].decode(errors="replace")
    line = next(iter(text.strip().splitlines()), "")[:_LINE]
    return f" ({line})" if line.isprintable() and line and not line.startswith("<") else ""
