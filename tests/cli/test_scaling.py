"""The commands for scaling: what a person is shown, and what the proxy is told, over real sockets."""

from __future__ import annotations

import getpass
import json
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import convert, to_builtins
from msgspec.structs import replace

from tests.cli.test_models import no_log, run
from tests.web.several import FakeScaler, Several, several
from vllm_chill.api.scaling_answers import Latency, Measured, Policies, PolicyAnswer, ReplicaMetrics, ScalingMetrics
from vllm_chill.cli import cli
from vllm_chill.cli.scaling import describe_policy, describe_replica, metrics_table, policies_table
from vllm_chill.core.scaling.decision import Asked, Decision, Limited, Said
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal
from vllm_chill.core.target import Ready
from vllm_chill.errors import AskFailed, SettingError

__all__ = ["no_log"]  # a fixture

QUEUE = Rule(Signal(Metric.QUEUE_LENGTH), 5, 5)
TTFT = Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 95, 60), 1000, 800)
POLICY = Policy("coder", 1, 4, (QUEUE, TTFT))
DECISION = Decision(
    0,
    4,
    6,
    (
        Said("recommend", 6, "queue_length is 30 over 2 replicas, so 6 replicas"),
        Said("recommend", 2, "latency (ttft, p95) is missing, so it stays at 2"),
        Said("bound", 4, "the maximum is 4"),
    ),
    (Asked(QUEUE, 15.0, 2.0, 6), Asked(TTFT, None, None, None)),
    Limited.MAX,
)


def measured(value: float, age: float = 2) -> Measured:
    return Measured(value=value, age_seconds=age)


def pod(name: str, **more: Any) -> ReplicaMetrics:
    fields: dict[str, Any] = {
        "target": "a",
        "model": "org/a",
        "endpoint": "10.0.0.1:8000",
        "ready": True,
        "ready_seconds": 130,
        "leaving": False,
        "in_flight": 3,
        "queue_length": measured(7),
        "running_requests": measured(24),
        "kv_cache_usage": measured(91.3),
        "gpu_utilization": None,
        "tokens_per_second": measured(1204.5, 4),
        "latency": Latency(ttft=measured(840.4), e2e=measured(12_400), itl=None),
    }
    return ReplicaMetrics(pod=name, **(fields | more))


def metrics_of(*pods: ReplicaMetrics, **more: Any) -> ScalingMetrics:
    nothing = {"ttft": None, "e2e": None, "itl": None}
    target = {
        "target": "a",
        "model": "org/a",
        "phase": "ready",
        "replicas": {"current": 3, "desired": 4, "ready": 2},
        "heldRequests": 5,
        "latency": {"ttft": {"value": 90_000, "ageSeconds": 1}, "e2e": None, "itl": None},
        "pods": [to_builtins(one) for one in pods],
    }
    asleep = {"current": 0, "desired": 0, "ready": 0}
    other = {"target": "b", "phase": "asleep", "replicas": asleep, "heldRequests": 0, "latency": nothing, "pods": []}
    told = {"timestamp": "2026-01-31T12:00:00Z", "targets": [target | more, target | other]}
    return convert(told, ScalingMetrics)


async def scaled(s: Several, decision: Decision | None = DECISION) -> FakeScaler:
    await s.until("a", Ready)
    return s.scaled("a", POLICY, decision=decision)


