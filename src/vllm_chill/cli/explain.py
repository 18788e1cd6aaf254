"""`vllm-chill explain variant`: the last decision on a variant, step by step, as its object tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from vllm_chill.cli.output import json_or_output_option, print_json
from vllm_chill.cli.tables import aligned, cut
from vllm_chill.core.objects import Json, metadata
from vllm_chill.errors import AskFailed, CannotBeAsked, NoCredentials, NotAllowed

_EPILOG = """\b
Examples:
  vllm-chill explain variant -A
  vllm-chill explain variant -n llm llama-h100
"""
_WHY_CHARACTERS = 90
_VARIANTS = ("NAMESPACE", "VARIANT", "MODEL", "TARGET", "REPLICAS", "WANTED", "SATURATION", "WHY")


@click.group(short_help="Tell why there are as many replicas as there are.")
def explain() -> None:
    """Tell why there are as many replicas as there are."""


@explain.command(short_help="Tell the last decision on a variant, step by step.", epilog=_EPILOG)
@click.argument("name", required=False)
@click.option("-n", "--namespace", default="default", help="The variant's namespace. [default: default]")
@click.option("-A", "--all-namespaces", is_flag=True, help="Without NAME: the variants of all namespaces.")
@click.option("--kubeconfig", metavar="FILE", envvar="KUBECONFIG", help="Credentials for the API server. [KUBECONFIG]")
@json_or_output_option
def variant(name: str | None, namespace: str, all_namespaces: bool, kubeconfig: str | None, as_json: bool) -> None:
    """Tell the last decision on the VariantAutoscaling NAME, step by step. Without NAME: all of them, in a row each.

    It is read from the object's status, as the controller has written it; nothing is decided anew. --json prints the
    object's name, spec and status; without NAME, a list.
    """
    found = asyncio.run(_variants(kubeconfig, None if all_namespaces and name is None else namespace, name))
    if as_json:
        told = [_as_json(item) for item in found]
        print_json(told if name is None else told[0])
    elif name is None:
        click.echo(table(found) if found else "There is no variant.")
    else:
        click.echo(describe(found[0]))


async def _variants(kubeconfig: str | None, namespace: str | None, name: str | None) -> list[Json]:
    from vllm_chill.adapters.kubernetes.client import ApiError, Unreachable, connect
    from vllm_chill.api.kinds import VARIANT

    where = "" if namespace is None else f"/namespaces/{namespace}"
    path = f"/apis/{VARIANT.api_version}{where}/{VARIANT.plural}"
    try:
        async with connect(kubeconfig) as api:
            if name is not None:
                return [await api.call("GET", f"{path}/{name}")]
            return list((await api.call("GET", path))["items"])
    except ApiError as error:
        if error.status == 404:
            if name is not None and error.reason == "NotFound" and name in error.message:
                raise AskFailed(
                    f"there is no VariantAutoscaling {namespace}/{name}; see: vllm-chill explain variant -A"
                ) from None
            raise AskFailed(
                f"the cluster knows no {VARIANT.kind}; install it: vllm-chill crd | kubectl apply -f -"
            ) from None
        refused = NotAllowed if error.status in (401, 403) else AskFailed
        raise refused(f"the API server refuses: {error.message.rstrip('.')}") from None
    except Unreachable as error:
        raise CannotBeAsked(str(error)) from None
    except NoCredentials as error:
        raise CannotBeAsked(error.message) from None


def table(items: Sequence[Json]) -> str:
    """A row for each variant."""
    return "\n".join(aligned([_VARIANTS, *map(_row, items)], range(4, 7)))


def _row(item: Json) -> tuple[str, ...]:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    target = spec.get("scaleTargetRef") or {}
    return (
        str(metadata(item).get("namespace") or ""),
        str(metadata(item)["name"]),
        str(spec.get("modelID") or ""),
        f"{target.get('kind')} {target.get('name')}",
        _number(status.get("currentReplicas")),
        _number((status.get("desiredOptimizedAlloc") or {}).get("numReplicas")),
        _percent(status.get("saturation")),
        cut(_why(status), _WHY_CHARACTERS),
    )


def describe(item: Json) -> str:
    """A variant and what was decided on it, for a person."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    target, allocation = spec.get("scaleTargetRef") or {}, status.get("desiredOptimizedAlloc") or {}
    decision = status.get("decision") or {}
    rows: list[tuple[str, str | None]] = [
        ("variant", f"{metadata(item).get('namespace')}/{metadata(item)['name']}"),
        ("model", str(spec.get("modelID") or "")),
        ("target", f"{target.get('kind')} {target.get('name')}"),
        ("accelerator", allocation.get("accelerator")),
        ("replicas", f"{_number(status.get('currentReplicas'))}, {_number(allocation.get('numReplicas'))} wanted"),
        ("bounds", _bounds(spec)),
        ("saturation", None if status.get("saturation") is None else _percent(status["saturation"])),
        ("decided", _decided(decision)),
        ("trail", _below(_trail(decision.get("trail") or ()))),
    ]
    conditions = status.get("conditions") or ()
    if conditions:
        states = [
            tuple(str(one.get(key) or "") for key in ("type", "status", "reason", "message")) for one in conditions
        ]
        rows.append(("conditions", _below(aligned(states))))
    if not status:
        rows = [*rows[:3], ("status", "none: no controller has looked at it yet")]
    return "\n".join(f"{label:<11} {value}" for label, value in rows if value)


def _bounds(spec: Json) -> str:
    most = spec.get("maxReplicas")
    least = spec.get("minReplicas") or 0
    return f"{least} to {most}" if most is not None else f"{least} or more"


def _decided(decision: Json) -> str | None:
    if not decision:
        return None
    return " ".join(str(part) for part in (decision.get("time"), f"({decision.get('reason')})") if part)


def _trail(steps: Sequence[Json]) -> list[str]:
    rows = [(str(one.get("stage")), _number(one.get("replicas")), str(one.get("text"))) for one in steps]
    return aligned(rows, (1,)) if rows else []


def _why(status: Json) -> str:
    trail = list((status.get("decision") or {}).get("trail") or ())
    own = [one.get("text") for one in trail if one.get("replicas") is not None]
    if own or trail:
        return str(own[-1] if own else trail[-1].get("text"))
    bad = [one.get("message") for one in status.get("conditions") or () if one.get("status") == "False"]
    return str(bad[0] or "") if bad else ""


def _below(lines: Sequence[str]) -> str | None:
    return "\n            ".join(lines) if lines else None


def _number(value: Any) -> str:
    return "-" if value is None else str(value)


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * float(value):.0f}%"


def _as_json(item: Json) -> Json:
    of = metadata(item)
    return {
        "namespace": of.get("namespace"),
        "name": of["name"],
        "spec": item.get("spec") or {},
        "status": item.get("status") or {},
    }
