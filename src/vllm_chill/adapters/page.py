"""A page of metrics over HTTP, in pieces, as it may be large."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import aiohttp

from vllm_chill.adapters.authorities import trusting
from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.errors import BackendUnavailable

PIECE_BYTES = 1 << 16


async def pieces(
    session: aiohttp.ClientSession, url: str, seconds: float, most_bytes: int, host: str | None = None,
    headers: Mapping[str, str] | None = None, access: EngineAccess = PLAIN,
) -> AsyncGenerator[bytes]:  # fmt: skip
    """What is at a URL, of which the whole may take so many seconds and have so many bytes. Raises BackendUnavailable.

    `host` is whom it is asked of, if that is not in the URL, and `headers` are sent besides; `access` is for an engine.
    To be closed if it is left early.
    """
    headers = {**_HEADERS, **access.own_headers, **(headers or {}), **({} if host is None else {"Host": host})}
    try:
        async with session.get(
            url,
            timeout=aiohttp.ClientTimeout(total=seconds),
            headers=headers,
            max_redirects=2,
            ssl=access.tls or (trusting() if url.startswith("https:") else True),
            server_hostname=access.server_name,
        ) as response:
            if response.status != 200:
                raise BackendUnavailable(f"{url} answers with status {response.status}")
            left = most_bytes
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise BackendUnavailable(f"{url} answers with more than {most_bytes >> 20} MiB")
                yield piece
    except TimeoutError:
        raise BackendUnavailable(f"{url} did not answer within {seconds:g} s") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise BackendUnavailable(f"{url} cannot be asked: {error}") from None


async def page(
    url: str, seconds: float, most_bytes: int, host: str | None = None, access: EngineAccess = PLAIN
) -> bytes:
    """All that is at a URL, asked on a connection of its own; as `pieces`."""
    async with aiohttp.ClientSession() as session:
        return b"".join([piece async for piece in pieces(session, url, seconds, most_bytes, host, access=access)])


# Compression would cost the engine more than it saves between two machines of one cluster.
_HEADERS = {"Accept": "text/plain", "Accept-Encoding": "identity"}
