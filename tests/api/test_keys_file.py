from __future__ import annotations

import pytest

from vllm_chill.api.keys_file import read_keys
from vllm_chill.core.admission import Priority
from vllm_chill.core.keys import hashed
from vllm_chill.core.rate import RateLimit
from vllm_chill.errors import InvalidKeys

A, B = hashed("a"), hashed("b")


def test_a_file_with_everything() -> None:
    keys = read_keys(f"""
keys:
  - name: team-a
    key: {A}
    models: [qwen, "llama-*"]
    priority: high
    requestsPerMinute: 600
    burst: 20
    admin: true
  - {{name: team-b, key: "{B}"}}
""")
    a, b = keys.find(b"a"), keys.find(b"b")
    assert a is not None
    assert b is not None
    assert (a.models, a.priority, a.rate, a.admin) == (("qwen", "llama-*"), Priority.HIGH, RateLimit(600, 20), True)
    assert (b.models, b.priority, b.rate, b.admin) == (None, Priority.NORMAL, None, False)


def test_a_minutes_worth_may_come_at_once_unless_it_is_said() -> None:
    found = read_keys(f"keys: [{{name: a, key: '{A}', requestsPerMinute: 90}}]").find(b"a")
    assert found is not None
    assert found.rate == RateLimit(90, 90)


def test_no_keys_are_good_too() -> None:
    assert not len(read_keys("keys: []"))


SHAPE = 'give "keys:" with a list, as `vllm-chill keys new NAME` prints it'
HASH = "give sha256:HEX, which `printf %s KEY | sha256sum` prints the HEX of"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", SHAPE, id="nothing"),
        pytest.param("keys: x", SHAPE, id="no list"),
        pytest.param("keys: [a]", SHAPE, id="no mapping"),
        pytest.param("keys: []\nmore: 1", SHAPE, id="something else"),
        pytest.param("keys: [", f"this is not YAML (line 1); {SHAPE}", id="no YAML"),
        pytest.param("keys: [{name: a, key: sk-PLAIN}]", f'the key "a": key is no hash: {HASH}', id="a plain key"),
        pytest.param("keys: [{name: a, key: 12345}]", f'the key "a": key is no hash: {HASH}', id="a number"),
        pytest.param("keys: [{name: a}]", f'the key "a": key is missing: {HASH}', id="no key"),
        pytest.param(
            f"keys: [{{key: '{A}'}}]",
            "key number 1: name is missing: give 1 to 63 letters, digits, ., _, @ and -, of which the first is a "
            "letter or digit",
            id="no name",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', model: b}}]",
            'the key "a": it has a field that is not known; known: name, key, models, priority, requestsPerMinute, '
            "burst, admin",
            id="an unknown field",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', models: [1, 2]}}]",
            'the key "a": models: give a list of names, in which * is any text, such as [qwen, "llama-*"]',
            id="models",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', priority: urgent}}]",
            'the key "a": priority: give high, normal or low',
            id="priority",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', requestsPerMinute: 0}}]",
            'the key "a": requestsPerMinute: give a number from 1 to 10000000',
            id="rate",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', burst: 5}}]",
            'the key "a": burst: it is of no use alone; give requestsPerMinute too',
            id="burst alone",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}', admin: yes please}}]", 'the key "a": admin: give true or false', id="admin"
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}'}}, {{name: a, key: '{B}'}}]",
            'there are two keys "a"; give each a name of its own',
            id="a name twice",
        ),
        pytest.param(
            f"keys: [{{name: a, key: '{A}'}}, {{name: b, key: '{A}'}}]",
            '"a" and "b" are the same key; make another one for either',
            id="a key twice",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(InvalidKeys) as caught:
        read_keys(text)
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    "text",
    [
        "keys: [{name: a, key: sk-PLAIN}]",
        "keys: [{name: a, key: [sk-PLAIN]}]",
        "keys: [{name: a, sk-PLAIN: x}]",
        "keys: {a: sk-PLAIN}",
        "sk-PLAIN",
        "keys: [sk-PLAIN: [}",
        "\tsk-PLAIN: *x",
        "keys: [{name: a, key: !!python/object:sk-PLAIN x}]",
        "keys: [{name: {sk-PLAIN: 1}, key: x}]",
        "keys: [{name: a, key: x, admin: sk-PLAIN, priority: sk-PLAIN, models: sk-PLAIN, burst: sk-PLAIN}]",
    ],
)
def test_no_sentence_says_what_may_be_a_key(text: str) -> None:
    with pytest.raises(InvalidKeys) as caught:
        read_keys(text)
    assert "sk-PLAIN" not in str(caught.value)
