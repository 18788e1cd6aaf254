"""The models of a catalogue and their workloads, in memory and on loop time."""

from __future__ import annotations

import asyncio

import pytest

from tests.control.model_stage import (
    DEPLOYMENTS,
    GRACE_SECONDS,
    SERVICES,
    model,
    staged,
)
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.control.models import FINALIZER, MODELS
from vllm_chill.control.workloads import MANAGED_BY, REPLACE
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.target import Asleep, Ready
from vllm_chill.errors import BackendConflict, BackendRefused, BackendUnavailable, ModelNotFound

pytestmark = pytest.mark.looptime(start=100)


# A model comes.


async def test_a_model_gets_a_workload_that_sleeps_and_is_in_the_catalogue() -> None:
    async with staged(model()) as stage:
        assert stage.there()["spec"]["replicas"] == 0
        assert "test/qwen" in stage.args()
        assert stage.service() is not None
        assert stage.served.names == ["qwen"]
        assert isinstance(stage.controller().target.phase, Asleep)
        item = stage.store.read(MODELS, "qwen")
        assert item is not None
        assert item["metadata"]["finalizers"] == [FINALIZER]
        assert [said.message for said in stage.said("Created")] == [
            "Deployment ai-apps/vllm-qwen was made",
            "Service ai-apps/vllm-qwen was made",
        ]


async def test_all_models_are_told_at_once_and_then_once_for_each_change() -> None:
    async with staged(model("a"), model("b"), model("c")) as stage:
        assert [sorted(entry.name for entry in told) for told in stage.served.told] == [["a", "b", "c"]]
        stage.change({"spec": {"idleTimeout": "1m"}}, "b")
        await asyncio.sleep(5)
        assert len(stage.served.told) == 2
        assert {entry.name: entry.idle_seconds for entry in stage.served.told[-1]}["b"] == 60


async def test_a_caller_that_comes_before_the_workload_is_made_waits_for_it() -> None:
    async with staged() as stage:
        stage.store.fail_next = [BackendUnavailable("it is away")] * 5
        stage.store.create(MODELS, model())
        lease = asyncio.create_task(stage.lease())
        await asyncio.sleep(0.05)
        assert stage.controller().target.held_back == "it is away"
        (await lease).release()


async def test_a_model_sleeps_again_and_its_status_follows() -> None:
    async with staged(model()) as stage:
        assert stage.status()["phase"] == "Asleep"
        lease = asyncio.create_task(stage.lease())
        await asyncio.sleep(3)
        assert (stage.status()["phase"], stage.status()["replicas"]) == ("Waking", 1)
        with await lease:
            await asyncio.sleep(3)
            assert (stage.status()["phase"], stage.status()["lastWakeSeconds"]) == ("Ready", 10)
            assert stage.condition("Available") == ("True", "Ready")
        await asyncio.sleep(400)
        assert (stage.status()["phase"], stage.status()["replicas"]) == ("Asleep", 0)
        assert stage.condition("Available") == ("False", "Asleep")
        assert "lastUsed" in stage.status()


async def test_a_status_is_written_at_most_once_a_second_and_not_without_need() -> None:
    async with staged(model()) as stage:
        stage.store.writes.clear()
        for _ in range(50):
            stage.models.changed("qwen")
            await asyncio.sleep(0.01)
        assert stage.store.writes == []
        lease = asyncio.create_task(stage.lease())
        await asyncio.sleep(0.5)
        lease.cancel()
        await stage.controller().stop()
        await asyncio.sleep(0.1)
        assert [what for what, _ in stage.store.writes].count("status") == 1


async def test_a_long_use_is_noted_once_a_minute() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            await asyncio.sleep(10)
            stage.store.writes.clear()
            await asyncio.sleep(600)
            assert 5 <= len(stage.store.writes) <= 10
            assert {what for what, _ in stage.store.writes} == {"status"}


# A model that cannot be used.


async def test_a_model_that_cannot_be_used_says_why_and_is_not_served() -> None:
    async with staged(model(maxModelLen=-1, gpuCount="many")) as stage:
        assert stage.served.names == []
        assert stage.deployment() is None
        assert stage.status()["phase"] == "Invalid"
        assert stage.condition("Valid") == ("False", "SpecNotAccepted")
        [valid] = [each for each in stage.status()["conditions"] if each["type"] == "Valid"]
        assert "spec.maxModelLen" in valid["message"]
        assert "spec.gpuCount" in valid["message"]
        [said] = stage.said("NotAccepted")
        assert "spec.maxModelLen" in said.message
        assert said.warning


