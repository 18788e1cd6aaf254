"""A controller's metrics and probes, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.certificates import Authority, write
from vllm_chill.adapters.serving_certificate import from_files, self_signed
from vllm_chill.core.access import Access, Denied, Granted, Unauthenticated
from vllm_chill.core.listening import ListenAddress
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable, SettingError
from vllm_chill.web.controller_server import ControllerServer

HERE = ListenAddress("127.0.0.1", 0)
PAGE = b"# HELP wva_desired_replicas How many.\n# TYPE wva_desired_replicas gauge\n"


@dataclass
class Rights:
    """Answers for tokens; a token that it does not know is nobody's."""

    tokens: dict[str, Access | BackendError] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def may(self, token: str, verb: str, path: str) -> Access:
        self.asked.append((token, path))
        found = self.tokens.get(token, Unauthenticated())
        if isinstance(found, BackendError):
            raise found
        return found


@dataclass
class Controller:
    """What the server shows, and how to ask it."""

    ready: bool = False
    page: bytes | Exception = PAGE
    rights: Rights = field(default_factory=Rights)
    url: str = ""

    def metrics(self) -> bytes:
        if isinstance(self.page, Exception):
            raise self.page
        return self.page

    async def ask(self, path: str, token: str | None = None, method: str = "GET") -> tuple[int, str]:
        status, _, text = await self.answer(path, {} if token is None else {"Authorization": token}, method)
        return status, text

    async def answer(self, path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, dict[str, str], str]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session,
            session.request(method, self.url + path, headers=headers) as response,
        ):
            return response.status, dict(response.headers), await response.text()


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    return self_signed("a")


@pytest.fixture
async def secured(tls: ssl.SSLContext) -> AsyncIterator[Controller]:
    controller = Controller()
    server = ControllerServer(controller.metrics, lambda: controller.ready, controller.rights)
    [(host, port)] = await server.serve_metrics(HERE, tls)
    controller.url = f"https://{host}:{port}"
    yield controller
    await server.close()


@pytest.fixture
async def probed() -> AsyncIterator[Controller]:
    controller = Controller()
    server = ControllerServer(controller.metrics, lambda: controller.ready, controller.rights)
    [(host, port)] = await server.serve_probes(HERE)
    controller.url = f"http://{host}:{port}"
    yield controller
    await server.close()


async def test_whoever_may_read_the_metrics_gets_them(secured: Controller) -> None:
    secured.rights.tokens["t"] = Granted()
    status, headers, text = await secured.answer("/metrics?a=b", {"Authorization": "Bearer t"})
    assert (status, text.encode()) == (200, PAGE)
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Server"] == "vllm-chill"
    assert await secured.ask("/metrics", "bearer  t ") == (200, PAGE.decode())
    assert await secured.ask("/metrics", "Bearer t", "HEAD") == (200, "")
    assert secured.rights.asked == [("t", "/metrics")] * 3


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dDp0", "t"])
async def test_without_a_token_nobody_is_asked(secured: Controller, header: str | None) -> None:
    fields = {} if header is None else {"Authorization": header}
    status, headers, text = await secured.answer("/metrics", fields)
    assert status == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert text == (
        "a token is needed: give a token that may read these metrics, in the header Authorization: Bearer TOKEN\n"
    )
    assert not secured.rights.asked


async def test_a_token_that_nobody_knows_is_told_so(secured: Controller) -> None:
    status, text = await secured.ask("/metrics", "Bearer t")
    assert status == 401
    assert text.startswith("the token is not one that the API server knows, or has expired: give a token that")


async def test_whoever_may_not_read_them_is_told_what_to_grant(secured: Controller) -> None:
    secured.rights.tokens["t"] = Denied("system:serviceaccount:monitoring:prometheus")
    assert await secured.ask("/metrics", "Bearer t") == (
        403,
        "system:serviceaccount:monitoring:prometheus may not read /metrics: bind a ClusterRole with the verb "
        '"get" on the nonResourceURL "/metrics" to it\n',
    )


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (BackendUnavailable("the API server https://10.0.0.1 cannot be reached: no route"), 503, "; try again\n"),
        (BackendRefused("grant it that right to sa"), 500, "; the log says why\n"),
    ],
)
async def test_while_nobody_can_tell_the_answer_says_so_and_the_log_says_why_once(
    secured: Controller, error: BackendError, status: int, sentence: str
) -> None:
    secured.rights.tokens |= {"s3cret": error, "good": Granted()}
    with capture_logs() as logs:
        for _ in range(3):
            answered, text = await secured.ask("/metrics", "Bearer s3cret")
            assert answered == status
            assert text.endswith(sentence)
            assert error.message not in text
        await secured.ask("/metrics", "Bearer good")
        await secured.ask("/metrics", "Bearer s3cret")
    assert [log["cause"] for log in logs] == [error.message] * 2
    assert "s3cret" not in str(logs)


