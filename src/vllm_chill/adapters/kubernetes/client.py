"""One connection to an API server: raw JSON in and out, nothing deserialised into models.

The rule: every call ends. A unary call has a deadline; a stream has one for its head, and its reader has one for
every read. What the server said no to is an ApiError; not having reached it, or not having understood it, is
Unreachable: whatever is at the other end, nothing else is raised.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from vllm_chill.adapters.keepalive import keepalive
from vllm_chill.adapters.kubernetes.credentials import Access, Credentials, Places, find
from vllm_chill.errors import BackendUnavailable, SettingError

CALL_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_ERROR_BYTES = 65536
_RETRY_AFTER_MOST_SECONDS = 30.0
# A server that is gone is noticed within 11 s, which costs it nothing.
_KEEPALIVE = keepalive(idle_seconds=5, interval_seconds=2, probes=3)
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What reading something of another shape than an API server's raises."""

JSON = "application/json"
Json = dict[str, Any]
Query = Mapping[str, str | int]
Timed = Callable[[str, str, float], None]
"""Is told of each call its verb (an HTTP method, or WATCH), what came of it (2xx to 5xx, or unreachable), and how many
seconds that took: to the end of the answer, and of a stream to its head.
"""
_T = TypeVar("_T")


class ApiError(Exception):
    """The API server answered with an error. `message` is its own, `reason` its word for it, such as Expired.

    `retry_after_seconds` is how long it asks to be left alone; 0 if it does not, and never more than 30.
    """

    def __init__(self, status: int, message: str, reason: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds

    @property
    def passing(self) -> bool:
        """Whether the same may go well in a moment: the server is busy, or has a fault."""
        return self.status in (408, 429) or self.status >= 500


def not_logged_in(error: ApiError) -> BackendUnavailable:
    """What to say of a 401. It passes: a pod's token is replaced by its kubelet, and what is found is read again."""
    said = error.message.rstrip(".")
    return BackendUnavailable(f"the API server does not accept the credentials: {said}; log in again, or renew them")


class Unreachable(Exception):
    """The API server did not answer; the text is a sentence without a full stop."""


@asynccontextmanager
async def connect(
    kubeconfig: str | None = None,
    *,
    places: Places | None = None,
    call_seconds: float = CALL_SECONDS,
    timed: Timed | None = None,
) -> AsyncIterator[ApiClient]:
    """A client for the API server that `credentials.find` finds. It makes no call: the server may be away.

    Raises NoCredentials or SettingError.
    """
    credentials = find(kubeconfig, places)
    access = await credentials.load()
    # Like every client of Kubernetes, this one honours HTTPS_PROXY and NO_PROXY.
    connector = aiohttp.TCPConnector(limit=0, socket_factory=_socket)
    async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
        yield ApiClient(session, credentials, access, call_seconds=call_seconds, timed=timed)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for option in _KEEPALIVE:
        made.setsockopt(*option)
    return made


class ApiClient:
    """Calls to one API server. Invariant: `_access` is what was last read, at `_loaded` on the loop's clock."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: Credentials,
        access: Access,
        *,
        call_seconds: float,
        timed: Timed | None = None,
    ) -> None:
        self._session = session
        self._credentials = credentials
        self._access = access
        self._loaded = asyncio.get_running_loop().time()
        self._loading = asyncio.Lock()
        self._call_seconds = call_seconds
        self._timed = timed

    @property
    def server(self) -> str:
        """Where the API server is: its URL."""
        return self._access.server

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Json | None = None,
        patch: str = "merge",
        accept: str = JSON,
    ) -> Json:
        """The server's answer as JSON. `patch` names the kind of patch that a PATCH's body is, `accept` the form of the
        answer.

        Raises ApiError or Unreachable.
        """
        answer = self._in_time(self._call(method, path, query, body, patch, accept))
        return await (answer if self._timed is None else _timing(self._timed, method, answer))

    @asynccontextmanager
    async def stream(
        self, path: str, query: Query, accept: str = JSON, *, may_be_silent: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET whose body is still to be read, by a reader with deadlines of its own. `may_be_silent`: not even its
        head comes before there is something to tell.

        Raises ApiError or Unreachable on the way to the body, and aiohttp's errors within it.
        """
        answer = self._answer("GET", path, query, None, None, accept)
        head = answer if may_be_silent else self._in_time(answer)
        verb = "WATCH" if "watch" in query else "GET"
        response = await (_timing(self._timed, verb, head) if self._timed is not None and not may_be_silent else head)
        try:
            yield response
        finally:
            response.close()

    async def _in_time(self, answer: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._call_seconds):
                return await answer
        except TimeoutError as error:
            raise Unreachable(
                f"the API server {self._access.server} did not answer within {self._call_seconds:g} s"
            ) from error

    async def _call(
        self, method: str, path: str, query: Query | None, body: Json | None, patch: str, accept: str
    ) -> Json:
        data = None if body is None else json.dumps(body).encode()
        # What is applied is called YAML, of which JSON is a part; older servers know no other name for it.
        form = f"{patch}-patch+{'yaml' if patch == 'apply' else 'json'}" if method == "PATCH" else "json"
        response = await self._answer(method, path, query, data, f"application/{form}", accept)
        async with response:
            try:
                answer = json.loads(await response.read())
            except (aiohttp.ClientError, OSError) as error:
                raise Unreachable(self._cause(error)) from error
            except UNREADABLE as error:
                raise Unreachable(f"{self._access.server} answered with something that is not JSON") from error
            return self._object(answer)

    def _object(self, answer: Any) -> Json:
        parts = (answer.get("metadata"), answer.get("spec")) if isinstance(answer, dict) else (answer,)
        if not all(part is None or isinstance(part, dict) for part in parts) or not isinstance(answer, dict):
            raise Unreachable(f"{self._access.server} answered with JSON that is no object of a Kubernetes API server")
        return answer

    async def _answer(
        self, method: str, path: str, query: Query | None, data: bytes | None, content_type: str | None, accept: str
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "User-Agent": "vllm-chill"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        access = await self._fresh()
        response = await self._send(access, method, path, query, data, headers)
        if response.status == 401:
            response.release()
            access = await self._load(access)
            response = await self._send(access, method, path, query, data, headers)
        if response.status >= 400:
            async with response:
                raise await _error(response)
        return response

    async def _send(
        self,
        access: Access,
        method: str,
        path: str,
        query: Query | None,
        data: bytes | None,
        headers: Mapping[str, str],
    ) -> aiohttp.ClientResponse:
        if access.authorization is not None:
            headers = {**headers, "Authorization": access.authorization}
        url = URL(access.server + path, encoded=True)
        url = url.update_query(query) if query else url
        for again in (True, False):
            try:
                return await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=data,
                    ssl=access.tls,
                    server_hostname=access.server_name,
                    proxy=access.proxy,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                )
            except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
                # The server may have closed a kept connection as we took it up. All that is sent is idempotent.
                if not again:
                    raise Unreachable(self._cause(error)) from error
            except (aiohttp.ClientError, OSError) as error:
                raise Unreachable(self._cause(error)) from error
        raise AssertionError("the loop above returns or raises")

    async def _fresh(self) -> Access:
        fresh = self._credentials.fresh_seconds
        if fresh is not None and asyncio.get_running_loop().time() >= self._loaded + fresh:
            return await self._load(self._access)
        return self._access

    async def _load(self, stale: Access) -> Access:
        async with self._loading:
            if self._access is stale:
                try:
                    self._access = await self._credentials.load()
                except SettingError as error:
                    raise Unreachable(error.message) from error
                self._loaded = asyncio.get_running_loop().time()
            return self._access

    def _cause(self, error: Exception) -> str:
        match error:
            case aiohttp.ConnectionTimeoutError() | TimeoutError():
                why = f"it took no connection within {_CONNECT_SECONDS:g} s"
            case aiohttp.ClientConnectorError(os_error=os_error):
                # What asyncio calls a failed connection has the address in it, and not why it failed; that of a
                # certificate or a name says why, and has a number of its own.
                says_why = not os_error.errno or isinstance(os_error, ssl.SSLError | socket.gaierror)
                why = (os_error.strerror or str(os_error)) if says_why else os.strerror(os_error.errno or 0)
            case aiohttp.ServerDisconnectedError() | ConnectionResetError():
                why = "it closed the connection"
            case _:
                why = str(error) or type(error).__name__
        return f"the API server {self._access.server} cannot be reached: {why}"


async def _timing(timed: Timed, verb: str, answer: Awaitable[_T]) -> _T:
    """What was asked for, once `timed` has been told of it. Who no longer waits for it is told of nothing."""
    now = asyncio.get_running_loop().time
    begun = now()
    try:
        answered = await answer
    except ApiError as error:
        timed(verb, f"{error.status // 100}xx", now() - begun)
        raise
    except Unreachable:
        timed(verb, "unreachable", now() - begun)
        raise
    timed(verb, "2xx", now() - begun)
    return answered


def metadata_of(item: Any) -> Json:
    """The metadata of an object or a list, with a version that is a number, as a real server's is.

    Raises Unreachable if there is none.
    """
    metadata = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(metadata, dict) or not str(metadata.get("resourceVersion")).isdecimal():
        raise Unreachable("the API server sent an object without a resource version: is it a Kubernetes API server?")
    return metadata


def is_object(answer: Json, name: str) -> bool:
    """Whether an answer is the object of this name that was asked for, or written. What is in front of a server, or a
    server that is ill, may answer 200 to anything.
    """
    metadata = answer.get("metadata") or {}
    return metadata.get("name") == name and str(metadata.get("resourceVersion")).isdecimal()


def items_of(listing: Json) -> list[Json]:
    """The objects of a list. Raises Unreachable if it is none."""
    items = listing.get("items")
    if not isinstance(items, list | None) or not all(isinstance(item, dict) for item in items or ()):
        raise Unreachable("the API server sent a list that is none: is it a Kubernetes API server?")
    return items or []


async def _error(response: aiohttp.ClientResponse) -> ApiError:
    body = b""
    with suppress(aiohttp.ClientError, OSError):
        # One read gives what is there, and a long refusal comes in several pieces.
        while len(body) < _ERROR_BYTES and (piece := await response.content.read(_ERROR_BYTES - len(body))):
            body += piece
    text, after = body.decode(errors="replace"), _retry_after(response)
    try:
        status = json.loads(text)
        return ApiError(response.status, str(status["message"]), str(status.get("reason") or ""), after)
    except UNREADABLE:
        line = " ".join(text.split())[:300]
        return ApiError(response.status, line or response.reason or "no message", "", after)


def _retry_after(response: aiohttp.ClientResponse) -> float:
    # An API server gives whole seconds; a date would be that of another clock.
    said = response.headers.get("Retry-After", "")
    return min(float(said), _RETRY_AFTER_MOST_SECONDS) if said.isdecimal() else 0.0
