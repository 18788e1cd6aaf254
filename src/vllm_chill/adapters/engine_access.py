"""How engines are spoken to: by which key, and whether over TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TypedDict


class TlsOptions(TypedDict, total=False):
    """Of asyncio's create_connection and open_connection; a `server_hostname` of None is the host connected to."""

    ssl: ssl.SSLContext
    server_hostname: str | None


@dataclass(slots=True)
class EngineAccess:
    """What holds for every connection to an engine, from its next request on.

    `authorization` is the value of the field Authorization in every request, whoever it is from; empty: there is none;
    None: a client's own goes on. `tls` is None for plain HTTP; `server_name` is the name that certificates are for,
    None for that of the engine's address.
    """

    authorization: bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    @property
    def scheme(self) -> str:
        """That of an engine's URLs."""
        return "http" if self.tls is None else "https"

    @property
    def tls_options(self) -> TlsOptions:
        """What asyncio takes for a connection to an engine."""
        return {} if self.tls is None else {"ssl": self.tls, "server_hostname": self.server_name}

    @property
    def own_field(self) -> bytes:
        """The field Authorization of a request of the proxy's own, with its line end; empty for none."""
        return authorization_field(self.authorization or b"")

    @property
    def own_headers(self) -> dict[str, str]:
        """The same, for a client that takes headers by name."""
        return {"Authorization": self.authorization.decode("latin-1")} if self.authorization else {}


def authorization_field(value: bytes) -> bytes:
    """The field with its line end; empty for an empty value."""
    return b"Authorization: %b\r\n" % value if value else b""


PLAIN = EngineAccess()
"""Plain HTTP, with the clients' own keys."""