async def test_a_model_that_is_mended_is_served() -> None:
    async with staged(model(maxModelLen=-1)) as stage:
        stage.change({"spec": {"maxModelLen": 1024}})
        await asyncio.sleep(5)
        assert stage.served.names == ["qwen"]
        assert stage.condition("Valid") == ("True", "SpecAccepted")


async def test_a_model_that_is_spoilt_goes_on_as_it_was() -> None:
    async with staged(model()) as stage:
        before = stage.args()
        stage.change({"spec": {"maxModelLen": -1}})
        await asyncio.sleep(5)
        assert stage.served.names == ["qwen"]
        assert stage.args() == before
        assert stage.condition("Valid") == ("False", "SpecNotAccepted")
        assert stage.status()["message"].startswith("its spec is not accepted; its earlier version is served: ")
        (await stage.lease()).release()


async def test_a_name_that_an_older_model_has_is_told() -> None:
    older = model("a", servedModelName="gpt")
    async with staged(older, model("b", servedModelName="gpt")) as stage:
        assert stage.condition("Clash", "a") == ("False", "NamesAreItsOwn")
        assert stage.condition("Clash", "b") == ("True", "NamesTaken")
        stage.change({"spec": {"servedModelName": "other"}}, "b")
        await asyncio.sleep(5)
        assert stage.condition("Clash", "b") == ("False", "NamesAreItsOwn")


# What others did to its workload.

_OTHER_ARGS: Json = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "args": ["--other"]}]}}}}


async def test_args_that_were_edited_are_put_back_at_once_while_it_sleeps() -> None:
    async with staged(model()) as stage:
        before = stage.args()
        stage.store.change(DEPLOYMENTS, "vllm-qwen", _OTHER_ARGS)
        await asyncio.sleep(5)
        assert stage.args() == before
        [said] = stage.said("DriftUndone")
        assert "spec.template.spec.containers" in said.message
        assert said.warning


async def test_args_that_were_edited_are_put_back_once_nobody_uses_it() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            before = stage.args()
            stage.store.change(DEPLOYMENTS, "vllm-qwen", _OTHER_ARGS)
            await asyncio.sleep(50)
            assert stage.args() == ["--other"]
            assert stage.condition("UpToDate") == ("False", "WaitsForIdle")
            assert stage.said("Drift")[0].count == 1
        await asyncio.sleep(50)
        assert stage.args() == before
        assert stage.condition("UpToDate") == ("True", "Applied")
        assert isinstance(stage.controller().target.phase, Ready)


@pytest.mark.parametrize("collection", [DEPLOYMENTS, SERVICES], ids=lambda collection: collection.kind)
async def test_what_was_deleted_is_made_again(collection: Collection) -> None:
    async with staged(model()) as stage:
        stage.store.remove(collection, "vllm-qwen")
        await asyncio.sleep(5)
        assert stage.deployment() is not None
        assert stage.service() is not None
        assert "was deleted by somebody else" in stage.said("DriftUndone")[0].message
        (await stage.lease()).release()


async def test_a_label_that_was_removed_is_put_back_and_nothing_is_restarted() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            template = stage.there()["spec"]["template"]
            stage.store.change(DEPLOYMENTS, "vllm-qwen", {"metadata": {"labels": {MANAGED_BY: None}}})
            await asyncio.sleep(5)
            assert stage.there()["metadata"]["labels"][MANAGED_BY] == "vllm-chill"
            assert stage.there()["spec"]["template"] == template
            assert stage.there()["spec"]["replicas"] == 1
            assert stage.served.names == ["qwen"]


async def test_replicas_set_by_others_are_no_drift() -> None:
    async with staged(model()) as stage:
        stage.store.change(DEPLOYMENTS, "vllm-qwen", {"spec": {"replicas": 1}})
        await asyncio.sleep(20)
        assert stage.there()["spec"]["replicas"] == 1
        assert stage.said("DriftUndone") == []
        assert isinstance(stage.controller().target.phase, Ready)


async def test_a_deployment_that_is_not_ours_is_never_touched() -> None:
    async with staged() as stage:
        theirs = {"metadata": {"name": "vllm-qwen"}, "spec": {"replicas": 3, "template": {}}}
        before = stage.store.create(DEPLOYMENTS, theirs)
        stage.store.create(MODELS, model())
        await asyncio.sleep(2000)
        assert stage.deployment() == before
        assert stage.served.names == []
        assert stage.status()["phase"] == "Failed"
        assert stage.condition("UpToDate") == ("False", "Conflict")
        assert "is not vllm-chill's" in stage.status()["message"]
        stage.store.remove(DEPLOYMENTS, "vllm-qwen")
        await asyncio.sleep(5)
        assert stage.served.names == ["qwen"]
        assert stage.there()["spec"]["replicas"] == 0


