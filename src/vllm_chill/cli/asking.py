"""How the command line asks a running proxy: the one client of all commands that do."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from vllm_chill.errors import AskFailed, SettingError

_TIMEOUT_SECONDS = 10
_UNAUTHENTICATED = 401
_KEY = "VLLM_CHILL_KEY"
_DEFAULT = "http://127.0.0.1:8080"

Shape = TypeVar("Shape", bound=msgspec.Struct)
Command = TypeVar("Command", bound=Callable[..., Any])


def url_option(command: Command) -> Command:
    """Give a command the option that says which proxy it asks."""
    option = click.option(
        "--url",
        default=_DEFAULT,
        envvar="VLLM_CHILL_URL",
        help=f"The proxy to ask; {_KEY} has the key or token for it, if it wants one. "
        f"[VLLM_CHILL_URL; default: {_DEFAULT}]",
    )
    return option(command)


class Proxy:
    """A running proxy at `url`, which may have a path before its own ones. Raises SettingError for what is no URL."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _no_url(url) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _no_url(url)
        self._url = url
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, port, parts.path.rstrip("/")

    def get(self, path: str, shape: type[Shape]) -> Shape:
        """What it answers to a GET. Raises AskFailed."""
        return self._ask("GET", path, None, shape, _TIMEOUT_SECONDS)

    def post(self, path: str, body: Mapping[str, object], shape: type[Shape], *, waits: bool = False) -> Shape:
        """What it answers to a POST of this JSON; `waits`: however long that takes. Raises AskFailed."""
        return self._ask("POST", path, body, shape, None if waits else _TIMEOUT_SECONDS)

    def delete(self, path: str, shape: type[Shape]) -> Shape:
        """What it answers to a DELETE. Raises AskFailed."""
        return self._ask("DELETE", path, None, shape, _TIMEOUT_SECONDS)

    def lines(self, path: str) -> Iterator[str]:
        """The lines of what it answers to a GET, as they come, however long that takes. Raises AskFailed."""
        connection = self._kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.connect()
            socket = connection.sock  # which it lets go of where the answer ends with the connection
            connection.request("GET", self._prefix + path, headers=_own_headers())
            response = connection.getresponse()
            if response.status >= 400:
                message = _message(response.status, response.read())
                raise AskFailed(message) if message is not None else self._failed(f"it answers {response.status}")
            if not (response.getheader("Content-Type") or "").startswith("text/plain"):
                raise self._failed("it does not answer as vllm-chill does")
            socket.settimeout(None)
            while line := response.readline():
                yield line.decode(errors="replace").rstrip("\n")
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(str(error) or type(error).__name__) from None
        except ValueError:  # of the library's, which would say what is in the header
            raise SettingError(f"{_KEY} has characters that no key has") from None
        finally:
            connection.close()

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None, shape: type[Shape], seconds: float | None
    ) -> Shape:
        connection = self._kind(self._host, self._port, timeout=seconds)
        headers = _own_headers() | ({} if body is None else {"Content-Type": "application/json"})
        try:
            connection.request(method, self._prefix + path, None if body is None else json.dumps(body), headers=headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(str(error) or type(error).__name__) from None
        except ValueError:  # of the library's, which would say what is in the header
            raise SettingError(f"{_KEY} has characters that no key has") from None
        finally:
            connection.close()
        if response.status >= 400 and (message := _message(response.status, text)) is not None:
            raise AskFailed(message)
        try:
            return msgspec.json.decode(text, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._failed("it does not answer as vllm-chill does") from None

    def _failed(self, reason: str) -> AskFailed:
        return AskFailed(f"{self._url} cannot be asked: {reason}; is vllm-chill running there? (see --url)")


def _no_url(url: str) -> SettingError:
    return SettingError(f'--url: "{url}" is not accepted; give a URL such as {_DEFAULT}')


def _own_headers() -> dict[str, str]:
    key = os.environ.get(_KEY, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _message(status: int, text: bytes) -> str | None:
    """What the proxy says went wrong, if it is the proxy that says so."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(message, str):
        return None
    return f"{message} ({_KEY} is sent as one)" if status == _UNAUTHENTICATED else message
