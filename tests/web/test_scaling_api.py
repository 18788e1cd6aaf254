"""How many replicas there are and why, and who may set their number, over real sockets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.scenarios.stage import envelope, stage
from tests.web.several import FakeMeter, FakeScaler, Several, entry, several
from vllm_chill.api.scaling_answers import PERCENTILE, WINDOW_SECONDS
from vllm_chill.control.autoscaler import Autoscaler
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.scaling.decision import Asked, Decision, Limited, Said
from vllm_chill.core.scaling.policy import Fallback, Policy, Rule, Schedule
from vllm_chill.core.scaling.signals import Aggregation, Metric, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Asleep, Ready, Shared, TargetRef

METRICS, REPLICAS, POLICY = "/proxy/scaling/metrics", "/proxy/scaling/replicas", "/proxy/scaling/policy"
QUEUE = Rule(Signal(Metric.QUEUE_LENGTH), 5, 5)
TTFT = Signal(Metric.LATENCY, Aggregation.TTFT, percentile=PERCENTILE, window_seconds=WINDOW_SECONDS)


def policy(least: int = 1, most: int = 8, *rules: Rule, **more: Any) -> Policy:
    return Policy("coder", least, most, rules or (QUEUE,), **more)


async def scaled(s: Several, name: str, found: Policy | None) -> FakeScaler:
    """Have a target scaled, once what runs of it is seen."""
    await s.until(name, Ready)
    return s.scaled(name, found)


async def refused(s: Several, status: int, method: str, path: str, **kwargs: Any) -> str:
    """What an error says."""
    async with s.session.request(method, s.url + path, **kwargs) as response:
        text = await response.text()
        assert response.status == status, text
        return str(envelope(text)["message"])


class TestMetrics:
    async def test_every_replica_is_told_with_what_is_measured_of_it_and_null_for_what_is_not(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s, "a", None)
            now = s.controller("a").now()
            samples = {
                Signal(Metric.QUEUE_LENGTH): Sample(7, now - 2),
                Signal(Metric.KV_CACHE_USAGE): Sample(91.25, now - 2),
                TTFT: Sample(840.5, now - 4),
            }
            scaler.meter.readings["memory-1"] = ReplicaReading("memory-1", now - 60, samples)
            scaler.meter.of_all[TTFT] = Sample(900, now - 1)
            with await s.controller("a").lease(1):
                status, body = await s.get(METRICS)
            assert status == 200
            assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
            a, b = body["targets"]
            [pod] = a.pop("pods")
            of_all = a.pop("latency")
            assert a == {
                "target": "a",
                "model": "org/a",
                "phase": "ready",
                "replicas": {"current": 1, "desired": 1, "ready": 1},
                "heldRequests": 0,
            }
            assert of_all["ttft"]["value"] == 900
            assert (of_all["e2e"], of_all["percentile"], of_all["windowSeconds"]) == (None, 95, 60)
            assert pod.pop("endpoint").startswith("127.0.0.1:")
            assert pod.pop("readySeconds") == pytest.approx(60, abs=1)
            assert pod.pop("queueLength") == {"value": 7, "ageSeconds": pytest.approx(2, abs=1)}
            assert pod.pop("kvCacheUsage")["value"] == 91.25
            assert pod.pop("latency")["ttft"] == {"value": 840.5, "ageSeconds": pytest.approx(4, abs=1)}
            assert pod == {
                "pod": "memory-1",
                "target": "a",
                "model": "org/a",
                "ready": True,
                "leaving": False,
                "inFlight": 1,
                "runningRequests": None,
                "gpuUtilization": None,
                "tokensPerSecond": None,
            }
            assert (b["target"], b["phase"], b["pods"]) == ("b", "asleep", [])

    async def test_a_replica_is_found_by_the_name_of_its_pod(self) -> None:
        async with several(awake=["b"]) as s:
            await s.until("b", Ready)
            status, body = await s.get(f"{METRICS}/memory-1")
            assert (status, body["pod"], body["target"]) == (200, "memory-1", "b")
            assert body["queueLength"] is None, "nothing measures it"

    async def test_a_name_that_two_targets_have_is_told_apart_by_the_target(self) -> None:
        async with several(awake=["a", "b"]) as s:
            await s.until("a", Ready)
            await s.until("b", Ready)
            says = await refused(s, 400, "GET", f"{METRICS}/memory-1")
            assert says == '2 targets have a replica "memory-1"; say which one is meant: ?target=a or ?target=b'
            for target in ("b", "org/b", "test/vllm-b", "vllm-b"):
                _, body = await s.get(f"{METRICS}/memory-1", params={"target": target})
                assert body["target"] == "b"

    async def test_one_that_is_not_there_is_404_with_those_there_are(self) -> None:
        async with several(awake=["a"]) as s:
            await s.until("a", Ready)
            says = await refused(s, 404, "GET", f"{METRICS}/vllm%2Fx")
            assert says == 'there is no replica "vllm/x"; there are memory-1'
            says = await refused(s, 404, "GET", f"{METRICS}/memory-1?target=b")
            assert says == 'there is no replica "memory-1", as b has none.'
            assert "known: org/a, org/b" in await refused(s, 404, "GET", f"{METRICS}/memory-1?target=c")

    async def test_many_that_are_there_are_not_all_told(self) -> None:
        async with several(awake=["a"]) as s:
            await s.until("a", Ready)
            s.backends["a"].set_replicas(25)
            says = await refused(s, 404, "GET", f"{METRICS}/x")
            assert says.endswith("memory-19, memory-20 and 5 more")

    async def test_a_target_that_no_request_goes_to_is_told_too(self) -> None:
        async with several([entry("a")], awake=["a"]) as s, several([entry("c")], awake=["c"]) as other:
            await other.until("c", Ready)
            s.scalers["jobs/batch"] = FakeScaler(other.controller("c"), policy())
            _, body = await s.get(METRICS)
            assert [one["target"] for one in body["targets"]] == ["a", "jobs/batch"]
            assert body["targets"][1]["pods"][0]["inFlight"] is None
            assert (await s.get(f"{POLICY}/jobs/batch"))[0] == 200


class TestPolicy:
    async def test_it_is_told_with_what_it_has_decided(self) -> None:
        async with several(awake=["a"]) as s:
            slow = Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 95, 60), 1000, 800)
            scaler = await scaled(
                s,
                "a",
                policy(
                    0,
                    4,
                    QUEUE,
                    slow,
                    idle_seconds=600,
                    fallback=Fallback(2, 5),
                    schedules=(Schedule("0 8 * * *", "0 18 * * *", "Europe/Berlin", 2),),
                ),
            )
            scaler.decision = Decision(
                s.controller("a").now() - 3,
                4,
                6,
                (Said("recommend", 6, "queue_length is 30"), Said("bound", 4, "no more than maxReplicas 4")),
                (Asked(QUEUE, 30.0, 2.04, 6), Asked(slow, None, None, None)),
                Limited.MAX,
            )
            status, body = await s.get(f"{POLICY}/alpha")
            assert status == 200
            decision = body.pop("decision")
            told = datetime.fromisoformat(decision.pop("time"))
            assert abs(datetime.now(UTC) - timedelta(seconds=3) - told) < timedelta(seconds=5)
            assert decision.pop("ageSeconds") == pytest.approx(3, abs=1)
            assert decision == {
                "replicas": 4,
                "recommended": 6,
                "limited": "TooManyReplicas",
                "measured": True,
                "fallenBack": False,
                "reason": "queue_length is 30; no more than maxReplicas 4",
                "trail": [
                    {"stage": "recommend", "replicas": 6, "reason": "queue_length is 30"},
                    {"stage": "bound", "replicas": 4, "reason": "no more than maxReplicas 4"},
                ],
            }
            first, second = body.pop("scalingRules")
            assert first == {
                "name": "queue_length",
                "metric": "queue_length",
                "aggregation": "average",
                "percentile": None,
                "windowSeconds": None,
                "query": None,
                "threshold": 5,
                "target": 5,
                "current": 30,
                "ageSeconds": 2.0,
                "replicas": 6,
            }
            states = {one["type"]: (one["status"], one["reason"]) for one in body.pop("conditions")}
            assert states["ScalingLimited"] == ("True", "TooManyReplicas")
            assert (second["name"], second["aggregation"], second["current"]) == ("latency (ttft, p95)", "ttft", None)
            behavior = body.pop("behavior")
            assert behavior["scaleDown"] == {
                "stabilizationWindowSeconds": 300,
                "selectPolicy": "Max",
                "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
            }
            assert body == {
                "target": "a",
                "model": "org/a",
                "policy": "coder",
                "source": "coder",
                "paused": False,
                "minReplicas": 0,
                "maxReplicas": 4,
                "tolerance": 0.1,
                "pollingIntervalSeconds": 15,
                "idleTimeoutSeconds": 600,
                "fallback": {"replicas": 2, "failureThreshold": 5},
                "schedule": [
                    {"start": "0 8 * * *", "end": "0 18 * * *", "timezone": "Europe/Berlin", "minReplicas": 2}
                ],
                "replicas": {"current": 1, "desired": 1, "ready": 1},
                "override": None,
                "conflict": None,
            }

    async def test_it_says_where_it_comes_from_and_what_is_so_of_it(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s, "a", policy())
            scaler.source = "vLLMScalingPolicy ai-apps/coder"
            _, body = await s.get(f"{POLICY}/a")
            assert (body["policy"], body["source"]) == ("coder", "vLLMScalingPolicy ai-apps/coder")
            told = {one.pop("type"): one for one in body["conditions"]}
            assert told["Active"] == {"status": "True", "reason": "InForce", "message": ""}
            assert told["ScalingLimited"]["status"] == "Unknown"
            scaler.conflict = "KEDA scales it too"
            _, body = await s.get(f"{POLICY}/a")
            told = {one["type"]: one for one in body["conditions"]}
            assert (told["Active"]["status"], told["Conflict"]["status"]) == ("False", "True")
            assert "KEDA scales it too" in told["Conflict"]["message"]

    @pytest.mark.parametrize("name", ["org/a", "org%2Fa", "a", "alpha", "a-sql", "vllm-a", "test/vllm-a"])
    async def test_a_model_is_found_by_any_name_that_requests_may_use_and_by_its_targets(self, name: str) -> None:
        async with several() as s:
            s.scaled("a", policy())
            assert (await s.get(f"{POLICY}/{name}"))[1]["target"] == "a"

    async def test_a_targets_name_that_two_have_is_told_with_its_namespace(self) -> None:
        targets = [ModelEntry(name, TargetRef(name, "vllm"), f"org/{name}", "m") for name in ("a", "b")]
        async with several(targets) as s:
            s.scaled("b", policy())
            says = await refused(s, 400, "GET", f"{POLICY}/vllm")
            assert says == '2 targets are called "vllm"; say which one is meant: a/vllm, b/vllm'
            assert (await s.get(f"{POLICY}/b/vllm"))[1]["target"] == "b"

    async def test_all_are_told_and_who_has_none(self) -> None:
        async with several() as s:
            s.scaled("a", policy())
            s.scaled("b", None)
            _, body = await s.get(POLICY)
            assert [one["target"] for one in body["policies"]] == ["a"]
            assert body["withoutPolicy"] == ["b"]

    async def test_where_there_is_none_it_says_what_to_do(self) -> None:
        async with several() as s:
            says = await refused(s, 404, "GET", f"{POLICY}/b")
            assert says.startswith("b has no scaling policy, so it has 1 replica at the most; ")
            for how in ("vLLMScalingPolicy", "vllm-chill.io/autoscale", "maxReplicas"):
                assert how in says

    async def test_a_name_that_nobody_has_is_404_with_those_there_are(self) -> None:
        async with several() as s:
            assert "known: org/a, org/b" in await refused(s, 404, "GET", f"{POLICY}/c")

    async def test_while_the_models_are_not_known_none_of_it_is(self) -> None:
        async with several(read=False) as s:
            for path in (METRICS, f"{METRICS}/x", POLICY, f"{POLICY}/a"):
                assert "the models are not known yet" in await refused(s, 503, "GET", path)
            await refused(s, 503, "POST", REPLICAS, json={"model": "a", "targetReplicas": 2})

    async def test_one_target_has_the_policy_whatever_model_is_named(self) -> None:
        async with stage() as s:
            status, body = await s.get(f"{POLICY}/org/anything")
            assert (status, body["error"]["code"]) == (404, "no_policy")
            assert body["error"]["message"].startswith("test/vllm has no scaling policy")


class TestAdjust:
    async def test_it_holds_for_as_long_as_is_said_and_says_who_wanted_it(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s, "a", policy())
            asked = {"model": "alpha", "targetReplicas": 4, "ttl": "1h30m", "by": "load test"}
            status, body = await s.post(REPLICAS, json=asked)
            assert status == 200
            override = body.pop("override")
            assert body.pop("message").startswith("a is to have 4 replicas for 1h30m, until 20")
            assert body == {
                "status": "success",
                "target": "a",
                "model": "org/a",
                "replicas": {"current": 1, "desired": 4, "ready": 1},
            }
            assert (override["replicas"], override["by"]) == (4, "load test (127.0.0.1)")
            since, expires = (datetime.fromisoformat(override[name]) for name in ("since", "expires"))
            assert expires - since == timedelta(hours=1, minutes=30)
            assert override["expiresInSeconds"] == pytest.approx(5400, abs=5)
            assert scaler.override is not None
            _, told = await s.get(f"{POLICY}/a")
            assert told["override"]["by"] == "load test (127.0.0.1)"

    @pytest.mark.parametrize(
        ("headers", "by", "told"),
        [
            pytest.param({}, None, "127.0.0.1", id="nobody says who"),
            pytest.param({}, "me", "me (127.0.0.1)", id="the body does"),
            pytest.param({"X-Forwarded-User": "ada"}, "me", "ada (127.0.0.1)", id="what stands in front, first"),
            pytest.param({"X-Forwarded-User": " "}, "a\nb\u200b c", "a b c (127.0.0.1)", id="in one line"),
            pytest.param({"X-Forwarded-User": "x" * 300}, None, f"{'x' * 100} (127.0.0.1)", id="not for ever"),
        ],
    )
    async def test_who_wanted_it_is_a_name_and_an_address(
        self, headers: dict[str, str], by: str | None, told: str
    ) -> None:
        async with several() as s:
            s.scaled("a", policy())
            body = {"model": "a", "targetReplicas": 2, "by": by}
            _, answer = await s.post(REPLICAS, json=body, headers=headers)
            assert answer["override"]["by"] == told

    async def test_it_ends_after_the_settings_time_where_none_is_said(self) -> None:
        async with several() as s:
            s.scaled("a", policy())
            _, body = await s.post(REPLICAS, json={"model": "a", "targetReplicas": 2})
            assert body["override"]["expiresInSeconds"] == pytest.approx(600, abs=5)

    async def test_it_wakes_nobody_and_counts_as_no_use(self) -> None:
        async with several() as s:
            s.scaled("a", policy(0))
            _, body = await s.post(REPLICAS, json={"model": "a", "targetReplicas": 1})
            assert body["message"].startswith("a is asleep; while it is awake it is to have 1 replica for 10m, until ")
            for method, path in (("GET", METRICS), ("GET", f"{POLICY}/a"), ("DELETE", f"{REPLICAS}?model=a")):
                assert (await s.ask(method, path))[0] == 200
            await asyncio.sleep(0.05)
            assert s.phase_is("a", Asleep)
            assert not s.backends["a"].writes

    @pytest.mark.parametrize("replicas", [1, 5])
    async def test_a_number_outside_of_the_bounds_is_refused_by_who_knows_them(self, replicas: int) -> None:
        async with several() as s:
            scaler = s.scaled("a", policy(2, 4))
            says = await refused(s, 400, "POST", REPLICAS, json={"model": "a", "targetReplicas": replicas})
            assert "from 2 to 4" in says
            assert scaler.override is None

    async def test_an_autoscaler_keeps_it_in_the_bounds_and_says_them(self) -> None:
        async with several(awake=["a"]) as s:
            await s.until("a", Ready)
            meter = FakeMeter()
            autoscaler = Autoscaler("a", s.controller("a"), meter, wall=lambda: datetime.now(UTC))
            autoscaler.policy = policy(0, 3)
            s.scalers["a"] = autoscaler  # type: ignore[assignment]
            for replicas, status in ((3, 200), (4, 400)):
                body = {"model": "a", "targetReplicas": replicas}
                assert (await s.post(REPLICAS, json=body))[0] == status
            assert autoscaler.override is not None
            says = await refused(s, 400, "POST", REPLICAS, json=body)
            assert says == "a has from 1 to 3 replicas by its policy, and 4 is outside of that."
            assert (await s.get(f"{POLICY}/a"))[1]["override"]["replicas"] == 3

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            pytest.param(None, "the body is empty", id="nothing"),
            pytest.param({"model": "a"}, "object missing required field `targetReplicas`", id="no number"),
            pytest.param({"model": "a", "targetReplicas": 0}, "targetReplicas: expected `float` >= 1", id="none"),
            pytest.param(
                {"model": "a", "targetReplicas": 1.5},
                "targetReplicas: expected `float` that's a multiple of 1",
                id="a part",
            ),
            pytest.param(
                {"model": "a", "targetReplicas": True}, "targetReplicas: expected `float`, got `bool`", id="true"
            ),
            pytest.param(
                {"model": "a", "targetReplicas": 2, "ttl": "soon"}, "ttl: it is not a duration; give", id="no time"
            ),
            pytest.param({"model": "a", "targetReplicas": 2, "ttl": "0s"}, "ttl: ", id="no time at all"),
            pytest.param({"model": "a", "replicas": 2}, "object contains unknown field `replicas`", id="another name"),
            pytest.param({"targetReplicas": 2}, "say which one in model: org/a, org/b", id="no model"),
        ],
    )
    async def test_what_it_does_not_take_is_told_with_an_example(self, body: Any, says: str) -> None:
        async with several() as s:
            s.scaled("a", policy())
            sent = {} if body is None else {"json": body}
            assert says in await refused(s, 400, "POST", REPLICAS, **sent)

    async def test_without_a_policy_there_is_nothing_to_set_and_it_says_why(self) -> None:
        async with several() as s:
            s.scaled("a", None)
            for name in ("a", "b"):
                says = await refused(s, 400, "POST", REPLICAS, json={"model": name, "targetReplicas": 2})
                assert says.startswith(
                    f"{name} has no scaling policy, so it has 1 replica at the most; in Kubernetes, "
                )

    async def test_what_somebody_else_scales_is_left_to_them(self) -> None:
        async with several() as s:
            s.scaled("a", policy(), conflict="KEDA (keda-operator) scales it too")
            says = await refused(s, 409, "POST", REPLICAS, json={"model": "a", "targetReplicas": 2})
            assert says == (
                "a is left to others, as KEDA (keda-operator) scales it too; set its replicas there, or end that."
            )

    async def test_a_proxy_that_only_recommends_sets_nothing(self) -> None:
        async with several() as s:
            s.scaled("a", policy())
            s.controller("a").observe_only = True
            says = await refused(s, 409, "POST", REPLICAS, json={"model": "a", "targetReplicas": 2})
            assert "--mode recommend" in says

    async def test_it_can_be_taken_back(self) -> None:
        async with several(default="a") as s:
            scaler = s.scaled("a", policy())
            await s.post(REPLICAS, json={"targetReplicas": 3})
            assert scaler.override is not None
            status, body = await s.ask("DELETE", REPLICAS)
            assert (status, body["override"]) == (200, None)
            assert body["message"] == "The scaling policy of a decides again."
            assert s.scalers["a"].override is None
            _, body = await s.ask("DELETE", f"{REPLICAS}?model=a")
            assert body["message"] == "Nobody has set the replicas of a."
            await refused(s, 404, "DELETE", f"{REPLICAS}?model=c")

    async def test_another_method_is_told_which_there_are(self) -> None:
        async with several() as s:
            assert "takes DELETE or POST" in await refused(s, 405, "GET", REPLICAS)
            assert "takes GET or HEAD" in await refused(s, 405, "POST", f"{POLICY}/a")

    @pytest.mark.parametrize("method", ["POST", "DELETE"])
    async def test_of_several_proxies_only_the_one_that_leads_takes_a_number(self, method: str) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s, "a", policy())
            s.controller("a").share(Shared(leads=False), None, frozenset())
            body = {"json": {"model": "a", "targetReplicas": 3}} if method == "POST" else {"params": {"model": "a"}}
            assert "another proxy decides on the replicas of a" in await refused(s, 409, method, REPLICAS, **body)
            assert scaler.override is None


class TestStatus:
    async def test_it_says_how_many_there_are_are_wanted_and_are_ready_and_why(self) -> None:
        async with several(awake=["a"]) as s:
            scaler = await scaled(s, "a", policy())
            scaler.decision = Decision(0, 3, 3, (Said("recommend", 3, "queue_length is 15\nor so"),), ())
            s.controller("a").recommend("policy", 3)
            _, body = await s.get("/proxy/status")
            a, b = body["targets"]
            assert a["desired_replicas"] == 3
            assert a["ready_replicas"] in (1, 3)
            assert a["scaling"] == "queue_length is 15 or so"
            assert (b["desired_replicas"], b["ready_replicas"], b["scaling"]) == (0, 0, None)

    async def test_what_was_decided_before_it_slept_is_no_reason(self) -> None:
        async with several() as s:
            s.scaled("a", policy(), decision=Decision(0, 3, 3, (Said("recommend", 3, "why"),), ()))
            assert (await s.get("/proxy/status"))[1]["targets"][0]["scaling"] is None
