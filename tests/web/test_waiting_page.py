"""The page as text: whom it is for, what it says of each phase, and what cannot get into it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from aiohttp import hdrs
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.cold_start import ColdStart, describe
from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.starts import Starts
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Failed,
    Limits,
    Phase,
    Progress,
    Ready,
    SleepReason,
    Stage,
    Target,
    TargetRef,
    Unknown,
    Waking,
)
from vllm_chill.web.waiting_page import _HEADERS, Told, prefers_html, rendered, told

CHROME = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
NOW = 1000.0
PAST = PastStarts.parse('{"version":1,"whole":60.0,"stages":{"starting":[20.0,1.0],"loading":[40.0,1.0]}}')


def target(phase: Phase, waiting: int = 0) -> Target:
    return Target(TargetRef("ns", "vllm"), phase, waiting=waiting)


def waking(progress: Progress, past: PastStarts = PAST, began: float = NOW - 30) -> Starts:
    return Starts(current=ColdStart.begun(began).moved(progress, NOW - 10), past=past)


class TestWhomItIsFor:
    @pytest.mark.parametrize(
        "accept",
        [
            pytest.param(CHROME, id="Chrome"),
            pytest.param("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", id="Firefox and Safari"),
            pytest.param("text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01", id="Lynx"),
            pytest.param("text/html", id="curl -H 'Accept: text/html'"),
            pytest.param("Text/HTML; charset=utf-8", id="in another spelling"),
            pytest.param("application/json;q=0.5, text/html", id="JSON if need be"),
        ],
    )
    def test_html_is_wanted(self, accept: str) -> None:
        assert prefers_html(accept)

    @pytest.mark.parametrize(
        "accept",
        [
            pytest.param("*/*", id="curl, requests, httpx"),
            pytest.param("application/json", id="the OpenAI SDK"),
            pytest.param("application/json, text/plain, */*", id="axios"),
            pytest.param("application/json, text/html", id="JSON first"),
            pytest.param("text/html;q=0.5, application/json", id="JSON rather"),
            pytest.param("text/event-stream", id="a stream of events"),
            pytest.param("text/html;q=0", id="all but HTML"),
            pytest.param("text/html;q=x", id="no quality"),
            pytest.param("text/*", id="any text"),
            pytest.param("image/avif,image/webp,*/*;q=0.8", id="a browser for a picture"),
            pytest.param("", id="nothing"),
        ],
    )
    def test_html_is_not_wanted(self, accept: str) -> None:
        assert not prefers_html(accept)

    @given(st.text(max_size=100))
    def test_nothing_in_the_field_is_too_much(self, accept: str) -> None:
        if prefers_html(accept):
            assert "text/html" in accept.lower()


class TestWhatItSays:
    def test_waking_has_its_stage_and_the_time_that_is_left_in_the_words_of_everywhere(self) -> None:
        starts = waking(Progress(Stage.LOADING))
        said = told(target(Waking(NOW - 30, confirmed=True), waiting=3), starts, NOW)
        assert said == Told(
            "waking",
            "Waking up",
            "Loading the model",
            left="about 30s left",
            elapsed="30s so far",
            waiting="3 requests wait",
            progress=0.5,
        )
        assert starts.current is not None
        everywhere = describe(starts.current, NOW, starts.eta(NOW))
        assert everywhere == f"waking: {said.doing[0].lower()}{said.doing[1:]}, {said.left}"

    def test_a_first_start_has_no_time_left(self) -> None:
        starts = waking(Progress(Stage.SCHEDULING, "3 Insufficient nvidia.com/gpu"), PastStarts())
        said = told(target(Waking(NOW - 30, confirmed=True), waiting=1), starts, NOW)
        assert said.doing == "Waiting for a node (3 Insufficient nvidia.com/gpu)"
        assert (said.left, said.elapsed, said.waiting, said.progress) == ("", "30s so far", "1 request waits", None)

    def test_waking_has_the_last_trouble(self) -> None:
        phase = Waking(NOW, confirmed=True, trouble="the API server is away")
        said = told(target(phase), waking(Progress(Stage.REQUESTED)), NOW)
        assert said.cause == "The last trouble was: the API server is away"

    def test_a_start_that_has_just_begun_is_at_its_beginning(self) -> None:
        starts = Starts(current=ColdStart.begun(NOW), past=PastStarts.parse('{"version":1,"whole":0.0,"stages":{}}'))
        assert told(target(Waking(NOW, confirmed=False)), starts, NOW).progress == 0

    def test_asleep_says_how_long_a_start_takes(self) -> None:
        said = told(target(Asleep(NOW)), Starts(past=PAST), NOW)
        assert said.doing.endswith("A start takes about 1m.")
        assert said.action == "Wake it"
        assert "A start" not in told(target(Asleep(NOW)), Starts(), NOW).doing

    def test_failed_says_why_and_when_it_can_be_tried_again(self) -> None:
        failed = target(Failed(NOW - 1, "no such image", NOW + 4, confirmed=True))
        said = told(failed, Starts(), NOW)
        assert (said.cause, said.doing) == ("no such image", "It can be tried again in 4s.")
        assert said.action == ""
        assert told(failed, Starts(), NOW + 3.9).doing == "It can be tried again in 1s."
        later = told(failed, Starts(), NOW + 4)
        assert (later.doing, later.action) == ("It can be tried again.", "Try again")

    def test_a_long_cause_keeps_its_beginning_and_its_end(self) -> None:
        cause = "it ended with status 1; its last output was: " + "x" * 4000 + "\nOutOfMemoryError"
        said = told(target(Failed(NOW, cause, NOW, confirmed=True)), Starts(), NOW)
        assert said.cause.startswith("it ended with status 1")
        assert said.cause.endswith("OutOfMemoryError")
        assert len(said.cause) < 1000

    def test_draining_says_whether_it_is_woken_again(self) -> None:
        draining = Draining(NOW, SleepReason.STOPPED, confirmed=True)
        assert told(target(draining), Starts(), NOW).action == "Wake it"
        said = told(target(draining, waiting=1), Starts(), NOW)
        assert (said.action, said.doing) == ("", "It is woken again once it is down.")

    def test_the_rest_has_no_button(self) -> None:
        assert told(target(Unknown("away")), Starts(), NOW).cause == "away"
        assert told(target(Unknown()), Starts(), NOW).action == ""
        assert told(target(Ready(NOW, NOW)), Starts(), NOW).action == ""


class Seen(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hashes_of(page: str) -> dict[str, str]:
    """What a policy has to say of the style and of the script in a page."""
    hashes = {}
    for tag in ("style", "script"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return hashes


def page_with(text: str, *, wakes: bool = False) -> str:
    said = Told("failed", "Could not be woken", text, text, text, text, text, None, "Try again")
    return rendered(said, text, text, wakes=wakes)


class TestWhatCannotGetIntoIt:
    @settings(deadline=None)
    @given(st.text(min_size=1, max_size=200), st.booleans())
    def test_no_text_changes_the_page(self, text: str, wakes: bool) -> None:
        assert Seen(page_with(text, wakes=wakes)).elements == Seen(page_with("plain", wakes=wakes)).elements

    @pytest.mark.parametrize(
        "text", ["<script>alert(1)</script>", '" onload="x', "'><img src=x>", "</pre>&lt;", "</script><b>", "$title"]
    )
    def test_it_is_shown_as_it_is(self, text: str) -> None:
        seen = Seen(page_with(text))
        assert seen.elements == Seen(page_with("plain")).elements
        assert "".join(seen.text).count(text) == 7

    def test_the_policy_lets_the_pages_own_style_and_script_in_and_nothing_else(self) -> None:
        policy = dict(rule.strip().split(" ", 1) for rule in _HEADERS["Content-Security-Policy"].split(";"))
        page = page_with("x")
        for tag, digest in hashes_of(page).items():
            assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
        assert (policy["default-src"], policy["base-uri"], policy["connect-src"]) == ("'none'", "'none'", "'self'")
        assert not re.search(r"""\sstyle=|\son[a-z]+=|(?:src|href)="(?!"|data:,")|@import|url\(|://""", page)
        assert _HEADERS[hdrs.CACHE_CONTROL] == "no-store"

    def test_it_is_small_whatever_is_in_it(self) -> None:
        for character, most in (("x", 8_000), ('"', 16_000)):
            failed = target(Failed(NOW, character * 100_000, NOW, confirmed=True))
            page = rendered(told(failed, Starts(), NOW), character * 160, character * 300, wakes=True)
            assert len(page.encode()) < most


class TestHowItLooksAgain:
    @pytest.mark.parametrize(("phase", "wakes"), [("waking", True), ("failed", False), ("asleep", False)])
    def test_by_itself_without_a_script(self, phase: str, wakes: bool) -> None:
        page = rendered(Told(phase, "x", "x"), "x", "x", wakes=wakes)  # type: ignore[arg-type]
        assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in page

    @pytest.mark.parametrize("phase", ["failed", "asleep"])
    def test_not_by_itself_where_that_would_be_another_try(self, phase: str) -> None:
        page = rendered(Told(phase, "x", "x"), "x", "x", wakes=True)  # type: ignore[arg-type]
        assert "http-equiv" not in page
        assert '<a href="">Look again</a>' in page

    def test_less_than_the_first_pause_passes_in_between(self) -> None:
        [seconds] = re.findall(r'"refresh" content="(\d+)"', rendered(Told("waking", "", ""), "", "", wakes=True))
        assert int(seconds) < Limits(1, 1).retry_first_seconds
