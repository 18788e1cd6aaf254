"""What a fuzz run begins with, and how it goes on: bytes of connections, and ways to damage them."""

from __future__ import annotations

import random

from tests.proxy.test_request_framing import ILLEGAL, LEGAL

PATH = b"/v1/audio/x"
OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

REQUESTS = [
    *[data.replace(b" /v1/x ", b" %b " % PATH).replace(b" / ", b" %b " % PATH) for data in LEGAL.values()],
    *[data.replace(b" /v1/x ", b" %b " % PATH).replace(b" / ", b" %b " % PATH) for data in ILLEGAL.values()],
    b"POST %b HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nContent-Length: 3000\r\n\r\n%b" % (PATH, b"y" * 3000),
    b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello" % PATH,
    b"GET /proxy/status HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    b'{"stream":true}',
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /proxy/models/switch HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n" + b'{"model":"x"}',
]

RESPONSES = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\nT: t\r\n\r\n",
    EVENTS + b"9\r\ndata: 1\n\n\r\n6\r\ndata: \r\n0\r\n\r\n",
    EVENTS + b"20\r\n\0\xff\xfe: \r\r\r\ndata data data data data\r\n9\r\ndata: 1\n\n\r\n",
    OK + b"\r\nto the end",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
    OK + b"Content-Length: 50\r\n\r\nless",
    OK + b"Content-Length: 2\r\n\r\nmore than that",
    OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
]

_BITS = [
    *[b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"", b"\r\n\r\n", b"9", b"-", b"\xff", b";", b",", b"0\r\n\r\n"],
    *[b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Host: b\r\n"],
    *[b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"\x7f", b"chunked", b"HTTP/1.0", b"fffffffff", b"x" * 70_000],
]


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The bytes with some places of them changed: something put in or over, a part left out, doubled or exchanged."""
    for _ in range(rng.choice([0, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                bit = rng.choice(_BITS)
                data = data[:at] + bit + data[at + rng.choice([0, 0, len(bit)]) :]
            case 1:
                data = data[:at] + data[at + rng.choice([1, 2, 10]) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 3:
                end = at + rng.choice([1, 5, 40])
                data = data[:end] + data[at:end] + data[end:]
            case 4 if data:
                at %= len(data)
                data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            case _:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                data = data[:at] + other[cut:] if rng.random() < 0.5 else data + other[:cut]
    return data


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The bytes cut at some places."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def request(rng: random.Random) -> bytes:
    """The bytes of a client."""
    return damaged(rng, b"".join(rng.choice(REQUESTS) for _ in range(rng.choice([1, 1, 1, 2, 4]))), REQUESTS)


def response(rng: random.Random) -> bytes:
    """The bytes of an upstream."""
    return damaged(rng, rng.choice(RESPONSES), RESPONSES) if rng.random() < 0.6 else rng.choice(RESPONSES)
