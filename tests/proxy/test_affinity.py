"""Which requests have a key, and that without one nothing more is done for them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from tests.scenarios.stage import stage
from vllm_chill.control.lease import Bounds
from vllm_chill.core.balancing import key_of
from vllm_chill.proxy.affinity import Affinity

CHAT = "/v1/chat/completions"
HELLO = b'{"messages":[{"role":"user","content":"Hello you"}]}'


@dataclass
class Asker:
    opening: bytes = HELLO
    fields: dict[str, str] = field(default_factory=dict)

    def field(self, name: str) -> str | None:
        return self.fields.get(name)


@pytest.mark.parametrize(
    ("affinity", "asker", "text"),
    [
        pytest.param(Affinity(None, 5), Asker(), "Hello", id="the prompt's beginning"),
        pytest.param(Affinity("X-S", 5), Asker(fields={"X-S": "me"}), "me", id="the session before the prompt"),
        pytest.param(Affinity("X-S", 5), Asker(), "Hello", id="the prompt without a session"),
        pytest.param(Affinity("X-S", 5), Asker(fields={"X-S": ""}), "Hello", id="the prompt with an empty one"),
        pytest.param(Affinity("X-S"), Asker(), None, id="nothing without a session"),
        pytest.param(Affinity(None, 5), Asker(b"no"), None, id="nothing without a prompt"),
    ],
)
def test_what_counts(affinity: Affinity, asker: Asker, text: str | None) -> None:
    assert affinity.key(asker) == (None if text is None else key_of(text))


def test_a_prompt_counts_for_its_adapter_and_a_session_for_all() -> None:
    by_prefix, by_session = Affinity(None, 5), Affinity("X-S", 5)
    assert by_prefix.key(Asker(), 1) != by_prefix.key(Asker(), 2)
    assert by_session.key(Asker(fields={"X-S": "me"}), 1) == by_session.key(Asker(fields={"X-S": "me"}), 2)


@pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
async def test_by_default_nothing_is_computed_for_a_key(fast: bool) -> None:
    assert await calls(fast=fast) == set()
    by_prefix = await calls(fast=fast, affinity=Affinity(None, 100), bounds=Bounds(load_factor=1.25))
    assert by_prefix >= {"key", "opening", "prompt_start", "key_of"}


async def calls(**kwargs: Any) -> set[str]:
    """The functions for keys that three warm requests call."""
    called: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and (
            code.co_filename.endswith(("/prompt.py", "/affinity.py", "/json_text.py"))
            or code.co_name in ("opening", "key_of")
        ):
            called[code.co_name] += 1

    async with stage(awake=True, **kwargs) as s:
        await s.post(CHAT, data=HELLO)
        sys.setprofile(count)
        try:
            for _ in range(3):
                assert (await s.post(CHAT, data=HELLO))[0] == 200
        finally:
            sys.setprofile(None)
    return set(called)
