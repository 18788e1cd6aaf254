from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.access import NEEDS
from vllm_chill.core.keys import HASHED, Key, Keys, bearer_token, hashed, said_by
from vllm_chill.core.routing import Route

KEY = "chill-secret"


def key(name: str = "a", secret: str = KEY, **more: object) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).digest(), **more)  # type: ignore[arg-type]


def test_a_key_is_found_by_itself_and_by_nothing_else() -> None:
    keys = Keys([key(), key("b", "other")])
    found = keys.find(KEY.encode())
    assert found is not None
    assert found.name == "a"
    for wrong in (b"", b"chill-secre", b"chill-secret ", hashed(KEY).encode(), hashlib.sha256(KEY.encode()).digest()):
        assert keys.find(wrong) is None


def test_a_hash_is_as_the_file_has_it() -> None:
    assert HASHED.fullmatch(hashed(KEY))
    assert hashed("abc").endswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_nothing_that_is_shown_of_a_key_has_its_hash_in_it() -> None:
    assert hashlib.sha256(KEY.encode()).hexdigest() not in repr(key())
    assert "\\x" not in repr(key())


@pytest.mark.parametrize(
    ("models", "name", "may"),
    [
        (None, "anything", True),
        ((), "anything", False),
        (("qwen",), "qwen", True),
        (("qwen",), "Qwen", False),
        (("qwen",), "qwen2", False),
        (("qwen*",), "qwen2", True),
        (("*",), "", True),
        (("org/*-chat",), "org/llama-chat", True),
        (("org/*-chat",), "org/llama-chat-x", False),
        (("a.c",), "abc", False),
        (("[ab]",), "a", False),
        (("a", "b"), "b", True),
        (("a*",), "a\nb", True),
    ],
)
def test_which_models_a_key_may_use(models: tuple[str, ...] | None, name: str, may: bool) -> None:
    assert key(models=models).may_use([name]) is may


@given(st.text(), st.lists(st.text(max_size=5), max_size=4))
def test_a_pattern_without_a_star_is_one_name(name: str, names: list[str]) -> None:
    plain = name.replace("*", "")
    assert key(models=(plain,)).may_use(names) is (plain in names)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"BEARER   abc  ", b"abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearer a b", None),
        (b"Basic abc", None),
        (b"abc", None),
        (b"Bearer \xc3\xa4", None),
    ],
)
def test_the_token_of_a_header(value: bytes, token: bytes | None) -> None:
    assert bearer_token(value) == token


def test_who_says_it_twice_is_taken_by_the_authorization() -> None:
    assert said_by("Bearer a", "b") == b"Bearer a"
    assert said_by(None, "b") == b"Bearer b"
    assert said_by("Basic x", "b") == b"Basic x", "it is not passed over because it is no good"
    assert said_by(None, None) is None


def test_every_route_says_what_it_asks_for() -> None:
    assert set(NEEDS) == set(Route)
