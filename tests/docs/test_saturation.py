"""The worked examples of the page on saturation are what the analyzers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_chill.core.saturation.analyze import analyze
from vllm_chill.core.saturation.config import DEFAULT, Analyzer, Config
from vllm_chill.core.saturation.fleet import ReplicaLoad, Variant

PAGE = (Path(__file__).parents[2] / "docs" / "saturation.md").read_text()
EXAMPLES = re.findall(r"<!-- (\S+): (\w+) -->\n\n((?:\|.*\n)+)\n```text\n(.*?)\n```", PAGE)
DEFAULTS = {
    "kvCacheThreshold": DEFAULT.kv_cache_threshold,
    "queueLengthThreshold": DEFAULT.queue_length_threshold,
    "kvSpareTrigger": DEFAULT.kv_spare_trigger,
    "queueSpareTrigger": DEFAULT.queue_spare_trigger,
    "maxQueueLength": DEFAULT.max_queue_length,
    "scaleUpThreshold": DEFAULT.scale_up_threshold,
    "scaleDownBoundary": DEFAULT.scale_down_boundary,
    "scaleUpStabilization": DEFAULT.scale_up_stabilization,
    "scaleDownStabilization": DEFAULT.scale_down_stabilization / 60,
}


def test_both_analyzers_have_an_example_of_each() -> None:
    assert {(analyzer, load) for analyzer, load, _, _ in EXAMPLES} == {
        (analyzer, load) for analyzer in Analyzer for load in ("busy", "calm")
    }


@pytest.mark.parametrize(("analyzer", "load", "table", "words"), EXAMPLES)
def test_an_example_is_what_the_analyzer_says(analyzer: str, load: str, table: str, words: str) -> None:
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]
    for row in rows:
        config = Config(analyzer=Analyzer(analyzer))
        alone = analyze(config, [Variant("a", ready=1, loads=(ReplicaLoad("a", float(row[1]), float(row[2])),))], {})
        assert row[3:] in ([], [f"{alone.saturation:.2f}"])
    loads = tuple(ReplicaLoad(name, float(kv), float(queue)) for name, kv, queue, *_ in rows)
    variant = Variant("a100", replicas=len(loads), ready=len(loads), loads=loads)
    analysis = analyze(Config(analyzer=Analyzer(analyzer)), [variant], {})
    assert analysis.reason == words
    assert (analysis.required > 0) is (load == "busy")
    assert (analysis.spare >= 1) is (load == "calm")


@pytest.mark.parametrize(("key", "default"), DEFAULTS.items())
def test_the_defaults_are_told(key: str, default: float) -> None:
    [told] = re.findall(rf"`{key}`\s\(([\d.]+)(?: minutes)?\)", PAGE)
    assert float(told) == default