async def test_a_page_that_cannot_be_made_is_a_bug_that_the_log_tells(secured: Controller) -> None:
    secured.rights.tokens["s3cret"] = Granted()
    secured.page = RuntimeError("a bug")
    with capture_logs() as logs:
        assert (await secured.ask("/metrics", "Bearer s3cret"))[0] == 500
    assert [log["event"] for log in logs] == ["a bug in vllm-chill"]
    assert "s3cret" not in str(logs)


async def test_other_paths_and_methods_do_nothing(secured: Controller) -> None:
    assert await secured.ask("/") == (404, "there is nothing here; ask for /metrics\n")
    assert await secured.ask("/healthz") == (404, "there is nothing here; ask for /metrics\n")
    status, headers, _ = await secured.answer("/metrics", {}, "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


async def test_without_an_authorizer_everybody_reads_them_over_plain_http() -> None:
    server = ControllerServer(lambda: PAGE, lambda: True)
    [(host, port)] = await server.serve_metrics(HERE)
    controller = Controller(url=f"http://{host}:{port}")
    assert await controller.ask("/metrics") == (200, PAGE.decode())
    await server.close()


async def test_a_client_that_trusts_the_authority_verifies_the_certificate(tmp_path: Path) -> None:
    authority = Authority()
    server = ControllerServer(lambda: PAGE, lambda: True)
    [(host, port)] = await server.serve_metrics(HERE, from_files(*write(tmp_path, *authority.issue("controller"))))
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://{host}:{port}/metrics", ssl=context, server_hostname="controller") as response,
    ):
        assert response.status == 200
    await server.close()


async def test_whoever_offers_http_2_too_is_spoken_to_in_http_1_1(secured: Controller) -> None:
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    port = int(secured.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.close()
    await writer.wait_closed()


async def test_plain_http_where_tls_is_spoken_harms_nobody(secured: Controller) -> None:
    with pytest.raises(aiohttp.ClientError):
        await Controller(url=secured.url.replace("https", "http")).ask("/metrics")
    secured.rights.tokens["t"] = Granted()
    assert (await secured.ask("/metrics", "Bearer t"))[0] == 200


async def test_the_probes_say_whether_it_lives_and_whether_it_can_work(probed: Controller) -> None:
    assert await probed.ask("/healthz") == (200, "ok\n")
    assert await probed.ask("/readyz") == (503, "not ready yet\n")
    probed.ready = True
    assert await probed.ask("/readyz?verbose") == (200, "ok\n")
    assert await probed.ask("/metrics") == (404, "there is nothing here; ask for /healthz or /readyz\n")


async def test_an_address_that_is_taken_is_told_with_the_flag_that_gives_another(probed: Controller) -> None:
    port = int(probed.url.rpartition(":")[2])
    server = ControllerServer(lambda: PAGE, lambda: True)
    taken = f"cannot listen on 127.0.0.1:{port}: Address already in use; give another --metrics-bind-address"
    with pytest.raises(SettingError, match=taken):
        await server.serve_metrics(ListenAddress("127.0.0.1", port))
    with pytest.raises(SettingError, match="give another --health-probe-bind-address"):
        await server.serve_probes(ListenAddress("no-such-host.invalid", port))
    await server.close()


async def test_a_port_alone_is_all_addresses() -> None:
    server = ControllerServer(lambda: PAGE, lambda: True)
    addresses = await server.serve_probes(ListenAddress(None, 0))
    assert await Controller(url=f"http://127.0.0.1:{dict(addresses)['0.0.0.0']}").ask("/healthz") == (200, "ok\n")
    await server.close()