class TestMetrics:
    def test_a_row_for_each_target_and_one_for_each_replica(self) -> None:
        table = metrics_table(
            metrics_of(
                pod("vllm-a-x2x4k"),
                pod(
                    "vllm-a-b7b7b",
                    leaving=True,
                    in_flight=None,
                    kv_cache_usage=measured(4.26),
                    queue_length=measured(0),
                ),
                pod("new", ready=False, latency=Latency(ttft=None, e2e=None, itl=None), tokens_per_second=None),
            )
        )
        assert table.splitlines() == [
            "TARGET  STATE   REPLICAS                HELD   TTFT  E2E  ITL",
            "a       ready   2 of 3 ready, 4 wanted     5  1m30s    -    -",
            "b       asleep  0                          0      -    -    -",
            "",
            "POD           TARGET  READY    IN FLIGHT  QUEUE  RUNNING  KV CACHE  GPU  TOKENS/S   TTFT    E2E  AGE",
            "vllm-a-x2x4k  a       yes              3      7       24       91%    -      1204  840ms  12.4s   4s",
            "vllm-a-b7b7b  a       leaving          -      0       24      4.3%    -      1204  840ms  12.4s   4s",
            "new           a       no               3      7       24       91%    -         -      -      -   2s",
        ]

    def test_where_nothing_is_awake_there_is_no_row_of_a_replica(self) -> None:
        assert "POD" not in metrics_table(metrics_of())
        assert metrics_table(ScalingMetrics(timestamp="", targets=[])) == "There is no model yet."

    def test_one_replica_has_a_line_for_each_thing(self) -> None:
        assert describe_replica(pod("vllm-a-x2x4k")).splitlines() == [
            "pod        vllm-a-x2x4k",
            "target     a",
            "served as  org/a",
            "endpoint   10.0.0.1:8000",
            "ready      yes, for 2m10s",
            "in flight  3",
            "queue      7, 2s ago",
            "running    24, 2s ago",
            "KV cache   91%, 2s ago",
            "GPU        -",
            "tokens/s   1204, 4s ago",
            "ttft       840ms, p95 of 1m",
            "e2e        12.4s, p95 of 1m",
            "itl        -",
        ]

    async def test_they_are_what_the_proxy_answers(self) -> None:
        async with several(awake=["a", "b"]) as s:
            await s.until("a", Ready)
            await s.until("b", Ready)
            assert "memory-1" in await run(s.url, "scaling metrics")
            answer = json.loads(await run(s.url, "scaling metrics", "--output", "json"))
            assert answer["targets"] == (await s.get("/proxy/scaling/metrics"))[1]["targets"]
            assert "target     b" in await run(s.url, "scaling metrics", "memory-1", "--target", "org/b")
            with pytest.raises(AskFailed, match="2 targets have a replica"):
                await run(s.url, "scaling metrics", "memory-1")
            with pytest.raises(AskFailed, match='there is no replica "x/y"; there are memory-1'):
                await run(s.url, "scaling metrics", "x/y", "--target", "a")
            with pytest.raises(SettingError, match="--target: it says which POD is meant"):
                await run(s.url, "scaling metrics", "--target", "a")


