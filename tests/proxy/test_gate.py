from __future__ import annotations

import hashlib

import pytest

from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.rate import RateLimit
from vllm_chill.errors import RateLimited, Unauthenticated
from vllm_chill.proxy.gate import Gate


def key(name: str, **more: object) -> Key:
    return Key(name, hashlib.sha256(name.encode()).digest(), **more)  # type: ignore[arg-type]


def gate(*keys: Key) -> Gate:
    return Gate(Keys(keys), lambda: 0.0)


def test_the_same_header_is_hashed_once() -> None:
    one = gate(key("a"))
    found = one.who(b"Bearer a")
    one._keys = Keys()  # what would be asked if it were not remembered
    assert one.who(b"Bearer a") is found


def test_who_guesses_has_nothing_remembered() -> None:
    one = gate(key("a"))
    for i in range(1000):
        with pytest.raises(Unauthenticated):
            one.who(b"Bearer %d" % i)
    assert not one._known


def test_what_is_remembered_is_bounded() -> None:
    one = gate(key("a"))
    for i in range(10_000):
        one.who(b"Bearer" + b" " * (i + 1) + b"a")
    assert len(one._known) <= 4096


@pytest.mark.parametrize("said", [None, b"Bearer b", b"Basic a", b"a", b"", b"Bearer "])
def test_who_has_no_key_is_told_what_to_do(said: bytes | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        gate(key("a")).who(said)
    assert caught.value.message.endswith(
        ('send it in the header "Authorization: Bearer KEY".', "see whether it is whole, and has not been withdrawn.")
    )


def test_a_key_that_is_withdrawn_is_let_in_no_more_and_a_new_one_is() -> None:
    one = gate(key("a"))
    one.who(b"Bearer a")
    one.replace(Keys([key("b")]))
    with pytest.raises(Unauthenticated):
        one.who(b"Bearer a")
    assert one.who(b"Bearer b").key.name == "b"


def test_a_key_is_changed_where_it_is_and_what_it_has_used_stays_used() -> None:
    one = gate(key("a", rate=RateLimit(60, 1)))
    entrant = one.who(b"Bearer a")
    entrant.take(0.0)
    one.replace(Keys([key("a", rate=RateLimit(60, 1), admin=True)]))
    assert one.who(b"Bearer a").key.admin
    assert entrant.key.admin, "a request that is under way"
    with pytest.raises(RateLimited):
        one.who(b"Bearer a").take(0.5)


def test_who_comes_too_fast_is_told_when_to_come_again() -> None:
    entrant = gate(key("a", rate=RateLimit(20, 2))).who(b"Bearer a")
    entrant.take(0.0)
    entrant.take(0.0)
    with pytest.raises(RateLimited) as caught:
        entrant.take(0.5)
    assert caught.value.retry_after_seconds == 3
    assert caught.value.message == ('the key "a" may send 20 requests a minute, 2 of them at once; try again in 3 s.')
    entrant.take(3.0)


def test_what_did_not_come_after_all_is_given_back() -> None:
    entrant = gate(key("a", rate=RateLimit(1, 1))).who(b"Bearer a")
    entrant.take(0.0)
    entrant.give_back()
    entrant.take(0.0)
    with pytest.raises(RateLimited):
        entrant.take(0.0)
