"""What is in the ConfigMaps of the controller of variants: every key, declared once, with what it does.

The rule: each key can be left out, and then has the value of the layer below it. Keys that llm-d's autoscaler has are
called as there, and mean the same. The reference page is made from these fields.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vllm_chill.api.resource import Checked, Conflict
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import DURATION, seconds
from vllm_chill.core.saturation.config import Analyzer, Config

_YEAR = 365 * 86400.0
_PART = "a number from 0 to 1"
_PART_ABOVE_ZERO = "a number above 0, at most 1"
_NUMBER = "a number, 0 or more"
_COUNT = "a whole number, at least 1"
_SECONDS = "a number of seconds, or a duration such as 90s, 5m or 1h30m"
_SWITCH = "true or false"
_TEXT = "a text"
_MODEL = "the model's name, as requests say it"


def _number(value: object) -> object:
    """A number may be in quotes, as those that a template fills in often are; true and false are none."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "true and false are no numbers")
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(DURATION, value.strip()):
        try:
            return seconds(value.strip())
        except OverflowError:
            return float("inf")
    return _number(value)


def _switch(value: object) -> object:
    words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _text(value: object) -> object:
    # YAML takes for a number what is meant as a text.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Figure = Annotated[float, BeforeValidator(_number), Field(ge=0, le=10**12, allow_inf_nan=False)]
FigureAboveZero = Annotated[float, BeforeValidator(_number), Field(gt=0, le=10**12, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
ShareAboveZero = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000)]
Priority = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1_000_000)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=_YEAR, allow_inf_nan=False)]
SecondsAboveZero = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_YEAR, allow_inf_nan=False)]
OnOff = Annotated[bool, BeforeValidator(_switch), Field(strict=True)]
Words = Annotated[str, BeforeValidator(_text)]
Url = Annotated[str, Field(max_length=2048, pattern=r"^https?://\S+$")]


class Compat(enum.StrEnum):
    """Whose way it is done."""

    NONE = "none"
    UPSTREAM = "upstream"


class AnalyzerName(enum.StrEnum):
    """What llm-d calls the analyzers: its first one has no name."""

    SPARE_CAPACITY = ""
    SATURATION = "saturation"


_NAMED = {AnalyzerName.SPARE_CAPACITY: Analyzer.SPARE_CAPACITY, AnalyzerName.SATURATION: Analyzer.SATURATION}


class ModelEntry(Part):
    """An entry that is about one model, or about all of them."""

    model_id: Words | None = declared(
        None, _MODEL, "The model that the entry is about; every entry but `default` has it.", alias="model_id"
    )
    namespace: Words | None = declared(
        None, "the name of a namespace",
        "The namespace that the entry is about. Not set: all; an entry with it wins over one without.",
    )  # fmt: skip