async def test_a_deployment_of_another_model_is_never_touched() -> None:
    owner = {"kind": "VLLMModel", "name": "other", "uid": "uid-x", "controller": True}
    labels = {MANAGED_BY: "vllm-chill"}
    async with staged(model("other")) as stage:
        theirs = {"metadata": {"name": "vllm-qwen", "labels": labels, "ownerReferences": [owner]}}
        stage.store.create(DEPLOYMENTS, {**theirs, "spec": {"replicas": 0, "template": {}}})
        stage.store.create(MODELS, model())
        await asyncio.sleep(5)
        assert stage.condition("UpToDate") == ("False", "Conflict")


# A changed spec.


async def test_a_changed_spec_is_applied_at_once_while_it_sleeps() -> None:
    async with staged(model()) as stage:
        stage.change({"spec": {"maxModelLen": 1024}})
        await asyncio.sleep(5)
        assert "1024" in stage.args()
        assert stage.there()["spec"]["replicas"] == 0
        assert isinstance(stage.controller().target.phase, Asleep)
        assert stage.condition("UpToDate") == ("True", "Applied")


async def test_a_changed_spec_waits_for_the_last_stream_and_is_awake_again_then() -> None:
    async with staged(model()) as stage:
        first, second = await stage.lease(), await stage.lease()
        stage.change({"spec": {"maxModelLen": 1024}})
        await asyncio.sleep(60)
        first.release()
        await asyncio.sleep(60)
        assert "1024" not in stage.args()
        assert stage.condition("UpToDate") == ("False", "WaitsForIdle")
        assert stage.there()["spec"]["replicas"] == 1
        second.release()
        await asyncio.sleep(30)
        assert "1024" in stage.args()
        assert stage.condition("UpToDate") == ("True", "Applied")
        assert isinstance(stage.controller().target.phase, Ready)


async def test_at_once_means_that_nobody_is_let_in_any_more() -> None:
    async with staged(model()) as stage:
        first = await stage.lease()
        stage.change({"spec": {"maxModelLen": 1024}, "metadata": {"annotations": {REPLACE: "now"}}})
        await asyncio.sleep(5)
        later = asyncio.create_task(stage.lease())
        await asyncio.sleep(5)
        assert not later.done()
        assert "1024" not in stage.args()
        first.release()
        with await later:
            assert "1024" in stage.args()


async def test_at_once_may_be_asked_for_afterwards() -> None:
    async with staged(model()) as stage:
        first = await stage.lease()
        stage.change({"spec": {"maxModelLen": 1024}})
        await asyncio.sleep(5)
        (await stage.lease()).release()
        stage.change({"metadata": {"annotations": {REPLACE: "now"}}})
        await asyncio.sleep(5)
        later = asyncio.create_task(stage.lease())
        await asyncio.sleep(5)
        assert not later.done()
        first.release()
        with await later:
            assert "1024" in stage.args()


async def test_what_is_wanted_last_is_what_it_gets() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            for length in (1024, 2048, 4096):
                stage.change({"spec": {"maxModelLen": length}})
                await asyncio.sleep(5)
        await asyncio.sleep(30)
        assert "4096" in stage.args()
        assert stage.said("Applied")[-1].count == 1


async def test_a_change_that_is_taken_back_is_forgotten() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            stage.change({"spec": {"maxModelLen": 1024}})
            await asyncio.sleep(5)
            stage.change({"spec": {"maxModelLen": None}})
            await asyncio.sleep(5)
            assert stage.condition("UpToDate") == ("True", "Applied")
            version = stage.there()["metadata"]["generation"]
        await asyncio.sleep(100)
        assert stage.there()["metadata"]["generation"] == version
        assert stage.controller().target.held_back is None
        assert isinstance(stage.controller().target.phase, Ready)


async def test_labels_and_annotations_of_the_object_restart_nothing() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            generation = stage.there()["metadata"]["generation"]
            stage.change({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}})
            await asyncio.sleep(50)
            assert stage.there()["metadata"]["generation"] == generation
            assert stage.condition("UpToDate") == ("True", "Applied")


async def test_a_change_of_how_it_is_scaled_alone_writes_no_workload() -> None:
    async with staged(model()) as stage:
        with await stage.lease():
            version = stage.there()["metadata"]["resourceVersion"]
            stage.change({"spec": {"idleTimeout": "1m"}})
            await asyncio.sleep(50)
            assert stage.there()["metadata"]["resourceVersion"] == version


