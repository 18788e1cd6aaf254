"""How the commands ask a proxy, and what becomes of everything else that may answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from tests.cli.serves import serves
from vllm_chill.api.version import Build
from vllm_chill.cli.asking import Proxy
from vllm_chill.errors import AskFailed, SettingError

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def ask(answer: Answer, prefix: str = "") -> Build:
    """What the client makes of this answer."""
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        proxy = Proxy(f"http://{host}:{port}{prefix}")
        return await asyncio.to_thread(proxy.post, "/proxy/version", {"a": 1}, Build)
    finally:
        await runner.cleanup()


async def test_the_body_is_json_and_a_path_of_the_url_is_kept() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert (request.path, request.content_type) == ("/chill/proxy/version", "application/json")
        assert await request.json() == {"a": 1}
        return web.json_response({"version": "9"})

    assert (await ask(answer, "/chill/")).version == "9"


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        pytest.param(503, '{"error": {"message": "It sleeps."}}', "^It sleeps.$", id="the proxy's own error"),
        pytest.param(502, "<html>Bad Gateway</html>", "does not answer as vllm-chill does", id="an ingress's"),
        pytest.param(200, "[]", "does not answer as vllm-chill does", id="another program"),
        pytest.param(404, '{"error": "no"}', "does not answer as vllm-chill does", id="another program's error"),
    ],
)
async def test_an_error_is_told_in_the_proxys_words_if_it_is_the_proxy(status: int, text: str, says: str) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    with pytest.raises(AskFailed, match=says):
        await ask(answer)


async def test_a_key_of_the_environment_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer the-key":
            return web.json_response({"version": "9"})
        return web.json_response({"error": {"message": "This needs one."}}, status=401)

    with pytest.raises(AskFailed, match=r"^This needs one. \(VLLM_CHILL_KEY is sent as one\)$"):
        await ask(answer)
    monkeypatch.setenv("VLLM_CHILL_KEY", " the-key\n")
    assert (await ask(answer)).version == "9"
    monkeypatch.setenv("VLLM_CHILL_KEY", "the\nkey")
    with pytest.raises(SettingError) as caught:
        await ask(answer)
    assert caught.value.message == "VLLM_CHILL_KEY has characters that no key has"


async def test_text_comes_line_by_line() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["Accept"] == "text/plain"
        return web.Response(text="one\n\ntwo é\r\nthree")

    async with serves(answer) as url:
        assert await asyncio.to_thread(lambda: list(Proxy(url).lines("/x"))) == ["one", "", "two é", "three"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (web.json_response({}), "does not answer as vllm-chill does"),
        (web.json_response({"error": {"message": "It sleeps."}}, status=404), "^It sleeps.$"),
    ],
)
async def test_what_is_no_text_is_none(answer: web.Response, says: str) -> None:
    async def answers(_: web.BaseRequest) -> web.StreamResponse:
        return answer

    async with serves(answers) as url:
        with pytest.raises(AskFailed, match=says):
            await asyncio.to_thread(lambda: list(Proxy(url).lines("/x")))


async def test_who_hangs_up_is_told_of() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with pytest.raises(AskFailed, match=r"cannot be asked: .*; is vllm-chill running there"):
        await ask(answer)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:port", "http://["])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="--url: "):
        Proxy(url)
