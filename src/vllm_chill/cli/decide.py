"""`vllm-chill decide`: what a policy would do, from files, in the words that status, log and events have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import yaml

from vllm_chill.api.samples import Samples, override_of, parse_samples, readings_of, replicas_of
from vllm_chill.api.scaling_policy import KIND, parse_policy, policy_of, policy_warnings
from vllm_chill.cli.output import json_or_output_option, print_json
from vllm_chill.core.cold_start import duration
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.decide import State, decide, scaled
from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.errors import InvalidPolicy, SettingError

_MOST_BYTES = 16 << 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPILOG = """\b
Examples:
  vllm-chill decide --policy coder.yaml --samples history.yaml

\b
The samples, moment by moment:
  - {at: 0, replicas: 1, held: 30, members: [{queue_length: 12}]}
  - {at: 15, held: 4, members: [{queue_length: 12}, {ready: false}]}
"""


@dataclass(frozen=True, slots=True)
class Played:
    """One decision of a history, and the replicas that were asked for when it was made."""

    current: int
    decision: Decision


@click.command(name="decide", short_help="Tell what a scaling policy would do.", epilog=_EPILOG)
@click.option(
    "--policy", "policy_file", required=True, metavar="FILE", type=Path, help=f"A {KIND}, as kubectl takes it."
)
@click.option(
    "--samples", "samples_file", required=True, metavar="FILE", type=Path, help="What was measured, moment by moment."
)
@json_or_output_option
def decide_command(policy_file: Path, samples_file: Path, as_json: bool) -> None:
    """Tell what a scaling policy would do, step by step, and change nothing. No cluster is asked.

    The policy is a vLLMScalingPolicy. The samples are a list of moments, each with what there is at it; one that does
    not say how many replicas are asked for has as many as were decided the moment before.

    --json prints a list of the decisions, with the names that the status of a policy has.
    """
    policy = _policy(policy_file)
    history = play(policy, _samples(samples_file))
    if as_json:
        print_json([_as_json(one) for one in history])
        return
    for one in history:
        click.echo(tell(one))


def play(policy: Policy, samples: Samples) -> Iterator[Played]:
    """The decisions of a history, each as if the ones before had been carried out."""
    state, wall = State(), samples.wall or _EPOCH
    before: Decision | None = None
    was = 0
    for moment in samples.moments:
        current = replicas_of(moment, None if before is None else before.replicas)
        if before is not None:
            state = scaled(state, was, current, before.at)
        time = wall + timedelta(seconds=moment.at)
        decision, state = decide(policy, state, readings_of(moment, policy, current), time, override_of(moment))
        yield Played(current, decision)
        before, was = decision, current


def tell(played: Played) -> str:
    """A decision for a person: what changes, and a row for each step of its trail."""
    decision = played.decision
    change = f"{played.current} → " if decision.replicas != played.current else ""
    lines = [f"{_time(decision.at)}: {change}{words.replicas(decision.replicas)}"]
    lines += (f"  {said.stage:<9}  {said.replicas:>4}  {said.reason}" for said in decision.trail)
    return "\n".join(lines)


def _time(at: float) -> str:
    return f"-{duration(-at)}" if at < 0 else duration(at)


def _as_json(played: Played) -> Mapping[str, Any]:
    """A decision with the names that the status of a policy has."""
    decision = played.decision
    return {
        "at": decision.at,
        "currentReplicas": played.current,
        "desiredReplicas": decision.replicas,
        "recommended": decision.recommended,
        "limited": decision.limited.value,
        "measured": decision.measured,
        "fallenBack": decision.fallen_back,
        "trail": [{"stage": one.stage, "replicas": one.replicas, "reason": one.reason} for one in decision.trail],
        "metrics": [
            {
                "metric": words.name(one.rule.signal),
                "current": one.value,
                "target": one.rule.target,
                "ageSeconds": one.age_seconds,
                "replicas": one.replicas,
            }
            for one in decision.asked
        ],
    }


def _policy(path: Path) -> Policy:
    given = _yaml("--policy", path)
    if not isinstance(given, Mapping):
        raise SettingError(f"--policy {path}: this is no {KIND}; give one, as kubectl takes it")
    try:
        policy = parse_policy(given)
    except InvalidPolicy as invalid:
        raise SettingError("\n".join(f"--policy {path}: {problem}" for problem in invalid.problems)) from None
    _warn("--policy", path, policy_warnings(policy, given))
    return policy_of(policy)


def _samples(path: Path) -> Samples:
    try:
        samples, unknown = parse_samples(_yaml("--samples", path))
    except ValueError as error:
        raise SettingError("\n".join(f"--samples {path}: {line}" for line in str(error).splitlines())) from None
    _warn("--samples", path, unknown)
    return samples


def _yaml(flag: str, path: Path) -> object:
    """The one document of a file."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"{flag} {path}: the file cannot be read: {reason}") from None
    if len(text) > _MOST_BYTES:
        raise SettingError(f"{flag} {path}: the file is larger than {_MOST_BYTES >> 20} MiB")
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError(f"{flag} {path}: this is not YAML: {' '.join(str(error).split())}") from None
    if len(documents) != 1:
        raise SettingError(f"{flag} {path}: give one YAML document, and not {len(documents)}")
    return documents[0]


def _warn(flag: str, path: Path, warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"vllm-chill: {flag} {path}: {warning}", err=True)
