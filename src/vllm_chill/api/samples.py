"""A file of moments for `vllm-chill decide`: what was measured of a target at each, so that a history can be played.

The rule: what a moment leaves out was not measured, and what it does not say of the number of replicas is as it was
decided the moment before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from vllm_chill.api.resource import Checked, Conflict, problems_of, unknown_fields, without_nulls
from vllm_chill.api.spec_parts import Part, declared
from vllm_chill.api.spec_types import Count, CountOrZero, Number, Switch
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import Metric, Readings, ReplicaReading, Sample, Signal

_VALUE = "a number, or a list with one for each rule of this metric"
_SECONDS = "a number of seconds"
_AGE = "a number of seconds, 0 or more"
_LONG_AGO = float("-inf")

Value = Number | tuple[Number | None, ...]
Age = Annotated[Number, Field(ge=0)]


class _Sampled(Part):
    model_config = ConfigDict(alias_generator=None)  # metrics are called as policies call them


class SampledLoad(_Sampled):
    """What replicas are measured by."""

    queue_length: Value | None = declared(None, _VALUE, "Requests that wait in the engine.")
    gpu_utilization: Value | None = declared(None, _VALUE, "Percent.")
    kv_cache_usage: Value | None = declared(None, _VALUE, "Percent.")
    running_requests: Value | None = declared(None, _VALUE, "Requests that the engine works on.")
    tokens_per_second: Value | None = declared(None, _VALUE, "Tokens that it generates.")


class SampledReplica(SampledLoad):
    """One replica, with what was measured of it."""

    ready: Switch = declared(True, "true or false", "Whether it is ready.")
    ready_since: Number | None = declared(None, _SECONDS, "Since which second. Not set: for long.")
    age: Age = declared(0.0, _AGE, "How old the measurement is.")


class SampledTarget(_Sampled):
    """What was measured of the target as a whole."""

    latency: Value | None = declared(None, _VALUE, "Milliseconds.")
    promql: Value | None = declared(None, _VALUE, "What Prometheus answered.")
    age: Age = declared(0.0, _AGE, "How old the measurement is.")


class SampledOverride(_Sampled):
    """A manual adjustment that is in effect."""

    replicas: Count = declared(..., "a number of replicas, at least 1", "How many.")
    by: str = declared("", "a text", "Who wanted it.")
    until: Number = declared(..., _SECONDS, "Until which second.")


class Moment(_Sampled, Checked):
    """What there is and what was measured at one moment."""

    STAND_INS: ClassVar = {"at": 0}

    at: Number = declared(..., _SECONDS, "When, in seconds from the begin of the history.")
    replicas: CountOrZero | None = declared(
        None, "a number of replicas, 0 or more",
        "How many are asked for. Not set: as decided the moment before; at the first, one for each of `members`.",
    )  # fmt: skip
    held: CountOrZero = declared(0, "a number of requests, 0 or more", "Requests that are held in the proxy.")
    members: tuple[SampledReplica, ...] | None = declared(
        None, "a list with a mapping for each replica", "Each replica that there is."
    )
    load: SampledLoad | None = declared(
        None, "a mapping of metrics to numbers",
        "In the place of `members`: every replica that is asked for is ready, and they share this evenly.",
    )  # fmt: skip
    target: SampledTarget | None = declared(None, "a mapping of metrics to numbers", "What there is of it as a whole.")
    override: SampledOverride | None = declared(
        None, "{replicas: NUMBER, by: NAME, until: SECONDS}", "A manual adjustment."
    )

    def conflicts(self) -> Iterable[Conflict]:
        """What no field can know by itself."""
        if self.members is not None and self.load is not None:
            yield Conflict("load", "there are members too, which have a load of their own; give one of the two", ())


class Samples(_Sampled, Checked):
    """A history: its moments, one after the other."""

    STAND_INS: ClassVar = {"moments": [{"at": 0}]}

    wall: AwareDatetime | None = declared(
        None, "a time with its zone, such as 2026-01-05T09:00:00+01:00",
        "The time of day at second 0, for schedules. Not set: midnight UTC of 1 January 1970.",
    )  # fmt: skip
    moments: tuple[Moment, ...] = declared(
        ..., "a list with a mapping for each moment, such as {at: 0, replicas: 1, held: 5}", "The moments."
    )

    def conflicts(self) -> Iterable[Conflict]:
        """What no field can know by itself."""
        if not self.moments:
            yield Conflict("moments", "there is none; give at least one, such as {at: 0, replicas: 1}", ("moments",))
        for index, (before, after) in enumerate(pairwise(self.moments), 1):
            if after.at <= before.at:
                place = f"moments[{index}].at"
                yield Conflict(place, f"{after.at:g} is not later than {before.at:g}, the moment before", ("moments",))


def parse_samples(given: object) -> tuple[Samples, tuple[str, ...]]:
    """The samples of a file, and a sentence for everything in it that is not known. A bare list is one of moments.

    Raises ValueError with a sentence on each line for everything that is wrong.
    """
    if isinstance(given, list):
        given = {"moments": given}
    if not isinstance(given, Mapping):
        raise ValueError("it has no moments; give moments: with a list of them")  # noqa: TRY004  (of a file, not of a call)
    given = without_nulls(given)
    try:
        return Samples.model_validate(given), tuple(unknown_fields(given, Samples))
    except ValidationError as error:
        raise ValueError("\n".join(dict.fromkeys(problems_of(error, Samples, given)))) from None


def replicas_of(moment: Moment, decided: int | None) -> int:
    """How many replicas are asked for at a moment; `decided` is what was decided the moment before."""
    if moment.replicas is not None:
        return moment.replicas
    if decided is not None:
        return decided
    return 1 if moment.members is None else len(moment.members)


def readings_of(moment: Moment, policy: Policy, replicas: int) -> Readings:
    """What a decision rests on at this moment. Only what the policy has rules for is taken from it."""
    return Readings(
        at=moment.at,
        replicas=replicas,
        members=tuple(_members(moment, policy, replicas)),
        target={} if moment.target is None else _samples(moment.target, policy, moment.at - moment.target.age),
        held=moment.held,
    )


def override_of(moment: Moment) -> Override | None:
    """The manual adjustment of this moment."""
    given = moment.override
    return None if given is None else Override(given.replicas, given.by, moment.at, given.until)


def _members(moment: Moment, policy: Policy, replicas: int) -> Iterator[ReplicaReading]:
    if moment.load is not None:
        whole = _samples(moment.load, policy, moment.at)
        for index in range(replicas):
            shares = {signal: Sample(sample.value / replicas, sample.at) for signal, sample in whole.items()}
            yield ReplicaReading(f"replica-{index}", _LONG_AGO, shares)
    for index, member in enumerate(moment.members or ()):
        since = _LONG_AGO if member.ready_since is None else member.ready_since
        samples = _samples(member, policy, moment.at - member.age)
        yield ReplicaReading(f"replica-{index}", since if member.ready else None, samples)


def _samples(given: SampledLoad | SampledTarget, policy: Policy, at: float) -> dict[Signal, Sample]:
    """The samples of every signal that the policy has a rule for."""
    found: dict[Signal, Sample] = {}
    for metric in Metric:
        value: Any = getattr(given, metric.value, None)
        signals = [rule.signal for rule in policy.rules if rule.signal.metric is metric]
        values = value if isinstance(value, tuple) else (value,) * len(signals)
        pairs = zip(signals, values, strict=False)
        found |= {signal: Sample(float(one), at) for signal, one in pairs if one is not None}
    return found
