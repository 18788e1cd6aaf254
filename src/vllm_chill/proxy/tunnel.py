"""A request to upgrade (a WebSocket, say) and the bytes of both sides after it.

If the upstream agrees (101), what follows is not HTTP any more and passes both ways until either side closes; the
lease lasts as long. If it does not, its answer goes to the client and the connection ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress

from aiohttp import hdrs
from aiohttp.http import HttpVersion11
from aiohttp.web import BaseRequest

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import UpstreamInvalid, UpstreamRefused, UpstreamReset, UpstreamSilent
from vllm_chill.proxy.aiohttp_seam import Relayed, cut_off, message_of, peer_of, take_over
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming
from vllm_chill.proxy.headers import request_head
from vllm_chill.proxy.relay import RelayTimeouts, added_to
from vllm_chill.proxy.upstream import why_refused

_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?")
_SWITCHED = 101


def upgrade_of(request: BaseRequest) -> str | None:
    """The protocol that the request asks for; None if it asks for none that is passed on.

    h2c is not: its requests would pass behind the first one without being seen here (RFC 9113 has dropped it).
    """
    asked = request.headers.get(hdrs.UPGRADE)
    if asked is None or request.version < HttpVersion11 or request.body_exists:
        return None
    named = {
        token.strip().lower() for value in request.headers.getall(hdrs.CONNECTION, ()) for token in value.split(",")
    }
    if "upgrade" not in named or not _TOKEN.fullmatch(asked) or asked.lower().startswith("h2c"):
        return None
    return asked


async def tunnel(
    request: BaseRequest, protocol: str, endpoint: Endpoint, timeouts: RelayTimeouts, access: EngineAccess = PLAIN
) -> Relayed:
    """Ask the endpoint for the upgrade, and pass bytes until either side closes.

    Raises while nothing has reached the client: UpstreamRefused, UpstreamReset, UpstreamInvalid, UpstreamSilent.
    """
    peer, scheme = peer_of(request.protocol)
    framing = f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n".encode()
    reader, writer = await _connect(endpoint, timeouts.connect_seconds, access)
    try:
        added = added_to(request)
        head = request_head(
            message_of(request),
            endpoint,
            framing,
            peer=peer,
            scheme=scheme,
            authorization=access.authorization,
            besides=added.in_place_of,
            added=added.fields,
        )
        writer.write(head)
        with _named(endpoint):
            async with asyncio.timeout(timeouts.response_seconds):
                status, head = await _read_head(reader)
        if status == _SWITCHED:
            return await _pass(request, head, reader, writer)
        return await _refuse(request, status, head, reader, endpoint)
    finally:
        writer.transport.abort()


async def _connect(
    endpoint: Endpoint, seconds: float, access: EngineAccess
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.open_connection(endpoint.host, endpoint.port, limit=_HEAD_BYTES, **access.tls_options)
    except (OSError, UnicodeError) as error:
        raise UpstreamRefused(why_refused(endpoint, error, seconds)) from error


@contextmanager
def _named(endpoint: Endpoint) -> Iterator[None]:
    """What goes wrong with a head, by the names that a caller is told."""
    try:
        yield
    except TimeoutError as error:
        raise UpstreamSilent(f"{endpoint} did not begin to answer in time; try again later") from error
    except (asyncio.IncompleteReadError, OSError) as error:
        raise UpstreamReset(f"{endpoint} closed the connection before it answered; try again") from error
    except (asyncio.LimitOverrunError, IllegalResponse) as error:
        raise UpstreamInvalid(f"{endpoint} answered, but not in HTTP ({error})") from error


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        line = _STATUS.match(head)
        if line is None:
            raise IllegalResponse("its first line is no status line")
        status = int(line[1])
        if status >= 200 or status == _SWITCHED:
            return status, head


async def _refuse(
    request: BaseRequest, status: int, head: bytes, reader: asyncio.StreamReader, endpoint: Endpoint
) -> Relayed:
    framing, sent = ResponseFraming(keep_alive=False), 0
    client = request.transport
    if client is None:
        raise ConnectionResetError("the client has left")
    piece = head
    while True:
        try:
            out = framing.feed(piece)
        except IllegalResponse as error:
            if not sent:
                raise UpstreamInvalid(f"{endpoint} answered, but {error.message}") from error
            client.abort()
            break
        client.write(out)
        sent += len(out)
        try:
            if framing.complete or not (piece := await reader.read(_PIECE_BYTES)):
                break
        except OSError:
            cut_off(client, reset=framing.ends_with_connection)
            return Relayed(status, sent, keep_alive=False)
    if not framing.complete and not framing.close():
        client.abort()
    return Relayed(status, sent, keep_alive=False)


async def _pass(
    request: BaseRequest, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Relayed:
    client_reader = asyncio.StreamReader(_PIECE_BYTES)
    client_writer, taken = take_over(request, client_reader)
    try:
        client_writer.write(head)
        await _until_either_ends(_pump(client_reader, writer), _pump(reader, client_writer))
        client_writer.close()
    except BaseException:
        client_writer.transport.abort()
        raise
    finally:
        taken.hand_back()
    return Relayed(_SWITCHED, len(head), keep_alive=False)


async def _until_either_ends(*pumps: Coroutine[None, None, None]) -> None:
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes until the reader's side closes or the writer's is gone."""
    with suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
