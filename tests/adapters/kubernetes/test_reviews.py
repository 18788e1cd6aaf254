"""Who may read what is ours, as an API server says it, and for how long that counts."""

from __future__ import annotations

import asyncio
import secrets
import traceback

import pytest

from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.reviews import KubernetesReviews
from vllm_chill.core.access import Denied, Granted, Unauthenticated
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable

USER = {"username": "system:serviceaccount:a:b", "uid": "u", "groups": ["g"], "extra": {"k": ["v"]}}
KNOWN: tuple[int, Json] = (201, {"status": {"authenticated": True, "user": USER}})
UNKNOWN: tuple[int, Json] = (201, {"status": {"authenticated": False, "error": "[invalid bearer token]"}})
ALLOWED: tuple[int, Json] = (201, {"status": {"allowed": True}})
NOT_ALLOWED: tuple[int, Json] = (201, {"status": {"allowed": False, "reason": "no"}})
PATH = "/metrics"


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def reviews(api: ApiClient, clock: Clock) -> KubernetesReviews:
    return KubernetesReviews(api, now=clock)


async def test_whose_token_it_is_is_asked_first_and_then_what_they_may(
    server: StubApi, reviews: KubernetesReviews
) -> None:
    server.refusals = [KNOWN, ALLOWED]
    assert await reviews.may("the-token", "get", PATH) == Granted()
    who, what = server.requests
    assert who.path == "/apis/authentication.k8s.io/v1/tokenreviews"
    assert (await who.json())["spec"] == {"token": "the-token"}
    assert what.path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    assert (await what.json())["spec"] == {
        "user": "system:serviceaccount:a:b",
        "uid": "u",
        "groups": ["g"],
        "extra": {"k": ["v"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


async def test_a_token_of_nobody_is_not_asked_for_rights(server: StubApi, reviews: KubernetesReviews) -> None:
    server.refusals = [UNKNOWN]
    assert await reviews.may("t", "get", PATH) == Unauthenticated()
    assert len(server.requests) == 1


async def test_whoever_may_not_is_named(server: StubApi, reviews: KubernetesReviews) -> None:
    server.refusals = [KNOWN, NOT_ALLOWED]
    assert await reviews.may("t", "get", PATH) == Denied("system:serviceaccount:a:b")


async def test_an_answer_counts_for_a_while_and_a_refusal_for_less(
    server: StubApi, reviews: KubernetesReviews, clock: Clock
) -> None:
    server.refusals = [KNOWN, ALLOWED, KNOWN, NOT_ALLOWED]
    for clock.time in (100.0, 105.0, 109.9):
        assert await reviews.may("may", "get", PATH) == Granted()
        assert isinstance(await reviews.may("may-not", "get", PATH), Denied)
    assert len(server.requests) == 4
    clock.time = 110.0
    server.refusals = [KNOWN, ALLOWED]
    assert await reviews.may("may-not", "get", PATH) == Granted(), "the right was granted meanwhile"
    assert await reviews.may("may", "get", PATH) == Granted()
    assert len(server.requests) == 6
    clock.time = 160.0
    server.refusals = [UNKNOWN]
    assert await reviews.may("may", "get", PATH) == Unauthenticated(), "the token has expired meanwhile"


async def test_an_answer_is_for_one_token_and_one_path(server: StubApi, reviews: KubernetesReviews) -> None:
    server.refusals = [KNOWN, ALLOWED, UNKNOWN, KNOWN, NOT_ALLOWED]
    assert await reviews.may("a", "get", PATH) == Granted()
    assert await reviews.may("b", "get", PATH) == Unauthenticated()
    assert isinstance(await reviews.may("a", "get", "/other"), Denied)


async def test_many_that_ask_with_one_token_are_few_questions(server: StubApi, reviews: KubernetesReviews) -> None:
    server.refusals = [KNOWN, KNOWN, KNOWN, KNOWN, ALLOWED, ALLOWED, ALLOWED, ALLOWED]
    server.delay = 0.02
    assert await asyncio.gather(*(reviews.may("t", "get", PATH) for _ in range(50))) == [Granted()] * 50
    assert len(server.requests) <= 8


async def test_tokens_made_up_do_not_push_out_whoever_may_read(server: StubApi, reviews: KubernetesReviews) -> None:
    server.refusals = [KNOWN, ALLOWED]
    await reviews.may("may", "get", PATH)
    server.refusals = [UNKNOWN] * 300
    await asyncio.gather(*(reviews.may(f"made-up-{i}", "get", PATH) for i in range(300)))
    before = len(server.requests)
    assert await reviews.may("may", "get", PATH) == Granted()
    assert len(server.requests) == before


async def test_only_so_many_answers_are_kept_and_the_oldest_goes_first(
    server: StubApi, reviews: KubernetesReviews
) -> None:
    server.refusals = [UNKNOWN] * 257
    for i in range(257):
        await reviews.may(f"{i}", "get", PATH)
    await reviews.may("1", "get", PATH)
    assert len(server.requests) == 257
    server.refusals = [KNOWN, ALLOWED]
    assert await reviews.may("0", "get", PATH) == Granted()


async def test_a_token_too_long_to_be_one_is_not_sent(server: StubApi, reviews: KubernetesReviews) -> None:
    assert await reviews.may("x" * 16385, "get", PATH) == Unauthenticated()
    assert not server.requests


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            403,
            BackendRefused,
            r"does not answer tokenreviews of authentication.k8s.io \(403\): .*; grant \"create\" on",
        ),
        (404, BackendRefused, r"does not answer tokenreviews of authentication.k8s.io \(404\)"),
        (429, BackendUnavailable, r"does not answer tokenreviews of authentication.k8s.io \(429\)"),
        (500, BackendUnavailable, r"does not answer tokenreviews of authentication.k8s.io \(500\)"),
    ],
)
async def test_a_question_that_is_refused_is_asked_again_and_never_has_the_token_in_it(
    server: StubApi, reviews: KubernetesReviews, code: int, kind: type[BackendError], message: str
) -> None:
    token = secrets.token_hex(16)
    server.refusals = [(code, status(code, f"cannot take {token}."))]
    with pytest.raises(kind, match=message) as raised:
        await reviews.may(token, "get", PATH)
    assert token not in "".join(traceback.format_exception(raised.value))
    server.refusals = [KNOWN, ALLOWED]
    assert await reviews.may(token, "get", PATH) == Granted()


async def test_a_server_that_is_away_is_unavailable(server: StubApi, reviews: KubernetesReviews) -> None:
    await server.stop()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await reviews.may("t", "get", PATH)
