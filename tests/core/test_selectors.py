"""Which labels a selector selects."""

from __future__ import annotations

import pytest

from vllm_chill.core.selectors import selector

LABELS = {"app": "vllm", "zone": "a", "nvidia.com/gpu.present": "true", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selects"),
    [
        pytest.param("", True, id="nothing selects all"),
        pytest.param("app=vllm", True, id="a value"),
        pytest.param("app == vllm , zone=a", True, id="all terms hold"),
        pytest.param("app=vllm,zone=b", False, id="one of them does not"),
        pytest.param("app=", False, id="an empty value is not any"),
        pytest.param("empty=", True, id="an empty value"),
        pytest.param("zone!=b", True, id="another value"),
        pytest.param("none!=b", True, id="no value is another one"),
        pytest.param("zone in (a, b)", True, id="one of several"),
        pytest.param("zone in (b,c),app=vllm", False, id="none of several"),
        pytest.param("zone notin (b,c)", True, id="not one of several"),
        pytest.param("none notin (b,c)", True, id="what is not there is not one of several"),
        pytest.param("nvidia.com/gpu.present", True, id="a label that is there"),
        pytest.param("!none", True, id="one that is not"),
        pytest.param("! app", False, id="one that should not be there"),
    ],
)
def test_it_selects(text: str, selects: bool) -> None:
    assert selector(text).selects(LABELS) is selects


@pytest.mark.parametrize("text", ["=a", "a b", "a in b", "a in (b", "a,,b", "a > 1", "a=b c", ","])
def test_what_is_none_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no label selector: write it as in pool=gpu"):
        selector(text)
