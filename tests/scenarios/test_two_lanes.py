"""The two lanes are one proxy: whatever bytes a client sends, in whatever pieces, both ends get the same from either.

Random requests, legal and nearly so, go to a proxy with the fast lane and to one without, against one scripted
upstream. Only dates may differ, and ids that are made, of which the fast lane makes fewer.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.proxy.wire import Peer, Upstream, upstream_of
from tests.scenarios.stage import Models, Stage, models_stage, stage
from vllm_chill.adapters.engine_access import EngineAccess
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.target import Observation, TargetRef
from vllm_chill.proxy.gate import Gate
from vllm_chill.web.doorkeeper import Doorkeeper

KEPT = 1000  # bytes of a body; larger ones are streamed
OPEN_SECONDS = 0.25

RESPONSES = {
    b"length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
    b"chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\nT: t\r\n\r\n",
    b"events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n0\r\n\r\n",
    b"error": b"HTTP/1.1 422 Unprocessable Content\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
    b"close": b"HTTP/1.0 200 OK\r\n\r\nto the end",
    b"nonsense": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"short": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
}
_REFUSAL = re.compile(
    rb'HTTP/1\.1 400 [^\r]*\r\n(?:[^\r]+\r\n)*\r\n{"error": {"message": "the request (?:is not legal|cannot be read)'
)
_ID = re.compile(rb"[0-9a-f]{12}-[0-9a-f]{8}")
_ID_FIELD = re.compile(rb"X-Request-Id: %b\r\n" % _ID.pattern)
ENDS_CONNECTION = (b"error", b"close", b"nonsense", b"short")


@dataclass
class Script:
    """Answers by the last part of the path, and keeps what has come."""

    seen: list[tuple[bytes, bytes]] = field(default_factory=list)
    name: bytes = b""

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.head()
            body = await (peer.chunks() if b"\r\nTransfer-Encoding:" in head else peer.exactly(_length(head)))
            self.seen.append((self.name + head, body))
            kind = head.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2]
            await peer.send(RESPONSES.get(kind, RESPONSES[b"length"]))
            if kind in ENDS_CONNECTION:
                return


def _length(head: bytes) -> int:
    found = re.findall(rb"\r\nContent-Length: (\d+)", head)
    assert len(found) <= 1, head
    return int(found[0]) if found else 0


@dataclass(frozen=True)
class Outcome:
    """What became of a client's bytes. `end` is how its connection ended: open, closed or reset."""

    seen: tuple[tuple[bytes, bytes], ...]
    got: bytes
    end: str

    def is_like(self, other: Outcome) -> bool:
        """Whether they are the same, as far as that can be told.

        A reset may have taken from the client what it had not read yet. And aiohttp's parser forgets the requests that
        came in one read with bytes that it refuses, and what comes in one read is not the same in both ways.
        """
        if "open" not in (self.end, other.end) and (self.is_refused or other.is_refused):
            return _begins_as(self.before_refusal, other.before_refusal) and _begins_as(self.seen, other.seen)
        if "open" not in (self.end, other.end) and "reset" in (self.end, other.end):
            return _begins_as(self.got, other.got) and self.seen == other.seen
        return self == other

    def is_ended_early(self, other: Outcome) -> bool:
        """Whether a connection was ended with an answer of the proxy's own, and what there is up to then is the same.

        One that is told what is wrong before it has sent all is ended on the fast lane; aiohttp's waits for the rest.
        """
        pattern = rb"\r\nConnection: close(?=\r\n)"
        ones, others = (re.sub(pattern, b"", each.before_refusal) for each in (self, other))
        ended = ones != self.before_refusal or others != other.before_refusal
        return ended and _begins_as(ones, others) and _begins_as(self.seen, other.seen)

    @property
    def is_refused(self) -> bool:
        """Whether aiohttp's parser has refused some of it."""
        return self.before_refusal != self.got

    @property
    def before_refusal(self) -> bytes:
        """What the client got before that."""
        return _REFUSAL.split(self.got)[0]


def _begins_as(one: Sequence[object], other: Sequence[object]) -> bool:
    size = min(len(one), len(other))
    return one[:size] == other[:size]


