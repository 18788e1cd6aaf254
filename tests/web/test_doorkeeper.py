"""Operators that the cluster knows."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.scenarios.stage import envelope, stage
from vllm_chill.core.access import Access, Denied, Granted, Operators, Readers
from vllm_chill.core.access import Unauthenticated as NobodyKnown
from vllm_chill.core.target import Asleep
from vllm_chill.errors import BackendRefused, BackendUnavailable
from vllm_chill.web.doorkeeper import Doorkeeper

TOKEN = {"Authorization": "Bearer the-token"}
START = "/proxy/operations/start"


class Cluster:
    """ports.Authorizer."""

    def __init__(self, answer: Access | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, str]] = []

    async def may(self, token: str, verb: str, path: str) -> Access:
        self.asked.append((token, verb, path))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def doors(cluster: Cluster, readers: Readers = Readers.ALL) -> Doorkeeper:
    return Doorkeeper(operators=Operators.KUBERNETES, authorizer=cluster, status=readers, metrics=readers)


async def test_whom_the_cluster_lets_may() -> None:
    cluster = Cluster(Granted())
    async with stage(doorkeeper=doors(cluster)) as proxy:
        async with proxy.session.post(proxy.url + START + "?wait=true", headers=TOKEN) as response:
            assert response.status == 200
        async with proxy.session.delete(proxy.url + "/proxy/scaling/replicas", headers=TOKEN) as response:
            assert response.status == 200
    assert cluster.asked == [("the-token", "post", START), ("the-token", "delete", "/proxy/scaling/replicas")]


@pytest.mark.parametrize(
    ("answer", "headers", "status", "code", "message"),
    [
        pytest.param(
            Granted(),
            {},
            401,
            "invalid_api_key",
            'this needs a token of the cluster; send one in the header "Authorization: Bearer TOKEN".',
            id="no token",
        ),
        pytest.param(
            NobodyKnown(),
            TOKEN,
            401,
            "invalid_api_key",
            "the token is not one that the cluster knows, or has expired; send one in the header "
            '"Authorization: Bearer TOKEN".',
            id="unknown",
        ),
        pytest.param(
            Denied("system:serviceaccount:a:b"),
            TOKEN,
            403,
            "forbidden",
            "system:serviceaccount:a:b may not post /proxy/operations/start: bind a ClusterRole with the verb "
            '"post" on this nonResourceURL.',
            id="denied",
        ),
        pytest.param(
            BackendUnavailable("it is away"),
            TOKEN,
            503,
            "rights_unknown",
            "the cluster cannot be asked now what this token may do; try again.",
            id="away",
        ),
        pytest.param(
            BackendRefused("no right to ask"),
            TOKEN,
            500,
            "internal_error",
            "the cluster does not tell what this token may do; the proxy's log says why.",
            id="refused",
        ),
    ],
)
async def test_whom_it_does_not_let_is_told_why_and_wakes_nothing(
    answer: Access | Exception, headers: dict[str, str], status: int, code: str, message: str
) -> None:
    async with stage(doorkeeper=doors(Cluster(answer))) as proxy:
        with capture_logs() as logs:
            for _ in range(2):
                async with proxy.session.post(proxy.url + START, headers=headers) as response:
                    assert response.status == status
                    error = envelope(await response.text())
        assert (error["code"], error["message"]) == (code, message)
        assert proxy.phase_is(Asleep)
        assert not proxy.backend.writes
        told = [line["cause"] for line in logs if line["event"] == "who may operate this proxy is not known"]
        assert told == ([str(answer)] if isinstance(answer, Exception) else []), "once, and without the token"


async def test_nobody_is_asked_about_what_is_open() -> None:
    cluster = Cluster(Denied("x"))
    async with stage(doorkeeper=doors(cluster), awake=True) as proxy:
        for path in ("/proxy/status", "/v1/models", "/health", "/docs"):
            async with proxy.session.get(proxy.url + path, headers=TOKEN) as response:
                assert response.status == 200
        assert (await proxy.post("/v1/chat/completions", json={}))[0] == 200
        _, seen = await proxy.post("/v1/chat/completions", json={}, headers=TOKEN)
        assert ["Authorization", "Bearer the-token"] in seen["headers"], "no key of ours, so it goes on"
    assert not cluster.asked


async def test_who_reads_may_be_asked_for_too() -> None:
    cluster = Cluster(Granted())
    async with stage(doorkeeper=doors(cluster, Readers.ADMIN)) as proxy:
        assert (await proxy.get("/proxy/status"))[0] == 401
        assert (await proxy.get("/proxy/status?view=page", headers=TOKEN))[0] == 200
        async with proxy.session.head(proxy.url + "/proxy/metrics", headers=TOKEN) as response:
            assert response.status == 200
    assert cluster.asked == [("the-token", "get", "/proxy/status"), ("the-token", "get", "/proxy/metrics")]