class SaturationEntry(ModelEntry, Checked):
    """How the variants of a model are scaled."""

    analyzer: Analyzer | None = declared(
        None, " or ".join(Analyzer), "How what is measured becomes capacity that is lacking or spare."
    )
    analyzer_name: AnalyzerName | None = declared(
        None, '"" or saturation', 'llm-d\'s name for the analyzer: "" is spare-capacity.'
    )
    kv_cache_threshold: Share | None = declared(
        None, _PART, "spare-capacity: a replica with so much of its KV cache in use is saturated."
    )
    queue_length_threshold: Figure | None = declared(
        None, _NUMBER, "spare-capacity: a replica with so many requests waiting is saturated."
    )
    kv_spare_trigger: Share | None = declared(
        None, _PART, "spare-capacity: it grows when less of the KV cache than this is left in the mean."
    )
    queue_spare_trigger: Figure | None = declared(
        None, _NUMBER, "spare-capacity: it grows when fewer places in the queue than this are left in the mean."
    )
    max_queue_length: FigureAboveZero | None = declared(
        None, "a number above 0", "saturation: a replica with so many requests waiting has a saturation of 1."
    )
    scale_up_threshold: ShareAboveZero | None = declared(
        None, _PART_ABOVE_ZERO, "saturation: it grows when the mean saturation is above this."
    )
    scale_down_boundary: ShareAboveZero | None = declared(
        None, _PART_ABOVE_ZERO, "saturation: it shrinks as long as the mean saturation stays at or below this."
    )
    compat: Compat | None = declared(
        None, " or ".join(Compat), "upstream: spare-capacity exactly as llm-d has it, with its flaws."
    )
    hysteresis: Share | None = declared(
        None, _PART, "What part of the way to the trigger must be left after replicas have gone."
    )
    scale_up_increment: Whole | None = declared(None, _COUNT, "At most so many replicas come within scaleUpPeriod.")
    scale_up_period: SecondsAboveZero | None = declared(None, _SECONDS, "The period of scaleUpIncrement.")
    scale_up_stabilization: Seconds | None = declared(
        None, _SECONDS, "Capacity must have been lacking for so long before replicas come."
    )
    scale_down_increment: Whole | None = declared(None, _COUNT, "At most so many replicas go within scaleDownPeriod.")
    scale_down_period: SecondsAboveZero | None = declared(None, _SECONDS, "The period of scaleDownIncrement.")
    scale_down_stabilization: Seconds | None = declared(
        None, _SECONDS, "Capacity must have been spare for so long before replicas go."
    )
    transition_timeout: SecondsAboveZero | None = declared(
        None, _SECONDS, "A variant whose replicas have not come within this time is taken as it is."
    )
    enable_limiter: OnOff | None = declared(None, _SWITCH, "Whether it grows only as far as there are GPUs for.")

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        named = None if self.analyzer_name is None else _NAMED[self.analyzer_name]
        if self.analyzer is not None and named is not None and self.analyzer is not named:
            yield Conflict(
                "analyzerName", f"it means {named}, and analyzer is {self.analyzer}; leave it out", ("analyzerName",)
            )

    def over(self, config: Config) -> Config:
        """The configuration with what this entry says in the place of what was said below it."""
        said = {name: value for name in _OF_CONFIG if (value := getattr(self, name)) is not None}
        if self.analyzer_name is not None:
            said["analyzer"] = _NAMED[self.analyzer_name]
        if self.compat is not None:
            said["upstream"] = self.compat is Compat.UPSTREAM
        return replace(config, **said)


_OF_CONFIG = tuple(one.name for one in fields(Config) if one.name in SaturationEntry.model_fields)


class ZeroEntry(ModelEntry):
    """Whether a model may be left without any replica."""

    enable_scale_to_zero: OnOff | None = declared(
        None, _SWITCH, "Whether it may. Not set: as WVA_SCALE_TO_ZERO has it.", alias="enable_scale_to_zero"
    )
    retention_period: SecondsAboveZero | None = declared(
        None, _SECONDS, "For how long it must have been unused. Not set: 10m.", alias="retention_period"
    )


class PriceEntry(Part):
    """What one accelerator costs."""

    cost: Figure = declared(..., _NUMBER, "What one of them costs, in the unit of variantCost.")
    device: Words | None = declared(
        None, "a text", "Another name of it, such as that which the nodes have in nvidia.com/gpu.product."
    )


class ModelObjective(Part):
    """What is promised for one model. Only kept: it is scaled by saturation."""

    model: Words = declared(..., _MODEL, "The model.")
    slo_tpot: Figure | None = declared(None, _NUMBER, "Milliseconds for each token. Only kept.", alias="slo-tpot")
    slo_ttft: Figure | None = declared(None, _NUMBER, "Milliseconds to the first token. Only kept.", alias="slo-ttft")


class ClassEntry(Part):
    """A service class: models, and before whom they get GPUs."""

    name: Words | None = declared(None, _TEXT, "What it is called.")
    priority: Priority = declared(
        ..., "a whole number, 0 or more", "Whose turn it is for GPUs: 1 before 10. Models of no class have 100."
    )
    data: tuple[ModelObjective, ...] = declared((), "a list of {model: NAME}", "Its models.")