class Requests:
    """Random bytes of a connection."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def connection(self) -> list[bytes]:
        """The bytes, in pieces. The last request ends the connection, if it is read as a request."""
        data = b"".join(self.request() for _ in range(self.random.choice([1, 1, 2, 3, 5])))
        if self.random.random() < 0.3:
            data = self.damaged(data)
        data += b"GET /v1/audio/empty HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n"
        cuts = sorted(self.random.randrange(len(data)) for _ in range(self.random.choice([0, 0, 1, 1, 2, 4, 8])))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]

    def request(self) -> bytes:
        choice = self.random.choice
        method = choice([b"POST"] * 6 + [b"GET", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"post", b"QUERY"])
        kind = choice([b"length"] * 3 + list(RESPONSES))
        path = (
            choice([b"/v1/audio/"] * 8 + [b"/health/", b"//v1/audio/", b"http://h/v1/audio/", b"/v1/audio/%2f/"]) + kind
        )
        query = choice([b""] * 4 + [b"?a=%20b", b"?", b"?x=/../y", b"#f"])
        version = choice([b"HTTP/1.1"] * 12 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"])
        body, fields = self.body()
        fields += [self.field() for _ in range(choice([0, 0, 1, 2, 4]))]
        self.random.shuffle(fields)
        host = choice([b"Host: a\r\n"] * 10 + [b"", b"host: A:80\r\n", b"Host: a\r\nHost: b\r\n"])
        line = choice([b""] * 10 + [b"\r\n"]) + b"%b %b%b %b\r\n" % (method, path, query, version)
        return line + host + b"".join(fields) + b"\r\n" + body

    def body(self) -> tuple[bytes, list[bytes]]:
        choice = self.random.choice
        size = choice([0, 1, 2, 20, 999, 1000, 1001, 70_000])
        body = self.content(size)
        length = b"%d" % len(body)
        plain = [b"Content-Length: %b\r\n" % length]
        match choice(["plain"] * 12 + ["none", "chunked", "both", "twice", "odd", "bad", "short", "long"]):
            case "none":
                return b"", []
            case "chunked":
                return self.chunked(body), [
                    choice([b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: Chunked\r\n"])
                ]
            case "both":
                return self.chunked(body), [*plain, b"Transfer-Encoding: chunked\r\n"]
            case "twice":
                return body, plain * 2
            case "odd":
                return body, [
                    choice([b"content-length:%b\r\n", b"CONTENT-LENGTH: %b\r\n", b"Content-Length:\t%b \r\n"]) % length
                ]
            case "bad":
                spelled = choice([b"+%b", b"0%b", b"%b,%b" % (length, b"%b"), b"0x%b", b"-%b", b"%b x", b"%b_0", b""])
                return body, [b"Content-Length: %b\r\n" % (spelled % length if b"%b" in spelled else spelled)]
            case "short":
                return body, [b"Content-Length: %d\r\n" % max(0, len(body) - 1)]
            case "long":
                return body, [b"Content-Length: %d\r\n" % (len(body) + 3)]
            case _:
                return body, plain

    def content(self, size: int) -> bytes:
        embedded = b"GET /v1/audio/length HTTP/1.1\r\nHost: e\r\n\r\n"
        return self.random.choice([b"x" * size, b'{"stream": true}', embedded, b""])

    def chunked(self, body: bytes) -> bytes:
        cut = self.random.randrange(len(body) + 1)
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:cut], body[cut:]) if piece)
        last = self.random.choice([b"0\r\n\r\n"] * 6 + [b"0\r\nT: x\r\n\r\n", b"00\r\n\r\n", b"g\r\n", b"0\n\n"])
        return pieces + last

    def field(self) -> bytes:
        return self.random.choice(
            [
                *[b"Accept: */*\r\n", b"X: \xff\r\n", b"x-a:b\r\n", b"Authorization: Bearer x\r\n", b"X: a\tb\r\n"],
                *[b"Content-Type: application/json\r\n", b"User-Agent: curl/8\r\n", b"User-Agent: kube-probe/1.30\r\n"],
                *[b"Connection: keep-alive\r\n", b"Connection: close\r\n", b"Connection: x-a, keep-alive\r\n"],
                *[b"X-Request-Id: r-1\r\n", b"x-request-id: no id\r\n"],
                *[b"X-Forwarded-For: 1.2.3.4\r\n", b"X-Forwarded-Proto: https\r\n", b"X-Forwarded-Host: h\r\n"],
                *[
                    b"Expect: 100-continue\r\n",
                    b"Expect: x\r\n",
                    b"TE: trailers\r\n",
                    b"Trailer: T\r\n",
                    b"X: a\r\n b\r\n",
                ],
                *[
                    b"Upgrade: h2c\r\n",
                    b"Proxy-Authorization: x\r\n",
                    b"X : y\r\n",
                    b"X\x00: y\r\n",
                    b"X: a\n",
                    b"X: y\rz\r\n",
                ],
                *[
                    b"Transfer-Encoding: identity\r\n",
                    b"Keep-Alive: 5\r\n",
                    b"Cookie: a=b\r\n",
                    b"X: " + b"y" * 9000 + b"\r\n",
                ],
            ]
        )

    def damaged(self, data: bytes) -> bytes:
        for _ in range(self.random.choice([1, 1, 2, 3])):
            at, size = self.random.randrange(len(data) + 1), self.random.choice([0, 0, 1, 2])
            bit = self.random.choice([b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"", b"\r\n\r\n", b"9", b"\xff", b"x"])
            data = data[:at] + bit + data[at + size :]
        return data


class NamingRequests(Requests):
    """Random bytes of a connection to several models: most of it is as it should be, and names one."""

    def request(self) -> bytes:
        choice = self.random.choice
        kind, body = self.call(choice([0, 1, 20, 900, 1000, 2000, 70_000]))
        answer = choice([b"length"] * 6 + [b"chunks", b"events", b"empty", b"error"])
        query = choice([b""] * 8 + [b"?model=a", b"?x=1&model=org%2Fb"])
        line = choice([b"POST"] * 8 + [b"GET", b"PUT"]) + b" /v1/audio/%b%b HTTP/1.1\r\n" % (answer, query)
        fields = [b"Host: a\r\n", *([b"Content-Type: %b\r\n" % kind] if kind else [])]
        fields += choice([[]] * 6 + [[b"Connection: close\r\n"], [b"Content-Encoding: gzip\r\n"], [b"X: \xff\r\n"]])
        if choice([True] * 5 + [False]):
            fields.append(b"Content-Length: %d\r\n" % len(body))
        else:
            fields.append(b"Transfer-Encoding: chunked\r\n")
            cut = self.random.randrange(len(body) + 1)
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
            body += b"0\r\n\r\n"
        self.random.shuffle(fields)
        return line + b"".join(fields) + b"\r\n" + body

    def call(self, size: int) -> tuple[bytes, bytes]:
        """A kind of body, and a body that is mostly of this kind."""
        choice = self.random.choice
        name = choice([b"a", b"b"] * 8 + [b"org/a", b"nobody", b"", b"\\u0061", b"\xff"])
        if choice([True, False, False, False]):
            boundary = choice([b"b"] * 4 + [b'"b"', b"x"])
            form = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
            file = form % (b"file", b'; filename="model"', b"y" * size)
            parts = choice([[form % (b"model", b"", name), file], [file, form % (b"model", b"", name)]])
            return b"multipart/form-data; boundary=" + boundary, b"".join(parts) + b"--b--\r\n"
        value = choice([b'"%b"' % name] * 16 + [b"null", b"5", b'["a"]'])
        model, rest = b'"model": ' + value, b'"x": {"model": "no", "y": ["%b"]}' % (b"y" * size)
        whole = [b"{%b, %b}" % (model, rest), b"{%b, %b}" % (rest, model), b"{%b, %b}" % (model, model)]
        broken = [b"{%b}" % rest, b"{%b %b}" % (model, rest), b"x" * size, b"{%b, %b" % (rest, model), b""]
        return choice([b"application/json"] * 10 + [b"", b"text/plain"]), choice(whole * 5 + broken)

    def damaged(self, data: bytes) -> bytes:
        return super().damaged(data) if self.random.random() < 0.2 else data


class KeyedRequests(NamingRequests):
    """Random bytes of a connection, with keys that are mostly good; `z` is for some models only."""

    def request(self) -> bytes:
        choice = self.random.choice
        name = choice([b"Authorization"] * 6 + [b"authorization", b"X-Api-Key", b"AUTHORIZATION"])
        scheme = b"" if name == b"X-Api-Key" else choice([b"Bearer "] * 8 + [b"bearer ", b"Bearer  ", b"Basic ", b""])
        said = b"%b: %b%b\r\n" % (name, scheme, choice([b"x", b"z"] * 5 + [b"y", b"x x", b"\xff"]))
        return super().request().replace(b"Host: a\r\n", choice([said + b"Host: a\r\n", b"Host: a\r\n" + said]))


@dataclass
class Lanes:
    """Two proxies to one upstream."""

    script: Script
    with_it: Stage | Models
    without: Stage | Models

    async def outcome(self, to: Stage | Models, pieces: list[bytes], pauses: list[float]) -> Outcome:
        self.script.seen.clear()
        reader, writer = await asyncio.open_connection(*to.address)
        got, end = b"", "open"

        async def send() -> None:
            for piece, pause in zip(pieces, pauses, strict=True):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)

        sending = asyncio.create_task(send())
        try:
            while True:
                async with asyncio.timeout(OPEN_SECONDS if sending.done() else 5):
                    piece = await reader.read(1 << 16)
                if not piece:
                    end = "closed"
                    break
                got += piece
        except ConnectionError:
            end = "reset"
        except TimeoutError:
            pass
        sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled():
            sending.exception()
        writer.transport.abort()
        await to.until(lambda: not to.server._active)
        seen = tuple((_ID_FIELD.sub(b"", head), body) for head, body in self.script.seen)
        got = re.sub(rb"\r\nDate: [^\r]*", b"", got)
        return Outcome(seen, _ID.sub(b"made", _ID_FIELD.sub(b"", got)), end)


@asynccontextmanager
async def lanes(**how: object) -> AsyncIterator[Lanes]:
    script = Script()
    async with AsyncExitStack() as stack:
        upstream: Upstream = await stack.enter_async_context(upstream_of(script))
        proxies = [
            await stack.enter_async_context(stage(awake=True, fast=fast, replay_bytes=KEPT, **how))  # type: ignore[arg-type]
            for fast in (True, False)
        ]
        for proxy in proxies:
            proxy.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        yield Lanes(script, *proxies)


@pytest.mark.parametrize("seeds", [range(75), range(75, 150)], ids=["some", "others"])
async def test_whatever_a_client_sends_both_ways_are_the_same(seeds: range) -> None:
    async with lanes() as both:
        for seed in seeds:
            requests = Requests(seed)
            pieces = requests.connection()
            pauses = [requests.random.choice([0, 0, 0.001, 0.003]) for _ in pieces]
            one = await both.outcome(both.with_it, pieces, pauses)
            other = await both.outcome(both.without, pieces, pauses)
            assert one.is_like(other), f"seed {seed}: {b''.join(pieces)[:2000]!r}\n{one}\n{other}"


@asynccontextmanager
async def lanes_of_models(**how: object) -> AsyncIterator[Lanes]:
    script = Script(name=b"a")
    async with AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(upstream_of(each)) for each in (script, Script(script.seen, name=b"b"))
        ]
        entries = [ModelEntry(name, TargetRef("test", name), f"org/{name}", "m") for name in "ab"]
        proxies = [
            await stack.enter_async_context(models_stage(*entries, fast=fast, replay_bytes=KEPT, **how))  # type: ignore[arg-type]
            for fast in (True, False)
        ]
        for proxy in proxies:
            for one, upstream in zip(proxy.of.values(), upstreams, strict=True):
                one.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        yield Lanes(script, *proxies)


@pytest.mark.parametrize("default", [None, "b"], ids=["no default", "with a default"])
async def test_whatever_a_client_names_both_ways_are_the_same(default: str | None) -> None:
    async with lanes_of_models(default=default) as both:
        for seed in range(60):
            requests = NamingRequests(seed)
            pieces = requests.connection()
            pauses = [requests.random.choice([0, 0, 0.001, 0.003]) for _ in pieces]
            one = await both.outcome(both.with_it, pieces, pauses)
            other = await both.outcome(both.without, pieces, pauses)
            assert one.is_like(other) or one.is_ended_early(other), f"seed {seed}: {pieces!r}\n{one}\n{other}"


@pytest.mark.parametrize("several", [False, True], ids=["one target", "several models"])
async def test_whoever_has_a_key_or_none_both_ways_are_the_same(several: bool) -> None:
    keys = Key("x", hashlib.sha256(b"x").digest()), Key("z", hashlib.sha256(b"z").digest(), ("a", "org/*"))
    gate = Gate(Keys(keys), lambda: 0.0)
    of = lanes_of_models if several else lanes
    async with of(doorkeeper=Doorkeeper(gate), engines=EngineAccess(b"Bearer up")) as both:
        reached = 0
        for seed in range(60):
            requests = KeyedRequests(seed)
            pieces = requests.connection()
            pauses = [requests.random.choice([0, 0, 0.001, 0.003]) for _ in pieces]
            one = await both.outcome(both.with_it, pieces, pauses)
            other = await both.outcome(both.without, pieces, pauses)
            assert one.is_like(other) or one.is_ended_early(other), f"seed {seed}: {pieces!r}\n{one}\n{other}"
            reached += len(one.seen)
            assert all(head.count(b"uthorization: ") == 1 and b"Bearer up" in head for head, _ in one.seen)
        assert reached > 10