class TestPolicy:
    async def test_it_is_told_with_its_decision_step_by_step(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s)
            scaler.adjust(3, "ada (10.0.0.7)", 1800)
            told = convert((await s.get("/proxy/scaling/policy/a"))[1], PolicyAnswer)
            decision = told.decision
            assert decision is not None
            assert told.override is not None
            override = replace(told.override, expires="2026-01-31T12:30:00Z", expires_in_seconds=1799.6)
            known = replace(told, decision=replace(decision, age_seconds=3.2), override=override)
            assert describe_policy(known).splitlines() == [
                "target     a",
                "served as  org/a",
                "policy     coder",
                "replicas   1",
                "bounds     1 to 4",
                "set to     3 by ada (10.0.0.7), for another 30m, until 2026-01-31T12:30:00Z",
                "rules      queue_length              15  target 5                          6 replicas",
                "           latency (ttft, p95)  missing  target 800 ms, threshold 1000 ms",
                "decision   4 replicas, 3s ago",
                "           recommend     6  queue_length is 30 over 2 replicas, so 6 replicas",
                "           recommend     2  latency (ttft, p95) is missing, so it stays at 2",
                "           bound         4  the maximum is 4",
                "conditions Active            True   InForce",
                "           AbleToScale       True   ReadyForNewScale",
                "           ScalingLimited    True   TooManyReplicas     the maximum is 4",
                "           MetricsAvailable  True   SomeMetricsMissing  there is no data of latency (ttft, p95); "
                "without it nothing shrinks",
                "           Conflict          False  NoOtherWriter",
            ]
            scaler.source = "vLLMScalingPolicy ai/coder"
            assert "policy     coder\nsource     vLLMScalingPolicy ai/coder\nreplicas" in await run(
                s.url, "scaling policy", "a"
            )
            newer = replace(known.scaling_rules[0], name="joules", metric="joules")
            assert "joules  15  target 5" in describe_policy(replace(known, scaling_rules=[newer]))

    async def test_several_have_a_row_each_with_why(self) -> None:
        async with several(awake=["a"]) as s:
            await scaled(s)
            s.scaled("b", Policy("other", 2, 8), conflict="KEDA scales it too")
            assert (await run(s.url, "scaling policy")).splitlines() == [
                "TARGET  POLICY  REPLICAS  READY  WANTED  BOUNDS  WHY",
                "a       coder          1      1       1     1-4  queue_length is 30 over 2 replicas, so 6 replicas; "
                "the maximum is 4",
                "b       other          0      0       0     2-8  KEDA scales it too",
            ]

    async def test_a_single_one_is_told_in_full_with_who_has_none(self) -> None:
        async with several() as s:
            s.scaled("a", Policy("idle", 0, 2))
            text = await run(s.url, "scaling policy")
            assert "rules      none\ndecision   none yet\nconditions Active " in text
            assert "\n\nWithout a scaling policy: b\n" in text
            assert policies_table(Policies(policies=[], without_policy=[])) == "There is no model yet."

    async def test_it_is_what_the_proxy_answers(self) -> None:
        async with several() as s:
            s.scaled("a", POLICY)
            answer = json.loads(await run(s.url, "scaling policy", "org/a", "--output", "json"))
            assert answer == (await s.get("/proxy/scaling/policy/a"))[1]
            every = json.loads(await run(s.url, "scaling policy", "--output", "json"))
            assert every == {"policies": [answer], "withoutPolicy": ["b"]}
            with pytest.raises(AskFailed, match="b has no scaling policy"):
                await run(s.url, "scaling policy", "b")


class TestSet:
    async def test_it_holds_for_a_while_and_can_be_ended(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s)
            told = (await run(s.url, "scaling set", "org/a", "3", "--ttl", "30m")).splitlines()
            assert told[0].startswith("a is to have 3 replicas for 30m, until 20")
            assert told[1] == "To end it before: vllm-chill scaling set org/a --clear"
            assert scaler.override is not None
            assert scaler.override.by == f"{getpass.getuser()} (127.0.0.1)"
            assert await run(s.url, "scaling set", "org/a", "--clear") == "The scaling policy of a decides again.\n"
            assert s.scalers["a"].override is None
            answer = json.loads(await run(s.url, "scaling set", "a", "2", "--by", "ada", "--output", "json"))
            assert answer["override"]["by"] == "ada (127.0.0.1)"

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            pytest.param(["a"], "give either REPLICAS or --clear", id="no number"),
            pytest.param(["a", "2", "--clear"], "give either REPLICAS or --clear", id="both"),
            pytest.param(["a", "--clear", "--ttl", "1h"], "--ttl: with --clear", id="for how long is it cleared"),
        ],
    )
    async def test_what_makes_no_sense_is_not_sent(self, arguments: list[str], says: str) -> None:
        with pytest.raises(SettingError, match=says):
            await run("http://127.0.0.1:1", "scaling set", *arguments)

    async def test_what_the_proxy_says_against_it_is_told(self) -> None:
        async with several() as s:
            s.scaled("a", POLICY)
            with pytest.raises(AskFailed, match="from 1 to 4"):
                await run(s.url, "scaling set", "a", "9")
            with pytest.raises(AskFailed, match="ttl: "):
                await run(s.url, "scaling set", "a", "2", "--ttl", "soon")


@pytest.mark.parametrize("command", ["metrics", "policy", "set"])
def test_each_says_how_it_is_used(command: str) -> None:
    result = CliRunner().invoke(cli, ["scaling", command, "--help"])
    assert result.exit_code == 0
    assert f"\n    vllm-chill scaling {command}" in result.output