async def test_a_scale_in_between_is_never_undone() -> None:
    async with staged(model()) as stage:
        stage.store.fail_next = [BackendConflict("it has been modified")]
        stage.store.change(DEPLOYMENTS, "vllm-qwen", {"metadata": {"labels": {MANAGED_BY: None}}})
        lease = asyncio.create_task(stage.lease())
        await asyncio.sleep(5)
        assert stage.there()["spec"]["replicas"] == 1
        assert stage.there()["metadata"]["labels"][MANAGED_BY] == "vllm-chill"
        assert stage.condition("UpToDate") == ("True", "Applied")
        (await lease).release()


async def test_a_write_that_is_refused_is_told_and_tried_again() -> None:
    async with staged(model()) as stage:
        stage.store.fail_applies = BackendRefused("no right")
        stage.change({"spec": {"maxModelLen": 1024}})
        await asyncio.sleep(2)
        assert stage.condition("UpToDate") == ("False", "NotApplied")
        assert stage.status()["message"] == "no right"
        stage.store.fail_applies = None
        await asyncio.sleep(2)
        assert stage.condition("UpToDate") == ("True", "Applied")
        assert "1024" in stage.args()


# A model goes.


async def test_a_model_that_is_deleted_asleep_takes_its_workload_along() -> None:
    async with staged(model()) as stage:
        stage.store.remove(MODELS, "qwen")
        await asyncio.sleep(5)
        assert stage.store.read(MODELS, "qwen") is None
        assert stage.deployment() is None
        assert stage.service() is None
        assert stage.served.names == []


async def test_a_model_that_is_deleted_in_use_is_waited_for_and_who_waits_is_told() -> None:
    async with staged(model()) as stage:
        lease = await stage.lease()
        stage.store.remove(MODELS, "qwen")
        await asyncio.sleep(50)
        assert stage.served.names == []
        assert stage.there()["spec"]["replicas"] == 1
        assert stage.status()["phase"] == "Deleting"
        with pytest.raises(ModelNotFound, match="was deleted"):
            await stage.lease()
        lease.release()
        await asyncio.sleep(5)
        assert stage.deployment() is None
        assert stage.store.read(MODELS, "qwen") is None


async def test_callers_that_wait_when_their_model_is_deleted_are_told() -> None:
    async with staged(model()) as stage:
        waiting = asyncio.create_task(stage.lease())
        await asyncio.sleep(1)
        stage.store.remove(MODELS, "qwen")
        with pytest.raises(ModelNotFound, match="was deleted"):
            await waiting
        await asyncio.sleep(5)
        assert stage.deployment() is None


async def test_requests_of_a_deleted_model_have_a_bound() -> None:
    async with staged(model()) as stage:
        lease = await stage.lease()
        stage.store.remove(MODELS, "qwen")
        await asyncio.sleep(GRACE_SECONDS - 5)
        assert stage.deployment() is not None
        await asyncio.sleep(10)
        assert stage.deployment() is None
        assert stage.store.read(MODELS, "qwen") is None
        lease.release()


async def test_a_model_that_was_deleted_while_the_proxy_was_away_is_seen_out() -> None:
    async with staged(model()) as stage:
        store = stage.store
        (await stage.lease()).release()
    store.remove(MODELS, "qwen")
    assert store.read(MODELS, "qwen") is not None
    async with staged(store=store) as stage:
        assert stage.served.names == []
        assert stage.deployment() is None
        assert store.read(MODELS, "qwen") is None


async def test_a_model_whose_workload_never_was_is_seen_out() -> None:
    async with staged() as stage:
        stage.store.create(MODELS, model(maxModelLen=-1) | {"metadata": {"name": "qwen", "finalizers": [FINALIZER]}})
        await asyncio.sleep(1)
        stage.store.remove(MODELS, "qwen")
        await asyncio.sleep(5)
        assert stage.store.read(MODELS, "qwen") is None


async def test_finalizers_of_others_stay() -> None:
    async with staged() as stage:
        stage.store.create(MODELS, model() | {"metadata": {"name": "qwen", "finalizers": ["example.com/other"]}})
        await asyncio.sleep(5)
        stage.store.remove(MODELS, "qwen")
        await asyncio.sleep(5)
        item = stage.store.read(MODELS, "qwen")
        assert item is not None
        assert item["metadata"]["finalizers"] == ["example.com/other"]
        assert stage.deployment() is None


