"""What is read of a prompt, out of all that a body may be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.prompt import LOOKED_INTO_BYTES, prompt_start


def user(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


SYSTEM = {"role": "system", "content": 'You say "no".'}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"messages": {"a": ["}", "]"]}}}}}]


@pytest.mark.parametrize(
    ("body", "start"),
    [
        pytest.param({"model": "m", "messages": [user("Hello you")]}, "Hello", id="of a chat"),
        pytest.param({"messages": [SYSTEM, user("Hello"), user("Again")]}, "Hello", id="behind a system prompt"),
        pytest.param({"tools": TOOLS, "messages": [user("Hello")]}, "Hello", id="behind tools"),
        pytest.param({"messages": [{"content": "Hello", "role": "user"}]}, "Hello", id="before its role"),
        pytest.param({"messages": [{"content": "No", "role": "system"}, user("Hi")]}, "Hi", id="not of another role"),
        pytest.param({"messages": [user([{"type": "text", "text": "Hello"}])]}, "Hello", id="of parts"),
        pytest.param(
            {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Hi"}])]},
            "Hi",
            id="behind an image",
        ),
        pytest.param(
            {"messages": [user([{"type": "image_url"}]), {"role": "assistant", "content": None}, user("Hi")]},
            "Hi",
            id="of the next who says any",
        ),
        pytest.param({"messages": [user('Hé"\\ü😀😀')]}, 'Hé"\\ü', id="as characters, not as escapes"),
        pytest.param({"prompt": "Hello you"}, "Hello", id="of a completion"),
        pytest.param({"prompt": ["Hello", "you"]}, "Hello", id="of several completions"),
        pytest.param({"prompt": [128000, 9906]}, "12800", id="of tokens"),
        pytest.param({"prompt": [[1, 2], [3]]}, "1,2", id="of several lists of tokens"),
        pytest.param({"input": "Hello you"}, "Hello", id="of a response"),
        pytest.param(
            {"input": [user([{"type": "input_text", "text": "Hello"}])]}, "Hello", id="of a response in parts"
        ),
        pytest.param({"messages": [SYSTEM]}, None, id="nobody said anything"),
        pytest.param({"messages": [user("")]}, None, id="nothing was said"),
        pytest.param({"messages": []}, None, id="no messages"),
        pytest.param({"messages": {}}, None, id="messages of a wrong kind"),
        pytest.param({"prompt": None}, None, id="no prompt"),
        pytest.param({"prompt": 7}, None, id="a prompt of a wrong kind"),
        pytest.param({"model": "m"}, None, id="something else"),
        pytest.param([user("Hello")], None, id="no object"),
    ],
)
def test_the_start_of_a_prompt(body: object, start: str | None) -> None:
    assert prompt_start(json.dumps(body).encode(), 5) == start
    assert prompt_start(json.dumps(body, ensure_ascii=False, indent=1).encode(), 5) == start


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="a brace"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"prompt":"\\x"}', id="no escape"),
        pytest.param(b'{"prompt":"\xff"}', id="no UTF-8"),
        pytest.param(b'{"prompt":"\\ud83d"}', id="half a character"),
        pytest.param(b'{"prompt":["a', id="broken off"),
        pytest.param(b"\x1f\x8b\x08", id="compressed"),
    ],
)
def test_what_is_broken_has_none(body: bytes) -> None:
    assert prompt_start(body, 5) is None


CALLS = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.builds(user, st.text(max_size=30) | st.lists(st.builds(dict, text=st.text()), max_size=2))
        )
    },
    optional={"model": st.text(), "stop": st.lists(st.text()), "seed": st.floats(allow_nan=False), "n": st.none()},
)


@given(CALLS, st.booleans(), st.integers(1, 40), st.data())
def test_of_a_part_of_a_body_it_is_the_same_or_none(
    call: dict[str, Any], ascii_only: bool, length: int, data: st.DataObject
) -> None:
    fields = list(call.items())
    data.draw(st.randoms()).shuffle(fields)
    try:
        body = json.dumps(dict(fields), ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    whole = prompt_start(body, length)
    said = (text for message in call["messages"] if (text := _text(message["content"])))
    first = next(said, None)
    if first is None or first.encode("utf-16", "surrogatepass").decode("utf-16", "replace") == first:
        assert whole == (None if first is None else first[:length])
    cut = data.draw(st.integers(0, len(body)))
    assert prompt_start(body[:cut], length) in (whole, None)


def _text(content: str | list[dict[str, str]]) -> str | None:
    return content if isinstance(content, str) else next((part["text"] for part in content), None)


@given(st.binary(max_size=200) | st.text('{}[]",:\\u0d8messagprot ').map(str.encode), st.integers(1, 10))
def test_whatever_a_body_is_it_never_fails(body: bytes, length: int) -> None:
    for data in (body, b'{"messages":' + body, b'{"messages":[{"role":"user","content":' + body):
        start = prompt_start(data, length)
        assert start is None or 0 < len(start) <= length


def test_no_more_is_looked_at_than_that_and_not_for_long() -> None:
    far = {"a": "x" * LOOKED_INTO_BYTES, "prompt": "Hello"}
    assert prompt_start(json.dumps(far).encode(), 5) is None
    many = {str(number): number for number in range(1000)} | {"prompt": "Hello"}
    assert prompt_start(json.dumps(many).encode(), 5) is None
    deep = "[" * 50_000
    assert prompt_start(b'{"a":' + deep.encode(), 5) is None


def test_all_turns_of_a_conversation_have_the_same() -> None:
    said: list[dict[str, object]] = [dict(SYSTEM)]
    starts = set()
    for turn in range(50):
        said += [user(f"What of {turn}, then?"), {"role": "assistant", "content": "Nothing. " * turn}]
        starts.add(prompt_start(json.dumps({"stream": True, "messages": said}).encode(), 100))
    assert starts == {"What of 0, then?"}
