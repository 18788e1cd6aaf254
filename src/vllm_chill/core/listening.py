"""Where a server listens, as Kubernetes has it: `:8443`, `127.0.0.1:0`, `[::]:8443`; `0` is nowhere. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_FORMS = "give :PORT, HOST:PORT, [IPV6]:PORT, or 0 for none"
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?")
_MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host, or None for all addresses of this machine, and a port; port 0 is any that is free."""

    host: str | None
    port: int

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress | None:
    """The address that a text names; None for `0`, which is nowhere. Raises ValueError, a sentence."""
    text = text.strip()
    if text == "0":
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None:
        bare = f", with brackets: [{text}]:8443" if _is_ipv6(text) else ""
        raise ValueError(f"{text!r} is not an address to listen on: {_FORMS}{bare}")
    port = int(found["port"])
    if port > _MOST_PORT:
        raise ValueError(f"{text!r} is not an address to listen on: a port is at most {_MOST_PORT}")
    if found["ipv6"] is not None:
        if not _is_ipv6(found["ipv6"]):
            raise ValueError(f"{text!r} is not an address to listen on: [{found['ipv6']}] is not an IPv6 address")
        return ListenAddress(found["ipv6"], port)
    host = found["host"]
    if host and not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} is not an address to listen on: {host!r} is not a host; {_FORMS}")
    return ListenAddress(host or None, port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
