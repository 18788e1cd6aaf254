from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.api.yaml_text import plain_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("5.5", 5.5),
        ("a: 1\nb: [x, null, true]", {"a": 1, "b": ["x", None, True]}),
        ('{"a": {"b": "c"}}', {"a": {"b": "c"}}),
        ("2: a\ntrue: b", {"2": "a", "True": "b"}),
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("? 2026-01-01\n: a", {"2026-01-01": "a"}),
        ("!!set {a}", ["a"]),
    ],
)
def test_a_text_is_plain_values(text: str, value: Any) -> None:
    assert plain_value(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "it is not YAML in line 1: mapping values are not allowed in this context"),
        ("a: 1\n*b", "it is not YAML in line "),
        ("!!python/object/apply:os.getcwd []", "it is not YAML in line 1: could not determine a constructor"),
        ("a: \x07", "it is not YAML: it has characters that YAML does not know"),
        ("a: &b 1\nc: *b", "it has a reference such as *name; write out what it stands for"),
        ("[" * 21, "it is more than 20 levels deep"),
        ("9" * 5000, "it has a date that there is not, or a number that is too long; put it in quotes"),
        ("2026-02-31", "it has a date that there is not, or a number that is too long; put it in quotes"),
        (" " * 65537, "it is longer than 64 KiB"),
    ],
)
def test_what_is_none_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^it ") as refused:
        plain_value(text)
    assert str(refused.value).startswith(words)


def test_a_short_text_that_stands_for_a_very_long_one_costs_nothing() -> None:
    layers = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    begun = time.process_time()
    with pytest.raises(ValueError, match="it has a reference"):
        plain_value("\n".join(["a0: &a0 lol", *layers]))
    with pytest.raises(ValueError, match="levels deep"):
        plain_value("[" * 65000)
    assert time.process_time() - begun < 1


@given(st.text(max_size=30))
def test_any_text_is_a_value_that_is_json_or_told(text: str) -> None:
    try:
        value = plain_value(text)
    except ValueError as refused:
        told = str(refused)
    else:
        told = f"it is {json.dumps(value)}"
    assert told.startswith("it ")
