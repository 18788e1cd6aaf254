"""How the command line asks a running proxy: the one client of all commands that do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from vllm_chill.errors import AskFailed, CannotBeAsked, NotAllowed, SettingError

_TIMEOUT_SECONDS = 10
_UNAUTHENTICATED = 401
_FORBIDDEN = 403
_KEY = "VLLM_CHILL_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"

Shape = TypeVar("Shape", bound=msgspec.Struct)
Command = TypeVar("Command", bound=Callable[..., Any])


def url_option(command: Command) -> Command:
    """Give a command the option that says which proxy it asks."""
    option = click.option(
        "--url",
        default=DEFAULT_URL,
        envvar="VLLM_CHILL_URL",
        help=f"The proxy to ask; {_KEY} has the key or token for it, if it wants one. "
        f"[VLLM_CHILL_URL; default: {DEFAULT_URL}]",
    )
    return option(command)


@dataclass(frozen=True, slots=True)
class Told(Generic[Shape]):
    """What a proxy answered: as its shape, and as the JSON that it was."""

    value: Shape
    text: bytes


class Proxy:
    """A running proxy at `url`, which may have a path before its own ones. Raises SettingError for what is no URL."""

    def __init__(self, url: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _no_url(url) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _no_url(url)
        self.url = url
        self._timeout_seconds = timeout_seconds
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, port, parts.path.rstrip("/")

    def get(self, path: str, shape: type[Shape]) -> Shape:
        """What it answers to a GET. Raises AskFailed."""
        return self.ask("GET", path, shape).value

    def post(self, path: str, body: Mapping[str, object], shape: type[Shape], *, waits: bool = False) -> Shape:
        """What it answers to a POST of this JSON; `waits`: however long that takes. Raises AskFailed."""
        return self.ask("POST", path, shape, body, waits=waits).value

    def delete(self, path: str, shape: type[Shape]) -> Shape:
        """What it answers to a DELETE. Raises AskFailed."""
        return self.ask("DELETE", path, shape).value

    def ask(
        self,
        method: str,
        path: str,
        shape: type[Shape],
        body: Mapping[str, object] | None = None,
        *,
        waits: bool = False,
    ) -> Told[Shape]:
        """What it answers, in its own JSON too; `waits`: however long that takes. Raises AskFailed."""
        with self._response(method, path, body, None if waits else self._timeout_seconds) as (_, response):
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                self._refused(response)
            text = response.read()
        try:
            return Told(msgspec.json.decode(text, type=shape), text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._failed("it does not answer as vllm-chill does") from None

    def lines(self, path: str) -> Iterator[str]:
        """The lines of what it answers to a GET, which is text, as they come, however long that takes. Raises
        AskFailed.
        """
        with self.stream(path, "text/plain", None) as lines:
            for line in lines:
                yield line.decode(errors="replace")

    @contextlib.contextmanager
    def stream(self, path: str, kind: str, quiet_seconds: float | None) -> Iterator[Iterator[bytes]]:
        """The lines of an answer of this media type as they come, each without its end. They end when the answer does,
        and when nothing has come for `quiet_seconds`. Raises AskFailed.
        """
        with self._response("GET", path, None, self._timeout_seconds, kind) as (connection, response):
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                self._refused(response)
            if response.headers.get_content_type() != kind:
                raise self._failed("it does not answer as vllm-chill does")
            if connection.sock is not None:  # it is gone where the end of the answer is that of the connection
                connection.sock.settimeout(quiet_seconds)
            yield self._each_line(response)

    @staticmethod
    def _each_line(response: http.client.HTTPResponse) -> Iterator[bytes]:
        with contextlib.suppress(TimeoutError):
            while line := response.readline():
                yield line.rstrip(b"\r\n")

    @contextlib.contextmanager
    def _response(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        seconds: float | None,
        accept: str | None = None,
    ) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
        connection = self._kind(self._host, self._port, timeout=seconds)
        headers = {} if body is None else {"Content-Type": "application/json"}
        if accept is not None:
            headers["Accept"] = accept
        if key := os.environ.get(_KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        try:
            try:
                connection.request(
                    method, self._prefix + path, None if body is None else json.dumps(body), headers=headers
                )
            except ValueError:  # of the library's, which would say what is in the header
                raise SettingError(f"{_KEY} has characters that no key has") from None
            yield connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def _refused(self, response: http.client.HTTPResponse) -> None:
        """Raise what the proxy says went wrong, if it is the proxy that says so."""
        answer = _error(response.read())
        if answer is None:
            raise self._failed("it does not answer as vllm-chill does")
        message = answer["error"]["message"]
        if response.status == _UNAUTHENTICATED:
            raise NotAllowed(f"{message} ({_KEY} is sent as one)", answer=answer)
        raise (NotAllowed if response.status == _FORBIDDEN else AskFailed)(message, answer=answer)

    def _failed(self, reason: str) -> CannotBeAsked:
        return CannotBeAsked(f"{self.url} cannot be asked: {reason}; is vllm-chill running there? (see --url)", reason)


def _no_url(url: str) -> SettingError:
    return SettingError(f'--url: "{url}" is not accepted; give a URL such as {DEFAULT_URL}')


def _error(text: bytes) -> dict[str, Any] | None:
    """The error that a body is in OpenAI's envelope, if it is one."""
    try:
        answer = json.loads(text)
        is_one = isinstance(answer["error"]["message"], str)
    except (ValueError, KeyError, TypeError):
        return None
    return answer if is_one else None
