"""The analyzer that a model's configuration names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_chill.core.saturation import saturation, spare
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Analyzer, Config
from vllm_chill.core.saturation.fleet import Variant


def analyze(config: Config, variants: Sequence[Variant], anticipated: Mapping[str, int]) -> Analysis:
    """What the variants of a model lack, and what of them could go.

    `anticipated` is how many replicas each variant has or soon will have, by its key: those that are ready, and those
    on their way that may be counted on. What is lacking is on top of them. What could go is of those that are ready
    and not on their way out already.
    """
    match config.analyzer:
        case Analyzer.SATURATION:
            return saturation.analyze(config, variants, anticipated)
        case Analyzer.SPARE_CAPACITY:
            return spare.analyze(config, variants, anticipated)
