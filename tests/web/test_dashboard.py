"""The dashboard as text: what it is made of, and that nothing but itself can run in it. tests/browser looks at it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.scenarios.stage import stage
from vllm_chill.api.status import PhaseName
from vllm_chill.core.access import Operators, Readers
from vllm_chill.core.cold_start import STAGE_NAMES, STAGE_WORDS
from vllm_chill.core.keys import Keys
from vllm_chill.core.target import Asleep
from vllm_chill.proxy.gate import Gate
from vllm_chill.web import dashboard
from vllm_chill.web.doorkeeper import Doorkeeper

PAGE = dashboard.read()


def content(tag: str) -> str:
    [found] = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return str(found)


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def test_it_is_one_page_that_wakes_nothing_and_runs_nothing_but_itself() -> None:
    async with stage() as s:
        async with s.session.get(s.url + "/proxy/?a=b", headers={"Accept": "*/*"}) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert await response.text() == PAGE
            policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == hashed(content("script"))
        assert policy["style-src"] == hashed(content("style"))
        assert policy["connect-src"] == "'self'"
        assert s.phase_is(Asleep)
        assert not s.backend.writes
        assert not s.hits


@pytest.mark.parametrize("target", ["/proxy", "/proxy?a=b"])
async def test_without_the_slash_it_is_led_to_wherever_it_is_behind_a_prefix(target: str) -> None:
    async with stage() as s, s.session.get(s.url + target, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (308, "proxy/")
    async with stage() as s, s.session.get(s.url + target) as response:
        assert (response.status, str(response.url)) == (200, s.url + "/proxy/")


async def test_other_methods_are_not_taken() -> None:
    async with stage() as s:
        status, body = await s.post("/proxy/")
        assert (status, body["error"]["message"]) == (405, "/proxy/ takes GET or HEAD, not POST.")


async def test_whoever_has_no_key_gets_the_page_that_asks_for_one_and_nothing_else() -> None:
    gate = Gate(Keys(), asyncio.get_running_loop().time)
    doors = Doorkeeper(gate, operators=Operators.KEYS, status=Readers.ADMIN, metrics=Readers.ADMIN)
    async with stage(doorkeeper=doors) as s:
        async with s.session.get(s.url + "/proxy/") as response:
            assert (response.status, await response.text()) == (200, PAGE)
        for path in ("status", "events", "requests", "starts"):
            assert (await s.get(f"/proxy/{path}"))[0] == 401
        assert (await s.post("/proxy/operations/cancel", json={"id": "1"}))[0] == 401


def test_nothing_in_it_is_from_elsewhere_or_runs_by_being_there() -> None:
    assert not re.findall(r"(?:src|href)=\"(?!data:,)[^\"]*\"|url\((?!\))|@import|https?:|//[a-z]", PAGE)
    assert not re.findall(r"<[a-z][^>]*\s(?:on\w+|style)=", PAGE)
    script = content("script")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'setAttribute("on',
    ):
        assert word not in script


def of_script(name: str) -> dict[str, str]:
    [found] = re.findall(rf"const {name} = \{{(.*?)\}};", content("script"), re.DOTALL)
    return dict(re.findall(r'(\w+): "([^"]*)"', found))


def test_its_words_are_those_of_everywhere() -> None:
    assert of_script("STAGES") == {name: STAGE_WORDS[stage] for stage, name in STAGE_NAMES.items()}
    assert set(of_script("PHASES")) == set(get_args(PhaseName))


def test_each_stage_has_a_colour_in_the_light_and_in_the_dark() -> None:
    for name in STAGE_NAMES.values():
        assert len(re.findall(rf"--{name}: #", content("style"))) == 2


def test_each_part_is_in_its_place() -> None:
    assert not re.findall(r"/\* \w+\.\w+ \*/", PAGE)
    for file in Path(dashboard.__file__).with_name("dashboard_page").iterdir():
        assert file.name == "page.html" or file.read_text() in PAGE
    assert len(re.findall(r"<script>", PAGE)) == len(re.findall(r"<style>", PAGE)) == 1
    ids = re.findall(r'\sid="([^"]+)"', PAGE)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'at\("([a-z-]+)"\)', content("script"))) <= set(ids)
