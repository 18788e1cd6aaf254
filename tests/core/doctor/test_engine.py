from __future__ import annotations

import pytest

from tests.core.doctor.world import engine, found, is_fine, only, sound
from vllm_chill.core.doctor.engine import ENGINE
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import EngineAnswer

QWEN = "Qwen/Qwen3-0.6B"


def answer(health: int = 200, listing: int = 200, *models: str, trouble: str = "") -> EngineAnswer:
    return EngineAnswer("vllm-1", "http://10.0.0.1:8000", health, listing, models, trouble)


def test_an_engine_that_serves_its_model_is_fine() -> None:
    assert only(ENGINE, sound(engines=(answer(200, 200, QWEN),))).says == f"vllm-1 is healthy and serves {QWEN}"
    assert "asleep" in only(ENGINE, sound()).says
    assert only(ENGINE, sound(engines=Unseen("no"))).outcome is Outcome.UNKNOWN
    silent = engine(args=[]).target
    assert is_fine(found(ENGINE, sound(engines=(answer(200, 200, "any"),), target=silent)))


@pytest.mark.parametrize(
    ("one", "says", "does"),
    [
        pytest.param(answer(404), "/health answers 404", "--health-path", id="no health page"),
        pytest.param(answer(200, 401), "asked with no key", "--upstream-api-key-file", id="a key"),
        pytest.param(answer(200, 500), "/v1/models answers 500", "see what", id="no list"),
        pytest.param(answer(200, 200, "llama"), f"serves llama, and is to serve {QWEN}", "--served-model", id="a name"),
        pytest.param(answer(200, 200), "serves no model", "--served-model-name", id="no model"),
    ],
)
def test_an_engine_that_answers_otherwise_is_a_failure(one: EngineAnswer, says: str, does: str) -> None:
    finding = only(ENGINE, sound(engines=(one,)))
    assert finding.outcome is Outcome.FAILURE
    assert says in finding.says
    assert does in finding.remedy


def test_an_engine_that_is_not_reached_from_here_is_no_failure() -> None:
    finding = only(ENGINE, sound(engines=(answer(trouble="this machine does not reach it"),)))
    assert finding.outcome is Outcome.UNKNOWN
    assert "exec deploy/vllm-chill" in finding.paste
