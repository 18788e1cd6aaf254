"""Engines' load from a Prometheus: from a stub of its API, and from a real one that scrapes pages of vLLM's."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
from aiohttp import web

from tests.adapters.certificates import Authority
from tests.real_prometheus import running
from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.adapters.prometheus_access import PrometheusAccess
from vllm_chill.adapters.prometheus_loads import PrometheusLoads
from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.saturation.series import Figure, expressions, quoted
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

Answer = Callable[[web.BaseRequest], Any]


@contextlib.asynccontextmanager
async def listening(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of one who answers so."""
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Api:
    """A stub of the API: the series of some expressions, those that it refuses, and what it was asked."""

    def __init__(self, told: Mapping[str, list[Any]], refused: set[str]) -> None:
        self._told = told
        self._refused = refused
        self.asked: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        [query] = parse_qs((await request.content.read()).decode())["query"]
        self.asked.append(query)
        if query in self._refused:
            return web.json_response({"status": "error", "error": "too many samples"}, status=422)
        result = self._told.get(query, [])
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": result}})


async def test_a_query_that_fails_alone_leaves_its_figure_missing() -> None:
    asked = expressions("ai-apps")
    kv = {"metric": {"pod": "vllm-a"}, "value": [1, "0.5"]}
    api = Api({asked[Figure.KV]: [kv]}, {asked[Figure.QUEUE]})
    async with listening(api) as port, Prometheus(f"http://127.0.0.1:{port}") as prometheus:
        found = await PrometheusLoads(prometheus).read("ai-apps", [PodPlace("vllm-a")])
    assert found.loads == {"vllm-a": EngineLoad(kv=0.5)}
    assert found.failures.keys() == {"queue length"}
    assert found.failures["queue length"].endswith("is refused: too many samples")


async def test_when_nothing_can_be_asked_it_says_so() -> None:
    api = Api({}, set(expressions("ai-apps").values()))
    async with listening(api) as port, Prometheus(f"http://127.0.0.1:{port}") as prometheus:
        with pytest.raises(BackendUnavailable, match="is refused: too many samples"):
            await PrometheusLoads(prometheus).read("ai-apps", [PodPlace("vllm-a")])


async def test_a_namespace_is_nine_queries_whatever_the_number_of_its_pods() -> None:
    api = Api({}, set())
    async with listening(api) as port, Prometheus(f"http://127.0.0.1:{port}") as prometheus:
        found = await PrometheusLoads(prometheus).read("ai-apps", [PodPlace(f"vllm-{i}") for i in range(100)])
    assert len(api.asked) == 9
    assert len(found.failures) == 100


async def test_who_asks_about_the_same_namespace_at_about_the_same_time_shares_an_answer() -> None:
    api = Api({}, set())
    async with listening(api) as port, Prometheus(f"http://127.0.0.1:{port}") as prometheus:
        loads = PrometheusLoads(prometheus, kept_seconds=60)
        asked = [[PodPlace(f"vllm-{i}")] for i in range(5)]
        first = asyncio.create_task(loads.read("ai-apps", asked[0]))
        found = asyncio.gather(*(loads.read("ai-apps", pods) for pods in asked))
        await asyncio.sleep(0)
        # What the first has begun is not the others' to lose.
        first.cancel()
        assert [[*reading.failures] for reading in await found] == [[f"vllm-{i}"] for i in range(5)]
        assert len(set(api.asked)) == 9
        before = len(api.asked)
        await loads.read("ai-apps", asked[0])
        assert len(api.asked) == before
        await loads.read("elsewhere", asked[0])
        assert len(api.asked) == before + 9
        anew = PrometheusLoads(prometheus, kept_seconds=0)
        for _ in range(2):
            await anew.read("ai-apps", asked[0])
        assert len(api.asked) == before + 27


class Pages:
    """What is scraped, by path; `ended` is the counter of the engines on /new."""

    ended = 100

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        pages = {
            "/new": self.new,
            "/old": OLD,
            "/far": FAR,
            "/gateway": GATEWAY,
            "/epp": EPP,
            "/proxy": PROXY,
            "/dcgm": DCGM,
        }
        return web.Response(text=pages[request.path])

    @property
    def new(self) -> str:
        """As vLLM 0.32 has it, with two data-parallel engines."""
        return NEW + (
            f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="org/m"}} {self.ended}\n'
            f'vllm:request_success_total{{engine="1",finished_reason="stop",model_name="org/m"}} {self.ended}\n'
            'vllm:request_success_total{engine="1",finished_reason="length",model_name="org/m"} 7\n'
        )


