"""A Prometheus over real sockets, as its HTTP API is documented."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.adapters.prometheus import Prometheus, all_series, one_number
from vllm_chill.adapters.prometheus_access import PrometheusAccess
from vllm_chill.core.saturation.series import Series
from vllm_chill.errors import BackendUnavailable, SettingError


def answer(kind: str, result: Any) -> str:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})


def one(value: str) -> str:
    return answer("vector", [{"metric": {}, "value": [1700000000.1, value]}])


@dataclass
class Api:
    """Answers each query with this, after it has `failed` so many."""

    text: str = ""
    status: int = 200
    failed: int = 0
    seconds: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    now: int = 0
    most: int = 0

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        form = parse_qs((await request.content.read()).decode(), strict_parsing=True)
        assert form.keys() == {"query", "timeout"}
        asked = f"{request.method} {request.path} {form['query'][0]}"
        self.asked.append((asked, request.headers.get("Authorization")))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        if len(self.asked) <= self.failed:
            return web.Response(text="starting", status=503)
        return web.Response(text=self.text, status=self.status)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Api]:
        server = web.Server(self._answer, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(one("42.5"), 42.5, id="one series"),
        pytest.param(answer("scalar", [1700000000.1, "7"]), 7, id="a scalar"),
        pytest.param(answer("vector", []), None, id="no series"),
        pytest.param(one("NaN"), None, id="no number"),
        pytest.param(one("+Inf"), None, id="not a finite one"),
        pytest.param(answer("scalar", [1700000000.1, "NaN"]), None, id="no number as a scalar"),
    ],
)
async def test_an_answer_is_one_number_or_missing(text: str, value: float | None) -> None:
    async with Api(text).listening() as api, Prometheus(f"{api.url}/") as prometheus:
        assert await prometheus.value("up") == value
        assert api.asked == [("POST /api/v1/query up", None)]


ERROR = json.dumps({"status": "error", "errorType": "bad_data", "error": "unknown position: parse error"})


@pytest.mark.parametrize(
    ("api", "says"),
    [
        pytest.param(Api(ERROR, 400), r'"up" is refused: unknown position: parse error', id="no expression"),
        pytest.param(Api(answer("vector", [1, 2, 3])), r'"up" gives 3 series and not one; aggregate it', id="several"),
        pytest.param(Api(answer("matrix", [])), r'"up" gives a matrix and not a number', id="a range"),
        pytest.param(Api("<html>"), r'the answer to "up" is not that of a Prometheus', id="no JSON"),
        pytest.param(Api('{"status": "success"}'), r"is not that of a Prometheus", id="no data"),
        pytest.param(Api("[]"), r"is not that of a Prometheus", id="no object"),
        pytest.param(Api(one("x")), r"is not that of a Prometheus", id="no number"),
        pytest.param(Api("no", 404), r"answers with status 404 \(no\); is it a Prometheus\?", id="something else"),
        pytest.param(Api("no", 302), r"answers with status 302", id="a log-in page"),
        pytest.param(Api("no", 401), r"refuses to be asked \(401\); give the file of a bearer token", id="a door"),
        pytest.param(Api("x" * (2 << 20)), r'too much to answer to "up"; aggregate it', id="too much"),
        pytest.param(Api(one("1"), seconds=60), r"did not answer within 0.2 s", id="silence"),
    ],
)
async def test_what_is_wrong_is_said(api: Api, says: str) -> None:
    async with api.listening(), Prometheus(api.url, seconds=0.2 if api.seconds else 5) as prometheus:
        with pytest.raises(BackendUnavailable, match=says):
            await prometheus.value("up")


async def test_one_that_is_not_there_is_said() -> None:
    async with Prometheus("http://127.0.0.1:1", pauses=(0.01,)) as prometheus:
        with pytest.raises(
            BackendUnavailable, match=r"127.0.0.1:1 cannot be reached: Connection refused; see whether it"
        ):
            await prometheus.value("up")


async def test_the_token_is_read_anew_for_each_question(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with Api(one("1")).listening() as api, Prometheus(PrometheusAccess(api.url, token_file=file)) as prometheus:
        with pytest.raises(BackendUnavailable, match=r"the token for .* cannot be read"):
            await prometheus.value("up")
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            await prometheus.value("up")
        assert [authorization for _, authorization in api.asked] == ["Bearer first", "Bearer second"]
        api.status = 403
        with pytest.raises(BackendUnavailable, match=r"see whether the token in .*token is one that it takes"):
            await prometheus.value("up")


async def test_a_token_that_is_given_counts_before_a_file(tmp_path: Path) -> None:
    async with Api(one("1")).listening() as api:
        access = PrometheusAccess(api.url, token="s3cret", token_file=tmp_path / "none")
        async with Prometheus(access) as prometheus:
            await prometheus.value("up")
        assert [authorization for _, authorization in api.asked] == ["Bearer s3cret"]
        assert "s3cret" not in repr(access)


async def test_a_password_in_the_address_is_told_to_nobody() -> None:
    async with Prometheus("http://me:secret@127.0.0.1:1/prom/", pauses=()) as prometheus:
        with pytest.raises(BackendUnavailable, match=r"^http://127.0.0.1:1/prom cannot be reached"):
            await prometheus.value("up")


@pytest.mark.parametrize("url", ["", "prometheus:9090", "ftp://prometheus", "http://", "http://a:b"])
async def test_an_address_that_is_none_is_a_setting_to_mend(url: str) -> None:
    with pytest.raises(SettingError, match="no address of a Prometheus"):
        Prometheus(url)


async def test_what_passes_is_tried_again() -> None:
    async with Api(one("4"), failed=2).listening() as api, Prometheus(api.url, pauses=(0.01, 0.01)) as prometheus:
        assert await prometheus.value("up") == 4
        assert len(api.asked) == 3
        api.failed = 99
        with pytest.raises(
            BackendUnavailable, match=r"answers with status 503 \(starting\); see whether it is overload"
        ):
            await prometheus.value("up")
        assert len(api.asked) == 6


async def test_what_does_not_pass_is_not_tried_again() -> None:
    async with Api(ERROR, 400).listening() as api, Prometheus(api.url, pauses=(0.01,)) as prometheus:
        with pytest.raises(BackendUnavailable):
            await prometheus.value("up")
        assert len(api.asked) == 1


async def test_no_try_begins_after_the_deadline() -> None:
    async with Api(failed=99).listening() as api, Prometheus(api.url, seconds=5, pauses=(0.01, 60)) as prometheus:
        with pytest.raises(BackendUnavailable, match="status 503"):
            await prometheus.value("up")
        assert len(api.asked) == 2


async def test_no_more_than_eight_are_asked_at_a_time_and_who_waits_for_a_turn_has_his_own_time() -> None:
    async with Api(one("1"), seconds=0.3).listening() as api, Prometheus(api.url, seconds=0.8) as prometheus:
        assert await asyncio.gather(*(prometheus.value("up") for _ in range(17))) == [1] * 17
        assert api.most == 8


async def test_a_vector_is_its_series_with_labels_value_and_time() -> None:
    series = [
        {"metric": {"pod": "a"}, "value": [1700000000.1, "1.5"]},
        {"metric": {}, "value": [1700000000.1, "+Inf"]},
    ]
    async with Api(answer("vector", series)).listening() as api, Prometheus(api.url) as prometheus:
        assert await prometheus.vector("up") == [
            Series({"pod": "a"}, 1.5, 1700000000.1),
            Series({}, math.inf, 1700000000.1),
        ]
        api.text = answer("vector", [])
        assert await prometheus.vector("up") == []
        api.text = answer("scalar", [1, "1"])
        with pytest.raises(BackendUnavailable, match=r'"up" gives a scalar and not series; take an instant vector'):
            await prometheus.vector("up")
        api.text = answer("vector", [{"metric": [], "value": [1, "x"]}])
        with pytest.raises(BackendUnavailable, match="not that of a Prometheus"):
            await prometheus.vector("up")


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda j: json.dumps(j).encode()))
def test_no_answer_is_too_much(noise: bytes) -> None:
    with pytest.raises(BackendUnavailable):
        one_number("up", noise)
    with pytest.raises(BackendUnavailable):
        all_series("up", noise)


async def test_an_answer_of_very_many_series_is_read_beside_the_event_loop() -> None:
    found = [{"metric": {"pod": f"pod-{i}"}, "value": [1.0, "1"]} for i in range(30_000)]
    async with Api(answer("vector", found)).listening() as api, Prometheus(api.url) as prometheus:
        begun = time.thread_time()
        assert len(all_series("up", api.text.encode())) == len(found)
        reading, begun = time.thread_time() - begun, time.thread_time()
        assert len(await prometheus.vector("up")) == len(found)
        assert time.thread_time() - begun < reading / 2
