"""Readings of GPUs and engines: what each source says, and what becomes of what it does not say."""

from __future__ import annotations

import asyncio
import contextlib
import re
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.adapters.gpu import DcgmStats, NvmlStats, VllmStats, dcgm_gpus, dcgm_use, engine_load
from vllm_chill.core.gpu import EngineLoad, Gpu, GpuReading, GpuUse
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

DCGM = """\
# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 87
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-2",modelName="NVIDIA H200",Hostname="node-1"} 0
# HELP DCGM_FI_DEV_FB_FREE Framebuffer memory free (in MiB).
# TYPE DCGM_FI_DEV_FB_FREE gauge
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 12000
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 131000
DCGM_FI_DEV_FB_RESERVED{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 771
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 61
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 512.437
DCGM_FI_DEV_FAN_SPEED{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} 9223372036854775794
DCGM_FI_DEV_ENC_UTIL{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",Hostname="node-1"} NaN
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1",modelName="NVIDIA H200",GPU_I_ID="7",Hostname="node-1"} 1
DCGM_FI_DEV_FB_USED{gpu="1",UUID="GPU-2",modelName="NVIDIA H200",GPU_I_ID="7",Hostname="node-1"} 5
"""

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/a"} 3.0
vllm:num_requests_running{engine="1",model_name="org/a"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="org/a"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="org/a",reason="capacity"} 99.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="org/a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="org/a"} 0.53219
"""


@contextlib.asynccontextmanager
async def page(
    text: str,
    status: int = 200,
    path: str = "/metrics",
    seconds: float = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: list[str] | None = None,
) -> AsyncIterator[Endpoint]:
    """Answers with a page; `hosts` is told whom each request was meant for."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if hosts is not None:
            hosts.append(request.host)
        await asyncio.sleep(seconds)
        return web.Response(text=text, status=status if request.path == path else 404)

    runner = web.ServerRunner(web.Server(answer, handler_cancellation=True, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    try:
        yield Endpoint(*runner.addresses[0])
    finally:
        await runner.cleanup()


class Nvml(types.ModuleType):
    """NVIDIA's bindings over one GPU of this world; what is not in `readings` is not supported."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, count: int = 1, *, driver: bool = True, **readings: Any) -> None:
        super().__init__("pynvml")
        self.count, self.driver, self.begun = count, driver, 0
        for name in (
            *("MemoryInfo", "UtilizationRates", "EncoderUtilization", "DecoderUtilization", "Name", "UUID"),
            *("Temperature", "PowerUsage", "PowerManagementLimit", "FanSpeed"),
        ):
            setattr(self, f"nvmlDeviceGet{name}", lambda handle, *_, name=name: self._told(readings, name))

    def _told(self, readings: dict[str, Any], name: str) -> Any:
        if name not in readings:
            raise self.NVMLError("Not Supported")
        return readings[name]

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.begun += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index


class TestNvml:
    async def test_a_gpu_is_told_in_the_units_of_the_answer(self) -> None:
        nvml = Nvml(
            MemoryInfo=types.SimpleNamespace(used=131072 << 20, total=143771 << 20),
            UtilizationRates=types.SimpleNamespace(gpu=87, memory=40),
            EncoderUtilization=[0, 100],
            DecoderUtilization=[3, 100],
            Name="NVIDIA H200",
            UUID="GPU-1",
            Temperature=61,
            PowerUsage=512437,
            PowerManagementLimit=700000,
        )
        reading = await NvmlStats(lambda: nvml).read()
        assert reading == GpuReading(
            "nvml",
            (
                Gpu(
                    index=0,
                    name="NVIDIA H200",
                    uuid="GPU-1",
                    utilization_percent=87,
                    memory_used_mb=131072,
                    memory_total_mb=143771,
                    temperature_c=61,
                    power_draw_w=512.437,
                    power_limit_w=700.0,
                    encoder_util_percent=0,
                    decoder_util_percent=3,
                ),
            ),
        )
        assert reading.gpus[0].memory_util_percent == 91.17

    async def test_what_a_gpu_does_not_tell_is_none(self) -> None:
        assert (await NvmlStats(lambda: Nvml(count=2)).read()).gpus == (Gpu(index=0), Gpu(index=1))

    async def test_the_driver_is_taken_up_once(self) -> None:
        nvml = Nvml()
        stats = NvmlStats(lambda: nvml)
        for _ in range(3):
            await stats.read()
        assert nvml.begun == 1

    @pytest.mark.parametrize(
        ("nvml", "says"),
        [
            pytest.param(Nvml(driver=False), "NVML sees no GPU here: NVML Shared Library Not Found", id="no driver"),
            pytest.param(Nvml(count=0), "NVML sees no GPU here", id="no GPU"),
        ],
    )
    async def test_where_there_is_none_it_says_so(self, nvml: Nvml, says: str) -> None:
        with pytest.raises(BackendUnavailable, match=says):
            await NvmlStats(lambda: nvml).read()

    async def test_nvidias_own_bindings_have_all_that_is_asked_of_them(self) -> None:
        import pynvml

        for name in dir(Nvml()):
            if name.startswith(("nvml", "NVML")):
                assert hasattr(pynvml, name)
        try:
            reading = await NvmlStats().read()
        except BackendUnavailable as error:
            assert error.message.startswith("NVML sees no GPU here")  # noqa: PT017 - either world will do
        else:
            assert reading.gpus[0].name


class TestDcgm:
    async def test_every_gpu_is_told_with_its_machine(self) -> None:
        async with page(DCGM) as endpoint:
            reading = await DcgmStats(f"http://{endpoint}").read()
        first, second = reading.gpus
        assert reading.source == "dcgm"
        assert first == Gpu(
            index=0,
            name="NVIDIA H200",
            uuid="GPU-1",
            node="node-1",
            utilization_percent=87,
            memory_used_mb=131000,
            memory_total_mb=143771,
            temperature_c=61,
            power_draw_w=512.437,
        )
        assert second == Gpu(index=1, name="NVIDIA H200", uuid="GPU-2", node="node-1", utilization_percent=0)

    async def test_a_path_that_is_given_is_asked(self) -> None:
        async with page(DCGM, path="/gpu/metrics") as endpoint:
            assert len((await DcgmStats(f"http://{endpoint}/gpu/metrics").read()).gpus) == 2

    @pytest.mark.parametrize(
        ("text", "status", "says"),
        [
            pytest.param("", 200, "tells of no GPU; is it a DCGM exporter's", id="nothing"),
            pytest.param(VLLM, 200, "tells of no GPU", id="vLLM's"),
            pytest.param(DCGM, 503, "answers with status 503", id="an error"),
        ],
    )
    async def test_what_is_no_exporter_is_said(self, text: str, status: int, says: str) -> None:
        async with page(text, status) as endpoint:
            with pytest.raises(BackendUnavailable, match=says):
                await DcgmStats(f"http://{endpoint}").read()

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:99999", "exporter", "ftp://x", "http://["])
    async def test_what_cannot_be_asked_is_said_with_its_address(self, url: str) -> None:
        with pytest.raises(BackendUnavailable, match=rf"{re.escape(url)}(/metrics)? cannot be asked"):
            await DcgmStats(url).read()

    @given(st.text())
    def test_no_page_is_too_much(self, text: str) -> None:
        dcgm_gpus(text)
        dcgm_gpus(f"DCGM_FI_DEV_GPU_UTIL{{{text}")
        engine_load("a", "b", f"vllm:num_requests_running{{{text}}} 1".encode(errors="replace"))


class TestVllm:
    async def test_the_load_of_each_engine_that_answers_is_told(self) -> None:
        async with page(VLLM) as a, page("no metrics") as b:
            reading = await VllmStats(lambda: [("a", a), ("b", b), ("c", Endpoint("127.0.0.1", 1))]).read()
        assert reading == GpuReading("vllm", engines=(EngineLoad("a", str(a), 53.22, running=5, waiting=1),))

    def test_the_name_from_before_v1_is_known(self) -> None:
        load = engine_load("a", "b", b"vllm:gpu_cache_usage_perc 0.5\n")
        assert load == EngineLoad("a", "b", kv_cache_percent=50)

    async def test_where_none_is_awake_it_says_so(self) -> None:
        with pytest.raises(BackendUnavailable, match="no engine is awake"):
            await VllmStats(list).read()
        async with page("no metrics") as endpoint:
            with pytest.raises(BackendUnavailable, match="no metrics of vLLM"):
                await VllmStats(lambda: [("a", endpoint)]).read()


async def test_one_that_does_not_answer_is_not_waited_for_forever() -> None:
    async with page(DCGM, seconds=60) as endpoint:
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0.05 s"):
            await DcgmStats(f"http://{endpoint}", timeout_seconds=0.05).read()


class TestUse:
    def test_a_pods_gpus_count_together(self) -> None:
        use = dcgm_use(
            'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1",pod="a",namespace="ai-apps",container="vllm"} 80\n'
            'DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-2",pod="a",namespace="ai-apps",container="vllm"} 40\n'
            'DCGM_FI_DEV_GPU_UTIL{gpu="2",UUID="GPU-3",pod="b",namespace="ai-apps"} 10\n'
            'DCGM_FI_DEV_GPU_UTIL{gpu="3",UUID="GPU-4",pod="",namespace=""} 0\n'
            'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1",pod="a",namespace="ai-apps",container="vllm"} 80\n'
        )
        assert use == GpuUse(32.5, {("ai-apps", "a"): 60, ("ai-apps", "b"): 10})

    def test_what_a_prometheus_took_has_the_pod_set_aside(self) -> None:
        use = dcgm_use(
            'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-1",pod="x",namespace="gpu",exported_pod="a",exported_namespace="n"} 7\n'
        )
        assert use.by_pod == {("n", "a"): 7}

    def test_a_part_of_a_gpu_counts_by_the_time_in_which_it_worked(self) -> None:
        use = dcgm_use(
            'DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="GPU-1",GPU_I_ID="1",pod="a",namespace="n"} 0.25\n'
            'DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="GPU-1",GPU_I_ID="2",pod="b",namespace="n"} 0.75\n'
            'DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="GPU-2",pod="c",namespace="n"} 0.5\n'
            'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-2",pod="c",namespace="n"} 90\n'
            'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-3",pod="d",namespace="n"} 9223372036854775794\n'
        )
        assert use.by_pod == {("n", "a"): 25, ("n", "b"): 75, ("n", "c"): 90}

    async def test_it_is_had_of_an_exporter_and_of_nvml(self) -> None:
        async with page(DCGM) as endpoint:
            assert await DcgmStats(f"http://{endpoint}").use() == GpuUse(43.5)
        nvml = Nvml(count=2, UtilizationRates=types.SimpleNamespace(gpu=30, memory=40))
        assert await NvmlStats(lambda: nvml).use() == GpuUse(30)
        assert await NvmlStats(lambda: Nvml()).use() == GpuUse()

    async def test_every_exporter_that_a_name_stands_for_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As of a headless Service of a DaemonSet; one of them does not answer."""
        other = DCGM.replace("node-1", "node-2").replace("GPU-", "GPU-x")

        async def addresses(host: str, port: int, **_: object) -> list[Any]:
            assert host == "exporters"
            return [(None, None, None, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]

        meant: list[str] = []
        async with page(DCGM, hosts=meant) as first, page(other, host="127.0.0.2", port=first.port):
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
            reading = await DcgmStats(f"http://exporters:{first.port}").read()
        assert [(gpu.node, gpu.index) for gpu in reading.gpus] == [(f"node-{n}", i) for n in (1, 2) for i in (0, 1)]
        assert meant == [f"exporters:{first.port}"]