NEW = """\
vllm:kv_cache_usage_perc{engine="0",model_name="org/m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="org/m"} 0.75
vllm:num_requests_waiting{engine="0",model_name="org/m"} 3
vllm:num_requests_waiting{engine="1",model_name="org/m"} 4
vllm:num_requests_running{engine="0",model_name="org/m"} 10
vllm:num_requests_running{engine="1",model_name="org/m"} 2
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_cpu_blocks="None",num_gpu_blocks="1000"} 1
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_cpu_blocks="None",num_gpu_blocks="500"} 1
"""
# As older ones have it; its engine has not counted the blocks of its cache yet.
OLD = """\
vllm:gpu_cache_usage_perc{model_name="org/m"} 0.5
vllm:num_requests_waiting{model_name="org/m"} NaN
vllm:num_requests_running{model_name="org/m"} 1
vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1
"""
# One that has both names for a while, at an address of its own.
FAR = """\
vllm:kv_cache_usage_perc{model_name="org/m"} 0.4
vllm:gpu_cache_usage_perc{model_name="org/m"} 0.1
"""
GATEWAY = 'vllm:num_requests_waiting{namespace="ai-apps",pod="vllm-behind",model_name="org/m"} 6\n'
EPP = """\
inference_extension_flow_control_queue_size{fairness_id="a",priority="0",model_name="chat",target_model_name="org/m"} 2
inference_extension_flow_control_queue_size{fairness_id="b",priority="0",model_name="chat",target_model_name="org/m"} 3
inference_extension_flow_control_queue_size{fairness_id="a",priority="0",model_name="org/n",target_model_name=""} 1
"""
DCGM = """\
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-0",namespace="ai-apps",pod="vllm-new"} 1000
DCGM_FI_DEV_FB_USED{gpu="1",UUID="GPU-1",namespace="ai-apps",pod="vllm-new"} 2000
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-0",namespace="ai-apps",pod="vllm-new"} 500
DCGM_FI_DEV_FB_FREE{gpu="1",UUID="GPU-1",namespace="ai-apps",pod="vllm-new"} 600
DCGM_FI_DEV_FB_USED{gpu="2",UUID="GPU-2",namespace="ai-apps",pod="notebook"} 600
"""
PROXY = """\
vllm_chill_requests_waiting{target="ai-apps/vllm"} 5
vllm_chill_requests_waiting{target="StatefulSet ai-apps/big"} 1
vllm_chill_requests_waiting{target="ai/apps"} 9
"""


def job(name: str, port: int, path: str, host: str = "127.0.0.1", **labels: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "metrics_path": path,
        "static_configs": [{"targets": [f"{host}:{port}"], "labels": labels}],
    }


@contextlib.asynccontextmanager
async def scraped(folder: Path, pages: Pages, web_config: Mapping[str, Any] | None = None) -> AsyncIterator[int]:
    """The port of a real Prometheus that scrapes the pages."""
    async with listening(pages) as port, listening(pages, "127.0.0.2") as far:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                job("new", port, "/new", namespace="ai-apps", pod="vllm-new"),
                job("new again", port, "/new", namespace="ai-apps", pod="vllm-new", service="vllm"),
                job("old", port, "/old", namespace="ai-apps", kubernetes_pod_name="vllm-old"),
                job("far", far, "/far", "127.0.0.2", namespace="ai-apps"),
                job("gateway", port, "/gateway", namespace="monitoring", pod="gateway"),
                job("epp", port, "/epp", namespace="ai-apps", pod="epp"),
                job("dcgm", port, "/dcgm", namespace="gpus", pod="dcgm-exporter"),
                job("proxy", port, "/proxy", namespace="chill", pod="chill"),
                job("elsewhere", port, "/new", namespace="elsewhere", pod="vllm-old"),
            ],
        }
        async with running(folder, config, web_config) as asked:
            yield asked


PODS = [
    PodPlace("vllm-new", Endpoint("127.0.0.1", 8000)),
    PodPlace("vllm-old"),
    PodPlace("vllm-far", Endpoint("127.0.0.2", 8000)),
    PodPlace("vllm-behind"),
    PodPlace("vllm-starting"),
]


