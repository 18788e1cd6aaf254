"""A Prometheus, asked for one number: what a rule of a policy takes from anywhere else than the replicas."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from vllm_chill.errors import BackendUnavailable, SettingError

_SECONDS = 10.0
_ANSWER_BYTES = 1 << 20
_AT_A_TIME = 8
_AGGREGATE = "aggregate it, as in sum(…)"


class Prometheus:
    """What speaks Prometheus' HTTP API at `url`: Prometheus itself, Thanos, Mimir, VictoriaMetrics. For `async with`.

    `token_file` holds the bearer token that it wants, if it wants one; it is read for each question, as it may be
    replaced at any time. Raises SettingError for an address that is none.
    """

    def __init__(self, url: str, token_file: Path | None = None, *, seconds: float = _SECONDS) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise SettingError(f'"{url}" is no address of a Prometheus; give one such as http://prometheus:9090')
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._seconds = seconds
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_AT_A_TIME), cookie_jar=aiohttp.DummyCookieJar()
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
        return one_number(expression, await self._ask(expression))

    async def _ask(self, expression: str) -> bytes:
        headers = await asyncio.to_thread(self._authorization)
        try:
            async with self._session.post(
                f"{self._url}/api/v1/query",
                data={"query": expression},
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._seconds),
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_ANSWER_BYTES + 1)
                while len(body) <= _ANSWER_BYTES and (more := await response.content.read(_ANSWER_BYTES)):
                    body += more
        except TimeoutError:
            raise BackendUnavailable(f"{self._url} did not answer within {self._seconds:g} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise BackendUnavailable(f"{self._url} cannot be asked: {error}") from None
        if len(body) > _ANSWER_BYTES:
            raise BackendUnavailable(f'{self._url} has too much to answer to "{expression}"; {_AGGREGATE}')
        if response.status in (401, 403):
            raise BackendUnavailable(f"{self._url} refuses to be asked ({response.status}); {self._token_hint}")
        # What it does not understand, it says why in the same form; anything else speaks for what stands before it.
        if response.status not in (200, 400, 422):
            raise BackendUnavailable(f"{self._url} answers with status {response.status}; is it a Prometheus?")
        return body

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"the token for {self._url} cannot be read: {error}") from None
        return {"Authorization": f"Bearer {token}"}

    @property
    def _token_hint(self) -> str:
        if self._token_file is None:
            return "give the file of a bearer token that it takes"
        return f"see whether the token in {self._token_file} is one that it takes"


def one_number(expression: str, answer: bytes) -> float | None:
    """The number in Prometheus' answer to an instant query; None if there is none, or it is not finite.

    Raises BackendUnavailable.
    """
    try:
        said = json.loads(answer)
        if said["status"] != "success":
            raise BackendUnavailable(f'the expression "{expression}" is refused: {said["error"]}')
        return _number(expression, said["data"]["resultType"], said["data"]["result"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise BackendUnavailable(f'the answer to "{expression}" is not that of a Prometheus') from None


def _number(expression: str, kind: str, result: Any) -> float | None:
    match kind:
        case "scalar":
            value = float(result[1])
        case "vector" if len(result) > 1:
            raise BackendUnavailable(f'"{expression}" gives {len(result)} series and not one; {_AGGREGATE}')
        case "vector":
            value = float(result[0]["value"][1]) if result else math.nan
        case _:
            raise BackendUnavailable(
                f'"{expression}" gives a {kind} and not a number; take an instant vector or a scalar'
            )
    return value if math.isfinite(value) else None