async def test_a_workload_whose_model_is_gone_is_removed() -> None:
    async with staged(model("a"), model("b")) as stage:
        store = stage.store
    for name in ("a", "b"):
        store.change(MODELS, name, {"metadata": {"finalizers": None}})
    store.remove(MODELS, "a")
    async with staged(store=store) as stage:
        assert stage.deployment("a") is None
        assert stage.service("a") is None
        assert stage.deployment("b") is not None


async def test_a_workload_that_only_looks_like_ours_is_left_alone() -> None:
    async with staged() as stage:
        stage.store.create(DEPLOYMENTS, {"metadata": {"name": "vllm-chill", "labels": {MANAGED_BY: "vllm-chill"}}})
        stage.store.create(DEPLOYMENTS, {"metadata": {"name": "vllm-x", "labels": {MANAGED_BY: "helm"}}})
        await asyncio.sleep(1000)
        assert stage.store.read(DEPLOYMENTS, "vllm-chill") is not None
        assert stage.store.read(DEPLOYMENTS, "vllm-x") is not None


async def test_another_model_under_the_same_name_is_another_model() -> None:
    async with staged(model()) as stage:
        stage.change({"metadata": {"finalizers": None}})
        await asyncio.sleep(0)
        stage.store.remove(MODELS, "qwen")
        stage.store.create(MODELS, model(maxModelLen=2048))
        await asyncio.sleep(20)
        assert [] in [list(told) for told in stage.served.told]
        assert stage.served.names == ["qwen"]
        assert "2048" in stage.args()


# What cannot be seen.


async def test_models_that_cannot_be_seen_are_told_and_go_on_being_served() -> None:
    async with staged(model()) as stage:
        stage.store.lose(MODELS, "it is away")
        assert stage.served.losses == ["it is away"]
        told = len(stage.served.told)
        (await stage.lease()).release()
        assert len(stage.served.told) == told
        assert stage.served.names == ["qwen"]
        stage.store.find(MODELS)
        assert len(stage.served.told) == told + 1
        assert stage.served.names == ["qwen"]


async def test_services_that_cannot_be_seen_keep_no_model_from_being_served() -> None:
    store = MemoryObjects()
    store.lose(SERVICES, "no right to list services")
    store.lose(DEPLOYMENTS, "no right to list deployments")
    async with staged(model(), store=store) as stage:
        assert stage.served.told == []
        assert stage.served.losses == ["no right to list deployments"]
        store.find(DEPLOYMENTS)
        (await stage.lease()).release()


async def test_after_a_restart_nothing_is_written() -> None:
    async with staged(model()) as stage:
        store = stage.store
        lease = await stage.lease()
        await asyncio.sleep(5)
        before = (stage.there(), stage.service(), store.read(MODELS, "qwen"))
    del lease
    store.writes.clear()
    async with staged(store=store) as stage:
        await asyncio.sleep(5)
        assert (stage.there(), stage.service()) == before[:2]
        assert {what for what, _ in store.writes} <= {"status"}
        assert isinstance(stage.controller().target.phase, Ready)
        assert stage.said("DriftUndone") == stage.said("Applied") == []


async def test_a_visit_without_news_costs_no_call() -> None:
    async with staged(model()) as stage:
        reads = stage.store.reads
        for number in range(5):
            stage.store.change(DEPLOYMENTS, "vllm-qwen", {"status": {"observedGeneration": number}})
            await asyncio.sleep(1)
        assert stage.store.reads == reads


async def test_what_ran_before_the_proxy_is_not_replaced_while_the_one_before_may_be_answering() -> None:
    async with staged(model()) as stage:
        store = stage.store
        await stage.lease()
    store.change(MODELS, "qwen", {"spec": {"maxModelLen": 1024}})
    async with staged(store=store) as stage:
        await asyncio.sleep(GRACE_SECONDS - 10)
        assert stage.condition("UpToDate") == ("False", "WaitsForIdle")
        assert "1024" not in stage.args()
        await asyncio.sleep(50)
        assert stage.condition("UpToDate") == ("True", "Applied")
        assert "1024" in stage.args()


async def test_what_nobody_can_serve_any_more_gives_its_gpus_back() -> None:
    async with staged(model()) as stage:
        store = stage.store
        await stage.lease()
    store.change(MODELS, "qwen", {"spec": {"maxModelLen": -1}})
    async with staged(store=store) as stage:
        await asyncio.sleep(GRACE_SECONDS - 10)
        assert stage.served.names == []
        assert stage.there()["spec"]["replicas"] == 1
        await asyncio.sleep(20)
        assert stage.there()["spec"]["replicas"] == 0
        assert "no earlier one is known" in stage.said("PutToSleep")[0].message
        assert stage.status()["phase"] == "Invalid"