async def eventually(loads: PrometheusLoads, true: Callable[[LoadReading], bool]) -> LoadReading:
    """The first reading of which this is true."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(BackendUnavailable):
                found = await loads.read("ai-apps", PODS)
                if true(found):
                    return found
            await asyncio.sleep(0.2)


def whole(found: LoadReading) -> bool:
    new = found.loads.get("vllm-new")
    return new is not None and new.rate is not None and len(found.loads) == 4 and len(found.held_by_target) == 2


@pytest.mark.slow
async def test_a_real_prometheus_tells_the_load_of_each_pod(tmp_path: Path) -> None:
    pages = Pages()
    async with scraped(tmp_path, pages) as port, Prometheus(f"http://127.0.0.1:{port}") as prometheus:
        loads = PrometheusLoads(prometheus, kept_seconds=0)
        found = await eventually(loads, whole)
        assert found.failures.keys() == {"vllm-starting"}
        assert found.loads == {
            "vllm-new": EngineLoad(0.75, 7, 12, 207, 0, 24000, 3000, 1100),
            "vllm-old": EngineLoad(kv=0.5, running=1),
            "vllm-far": EngineLoad(kv=0.4),
            "vllm-behind": EngineLoad(queue=6),
        }
        assert found.held == {"org/m": 5, "org/n": 1}
        assert found.held_by_target == {"ai-apps/vllm": 5, "ai-apps/big": 1}
        pages.ended = 160
        found = await eventually(loads, lambda reading: reading.loads["vllm-new"].successes == 327)
        assert found.loads["vllm-new"].rate is not None
        assert found.loads["vllm-new"].rate > 0
        for text in ('"', "\\", 'a"} or up{x="', "a\nb\tc", "ä\U0001f600", "\\u0041", "x\x7f"):
            [one] = await prometheus.vector(f"absent(none{{label={quoted(text)}}})")
            assert one.labels == {"label": text}


class Front:
    """What stands before a Prometheus: it wants a client's certificate, and this token."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = session
        self.token = "first"
        self.clients: set[str] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        assert request.transport is not None
        self.clients.add(request.transport.get_extra_info("peercert")["subjectAltName"][0][1])
        body = await request.content.read()
        headers = {"Content-Type": request.headers["Content-Type"]}
        async with self._session.post(self._url + request.path, data=body, headers=headers) as answer:
            return web.Response(body=await answer.read(), status=answer.status)


@pytest.mark.slow
async def test_a_real_prometheus_behind_tls_a_token_and_certificates_that_are_replaced(tmp_path: Path) -> None:
    ours = Authority.new(tmp_path)
    certificate, key = ours.issue(tmp_path, "first.example")
    token = tmp_path / "token"
    token.write_text("first\n")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.ca.issue_cert("prometheus.example").configure_cert(tls)
    ours.ca.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with scraped(tmp_path, Pages()) as port, aiohttp.ClientSession() as session:
        front = Front(port, session)
        async with listening(front, tls=tls) as before:
            access = PrometheusAccess(
                f"https://127.0.0.1:{before}",
                token_file=token,
                ca_file=ours.file,
                certificate_file=certificate,
                key_file=key,
                server_name="prometheus.example",
            )
            async with Prometheus(access) as prometheus:
                loads = PrometheusLoads(prometheus, kept_seconds=0)
                await eventually(loads, whole)
                assert front.clients == {"first.example"}
                front.token = "second"
                with pytest.raises(BackendUnavailable, match=r"refuses to be asked \(401\); see whether the token in"):
                    await loads.read("ai-apps", PODS)
                token.write_text("second\n")
                ours.issue(tmp_path, "second.example")
                assert whole(await loads.read("ai-apps", PODS))
                assert front.clients == {"first.example", "second.example"}


@pytest.mark.slow
async def test_a_real_prometheus_says_what_it_does_not_like_of_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    ours, theirs = Authority.new(tmp_path), Authority.new(tmp_path / "theirs")
    server, server_key = ours.issue(tmp_path, "127.0.0.1", part="server")
    settings = {
        "cert_file": str(server),
        "key_file": str(server_key),
        "client_ca_file": str(ours.file),
        "client_auth_type": "RequireAndVerifyClientCert",
    }
    certificate, key = ours.issue(tmp_path, "client.example")
    async with running(tmp_path, {}, {"tls_server_config": settings}) as port:
        url = f"https://127.0.0.1:{port}"
        access = PrometheusAccess(url, ca_file=ours.file, certificate_file=certificate, key_file=key)
        async with Prometheus(access, seconds=30, pauses=(0.5,) * 50) as prometheus:
            assert await prometheus.value("42") == 42
        async with Prometheus(PrometheusAccess(url, ca_file=ours.file)) as prometheus:
            with pytest.raises(
                BackendUnavailable, match=r"wants a client's certificate \(.*\); give one with its key$"
            ):
                await prometheus.value("42")
        theirs.issue(tmp_path, "client.example")
        async with Prometheus(access) as prometheus:
            with pytest.raises(BackendUnavailable, match=r"refuses the client's certificate in .*client.crt \("):
                await prometheus.value("42")
        async with Prometheus(f"http://127.0.0.1:{port}") as prometheus:
            with pytest.raises(BackendUnavailable, match=r"status 400 \(Client sent an HTTP request to an HTTPS"):
                await prometheus.value("42")
