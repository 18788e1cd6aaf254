"""One door and several models behind it: status, readiness, lists, metrics and pages."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from msgspec import convert

from tests.web.several import TWO, Several, entry, several
from vllm_chill.api.status import ProxyStatus
from vllm_chill.core.catalogue import Catalogue
from vllm_chill.core.target import Asleep, Ready, Waking
from vllm_chill.core.target import Target as CoreTarget

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "User-Agent": "Mozilla/5.0"}


def title(page: str) -> str:
    [text] = re.findall(r"<h1[^>]*>(.*?)</h1>", page)
    return str(text)


def writes(s: Several) -> list[int]:
    return [write for backend in s.backends.values() for write in backend.writes]


class TestStatus:
    async def test_every_target_is_there_with_its_model(self) -> None:
        async with several(awake=["b"], default="alpha") as s:
            s.fleet.waiting = {"a": ("b",)}
            status = convert((await s.get("/proxy/status"))[1], ProxyStatus)
            a, b = status.targets
            assert (a.target, a.model, a.group, a.phase) == ("test/vllm-a", "a", "gpu", "asleep")
            assert (a.served_names, a.waits_for) == (["org/a", "alpha", "a-sql"], ["b"])
            assert (b.model, b.phase, b.waits_for) == ("b", "ready", [])
            assert (status.default_model, status.trouble) == ("org/a", None)

    async def test_it_tells_why_the_models_are_not_known(self) -> None:
        async with several(read=False) as s:
            status = convert((await s.get("/proxy/status"))[1], ProxyStatus)
            assert (status.targets, status.trouble) == ([], "it has not been read yet")


class TestReadiness:
    async def test_it_is_not_ready_before_the_catalogue_is_read(self) -> None:
        async with several(read=False) as s:
            assert await s.get("/readyz") == (503, "not ready: the models are not known: it has not been read yet\n")

    async def test_a_catalogue_without_a_model_has_been_read(self) -> None:
        async with several([]) as s:
            assert await s.get("/readyz") == (200, "ready\n")

    async def test_a_catalogue_that_was_read_stays_good(self) -> None:
        async with several() as s:
            s.directory.trouble = "the API server is away"
            assert (await s.get("/readyz"))[0] == 200
            assert (await s.get("/v1/models"))[0] == 200

    async def test_it_is_not_ready_while_one_target_is_not_known(self) -> None:
        async with several() as s:
            assert (await s.get("/readyz"))[0] == 200
            controller = s.controller("b")
            controller._target = CoreTarget(controller.target.ref)
            controller.lost("the API server is away")
            status, text = await s.get("/readyz")
            assert (status, text) == (503, "not ready: the state of b is not known: the API server is away\n")


class TestModels:
    async def test_all_names_are_listed_as_vllm_lists_them_with_how_their_model_is(self) -> None:
        async with several(awake=["b"]) as s:
            status, body = await s.get("/v1/models")
            assert (status, body["object"]) == (200, "list")
            served, alias, adapter, other = body["data"]
            assert served == {
                "id": "org/a",
                "object": "model",
                "created": 1769860800,
                "owned_by": "vllm-chill",
                "root": "weights/a",
                "parent": None,
                "max_model_len": 4096,
                "vllm_chill": {"state": "asleep", "eta_seconds": None},
            }
            assert alias == served | {"id": "alpha"}
            assert (adapter["id"], adapter["root"], adapter["parent"]) == ("a-sql", "/adapters/sql", "org/a")
            assert "max_model_len" not in adapter
            assert (other["id"], other["vllm_chill"]["state"]) == ("org/b", "ready")
            assert s.hits == []

    async def test_what_an_engine_listed_is_kept(self) -> None:
        async with several() as s:
            served = s.directory.find("a")
            assert served is not None
            served.knowledge.listed(b'{"data": [{"id": "org/a", "owned_by": "vllm", "max_model_len": 256, "x": 1}]}')
            cards = {card["id"]: card for card in (await s.get("/v1/models"))[1]["data"]}
            for name in ("org/a", "alpha"):
                card = cards[name]
                assert (card["owned_by"], card["max_model_len"], card["x"]) == ("vllm", 256, 1)
            assert cards["a-sql"]["owned_by"] == "vllm-chill"

    @pytest.mark.parametrize("name", ["org/a", "org%2Fa", "alpha", "a-sql", "a"])
    async def test_one_is_told_by_each_of_its_names(self, name: str) -> None:
        async with several() as s:
            status, body = await s.get(f"/v1/models/{name}")
            assert (status, body["id"]) == (200, name.replace("%2F", "/"))
            assert body["vllm_chill"]["state"] == "asleep"

    async def test_one_that_nobody_has_is_404_with_those_there_are(self) -> None:
        async with several() as s:
            status, body = await s.get("/v1/models/c")
            assert (status, body["error"]["code"]) == (404, "model_not_found")
            assert "known: org/a, org/b" in body["error"]["message"]

    async def test_a_name_is_listed_once_and_for_whom_it_leads_to(self) -> None:
        first = entry("first", created="1")
        second = entry("second", aliases=("org/first",), created="2")
        async with several([first, second]) as s:
            data = (await s.get("/v1/models"))[1]["data"]
            assert [(card["id"], card["root"]) for card in data] == [
                ("org/first", "weights/first"),
                ("org/second", "weights/second"),
            ]

    async def test_a_model_that_is_gone_is_no_longer_listed(self) -> None:
        async with several() as s:
            [b] = [served for served in s.directory if served.name == "b"]
            s.directory.replace(Catalogue(TWO[1:]), [b])
            assert [card["id"] for card in (await s.get("/v1/models"))[1]["data"]] == ["org/b"]


class TestTheEnginesOwnPages:
    async def test_metrics_are_those_of_the_model_that_is_named(self) -> None:
        async with several(awake=["a", "b"]) as s:
            assert (await s.get("/metrics?model=org/b"))[1]["engine"] == "b"
            assert (await s.get("/metrics?model=alpha"))[1]["engine"] == "a"
            assert (await s.get("/metrics?model=c"))[0] == 404
            status, text = await s.get("/metrics")
            assert status == 200
            assert text == (
                "# Several models are served here: ask for the metrics of one with ?model=NAME (org/a, org/b).\n"
            )

    async def test_or_those_of_the_default_and_asleep_it_stays_asleep(self) -> None:
        async with several(awake=["b"], default="b") as s:
            assert (await s.get("/metrics"))[1]["engine"] == "b"
            status, text = await s.get("/metrics?model=a")
            assert (status, text) == (
                200,
                "# a is asleep: vLLM has no metrics now, and this scrape does not wake it.\n",
            )
            assert writes(s) == []

    async def test_any_other_path_goes_to_the_one_that_is_named(self) -> None:
        async with several(awake=["b"]) as s:
            assert (await s.get("/version?model=b"))[1]["engine"] == "b"
            status, body = await s.get("/version")
            assert (status, body["error"]["code"]) == (404, "not_found")
            assert "?model=NAME: org/a, org/b" in body["error"]["message"]
            status, body = await s.get("/version?model=a")
            assert (status, body["error"]["message"].startswith("a is not awake")) == (404, True)
            assert (await s.get("/version?model=c"))[1]["error"]["code"] == "model_not_found"

    async def test_a_preflight_may_go_on(self) -> None:
        async with several() as s:
            assert (await s.ask("OPTIONS", "/v1/chat/completions"))[0] == 204
            assert (await s.ask("OPTIONS", "/v1/chat/completions?model=c"))[0] == 204

    async def test_a_health_checker_is_answered_by_the_proxy(self) -> None:
        async with several() as s:
            headers = {"User-Agent": "kube-probe/1.33"}
            assert await s.get("/", headers=headers) == (200, "ready\n")
            assert await s.post("/v1/completions", headers=headers) == (200, "ready\n")
            assert writes(s) == []


class TestOwnMetrics:
    async def test_each_target_has_its_own(self) -> None:
        async with several(awake=["b"]) as s:
            _, text = await s.get("/proxy/metrics")
            assert 'vllm_chill_vllm_state{target="test/vllm-a"} 0.0' in text
            assert 'vllm_chill_vllm_state{target="test/vllm-b"} 2.0' in text
            assert 'vllm_chill_current_model{model_name="org/b"} 1.0' in text


async def browse(s: Several, path: str, **headers: str) -> tuple[int, str]:
    status, page = await s.get(path, headers=BROWSER | headers, allow_redirects=False)
    return status, page if isinstance(page, str) else str(page)


class TestPages:
    async def test_a_path_that_wakes_has_the_page_of_the_model_that_is_named_and_wakes_it(self) -> None:
        async with several(start=60, wake_paths="/*", default="a") as s:
            status, page = await browse(s, "/ui?model=org/b")
            assert (status, title(page)) == (503, "Waking up")
            assert "org/b (b)" in page
            assert s.phase_is("b", Waking)
            assert s.phase_is("a", Asleep)
            [where] = re.findall(r'data-status="([^"]*)"', page)
            assert html.unescape(where) == "/proxy/status?view=page&model=org%2Fb"
            assert (await s.get(html.unescape(where)))[1]["phase"] == "waking"

    async def test_or_that_of_the_default(self) -> None:
        async with several(start=60, wake_paths="/*", default="a") as s:
            assert "org/a, alpha, a-sql (a)" in (await browse(s, "/ui"))[1]
            assert s.phase_is("a", Waking)

    async def test_it_is_let_in_once_the_model_is_ready(self) -> None:
        async with several(start=0.01, wake_paths="/*", default="a") as s:
            await browse(s, "/ui")
            await s.until("a", Ready)
            assert (await s.get("/ui", headers=BROWSER))[1]["engine"] == "a"

    @pytest.mark.parametrize(("wake_paths", "status"), [("/*", 400), ("default", 404)])
    async def test_where_none_is_told_all_are_shown_and_none_is_woken(self, wake_paths: str, status: int) -> None:
        async with several(awake=["b"], wake_paths=wake_paths) as s:
            async with s.session.get(s.url + "/ui", headers=BROWSER) as response:
                page = await response.text()
                assert (response.status, title(page)) == (status, "Models")
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                assert "Retry-After" not in response.headers
            assert re.findall(r"<b>(.*?)</b><span class=\"state\">(.*?)</span>", page) == [
                ("org/a", "asleep"),
                ("org/b", "ready"),
            ]
            assert [" hidden" in row for row in re.findall(r"<button.*?>", page)] == [False, True]
            assert writes(s) == []
            [action] = re.findall(r'action="([^"]*org%2Fa)"', page)
            headers = BROWSER | {"Referer": s.url + "/ui"}
            status, _ = await s.post(html.unescape(action), headers=headers, allow_redirects=False)
            assert status == 303
            assert not s.phase_is("a", Asleep)

    async def test_several_replicas_are_told_and_how_many_are_ready(self) -> None:
        async with several(awake=["a", "b"]) as s:
            await s.until("b", Ready)
            s.backends["a"].set_replicas(3)
            s.backends["b"].set_replicas(2)
            s.backends["b"].unready()
            states = re.findall(r"<span class=\"state\">(.*?)</span>", (await browse(s, "/ui"))[1])
            assert states == ["ready, 3 replicas", "waking, 0 of 2 replicas ready"]

    async def test_a_name_that_nobody_has_is_told_as_to_a_program(self) -> None:
        async with several() as s:
            assert (await s.get("/ui?model=c", headers=BROWSER))[1]["error"]["code"] == "model_not_found"
            assert (await s.get("/proxy/status?view=page&model=c"))[0] == 404

    async def test_the_page_says_why_no_model_is_known(self) -> None:
        async with several(read=False) as s:
            s.directory.trouble = "<b>away</b>"
            status, page = await browse(s, "/ui")
            assert (status, "&lt;b&gt;away&lt;/b&gt;" in page) == (503, True)

    async def test_names_get_into_it_as_text(self) -> None:
        bad = '"><script>alert(1)</script>'
        async with several([entry("a"), type(TWO[0])(bad, TWO[0].ref, served=bad, model="m")]) as s:
            _, page = await browse(s, "/ui")
            assert page.count("<script>") == 1
            assert html.escape(bad) in page

    async def test_programs_are_answered_as_ever(self) -> None:
        async with several() as s:
            status, body = await s.get("/ui")
            assert (status, body["error"]["code"]) == (404, "not_found")


async def test_what_the_list_of_models_has_for_its_policy_is_what_is_in_it() -> None:
    from tests.web.test_waiting_page import hashes_of
    from vllm_chill.web import models_page

    page: Any = models_page._TEMPLATE.substitute(wakes="no", lead="", models="")
    policy = models_page._HEADERS["Content-Security-Policy"]
    for tag, digest in hashes_of(page).items():
        assert f"{tag}-src 'sha256-{digest}'" in policy