class MainSettings(Part):
    """What holds for the controller as a whole. What is left out here is as its flags and variables have it."""

    prometheus_base_url: Url | None = declared(
        None, "a URL, such as https://prometheus:9090", "Where Prometheus is.", alias="PROMETHEUS_BASE_URL"
    )
    prometheus_bearer_token: Words | None = declared(
        None, _TEXT, "The token it is asked with.", alias="PROMETHEUS_BEARER_TOKEN", repr=False
    )
    prometheus_token_path: Words | None = declared(
        None, "a path", "The file with that token, read anew when it changes.", alias="PROMETHEUS_TOKEN_PATH"
    )
    prometheus_tls_insecure_skip_verify: OnOff | None = declared(
        None, _SWITCH, "Whether its certificate is not checked.", alias="PROMETHEUS_TLS_INSECURE_SKIP_VERIFY"
    )
    prometheus_ca_cert_path: Words | None = declared(
        None, "a path", "The file with the authority of its certificate.", alias="PROMETHEUS_CA_CERT_PATH"
    )
    prometheus_client_cert_path: Words | None = declared(
        None, "a path", "The file with our certificate for it.", alias="PROMETHEUS_CLIENT_CERT_PATH"
    )
    prometheus_client_key_path: Words | None = declared(
        None, "a path", "The file with the key of that.", alias="PROMETHEUS_CLIENT_KEY_PATH"
    )
    prometheus_server_name: Words | None = declared(
        None, _TEXT, "The name that its certificate has.", alias="PROMETHEUS_SERVER_NAME"
    )
    interval_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "How often everything is looked at, besides when something changes.",
        alias="GLOBAL_OPT_INTERVAL",
    )  # fmt: skip
    scale_to_zero: OnOff | None = declared(
        None, _SWITCH, "Whether models may be left without any replica, where nothing else says it.",
        alias="WVA_SCALE_TO_ZERO",
    )  # fmt: skip
    limited_mode: OnOff | None = declared(
        None, _SWITCH, "enableLimiter, where no entry says it.", alias="WVA_LIMITED_MODE"
    )
    node_selector: Words | None = declared(
        None, "a label selector, such as pool=gpu", "The nodes whose GPUs count.", alias="WVA_NODE_SELECTOR"
    )
    from_zero_concurrency: Whole | None = declared(
        None,
        _COUNT,
        "Without effect: models are woken as soon as somebody waits.",
        alias="SCALE_FROM_ZERO_ENGINE_MAX_CONCURRENCY",
    )
    epp_bearer_token: Words | None = declared(
        None, _TEXT, "The token that endpoint pickers are asked with for their metrics.",
        alias="EPP_METRIC_READER_BEARER_TOKEN", repr=False,
    )  # fmt: skip
    cache_ttl_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "For how long what was measured is not asked for again.", alias="PROMETHEUS_METRICS_CACHE_TTL"
    )
    cache_cleanup_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "Without effect: what is too old goes when it is looked at.",
        alias="PROMETHEUS_METRICS_CACHE_CLEANUP_INTERVAL",
    )  # fmt: skip
    cache_fetch_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "Without effect: it is measured when it is needed.",
        alias="PROMETHEUS_METRICS_CACHE_FETCH_INTERVAL",
    )  # fmt: skip
    fresh_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "What was measured longer ago is stale: nothing shrinks by it.",
        alias="PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD",
    )  # fmt: skip
    stale_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "Without effect, as in llm-d.", alias="PROMETHEUS_METRICS_CACHE_STALE_THRESHOLD"
    )
    gone_seconds: SecondsAboveZero | None = declared(
        None, _SECONDS, "What was measured longer ago is not known any more.",
        alias="PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD",
    )  # fmt: skip
