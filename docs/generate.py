"""Writes the reference pages from the code that they describe; `--check` only compares.

Run it as `python docs/generate.py [--check]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from msgspec import structs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from vllm_chill.api.crd import DEFINITIONS, Definition, crd
from vllm_chill.api.scaling_policy import ScalingPolicySpec, ScalingPolicyStatus
from vllm_chill.api.spec_parts import Part, accepts_of, fields_of, part_of, said_of
from vllm_chill.api.variant import VariantAutoscalingStatus
from vllm_chill.api.variant_config import LOCAL, NAMES, Role
from vllm_chill.api.variant_entries import ClassEntry, MainSettings, PriceEntry, SaturationEntry, ZeroEntry
from vllm_chill.api.variant_spec import VariantAutoscalingSpec
from vllm_chill.api.vllm_model import VLLMModelSpec, VLLMModelStatus
from vllm_chill.cli import NAME, cli
from vllm_chill.cli.crd import crd_yaml
from vllm_chill.cli.output import EXIT_STATUSES
from vllm_chill.core.cold_start import STAGE_NAMES, STAGE_WORDS
from vllm_chill.core.events import (
    Arrived,
    Event,
    Granted,
    Left,
    Observed,
    Released,
    Scaled,
    ScaleFailed,
    ScaleStarted,
    StopAsked,
    Tick,
    WakeAsked,
)
from vllm_chill.core.lifecycle import desired_replicas, next_deadline, step
from vllm_chill.core.routing import DEFAULT_WAKE_PATHS, HEALTH_CHECKERS, TABLE, Entry
from vllm_chill.core.saturation.config import DEFAULT
from vllm_chill.core.target import Endpoint, Limits, Observation, Ready, Target, TargetRef, Unknown
from vllm_chill.settings.controller import ControllerSettings
from vllm_chill.settings.parts import Declared, default_text, env_of, extra_of, flag_of
from vllm_chill.settings.serve import Settings
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.variant_metrics import ControllerMetrics

DOCS = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py; a test compares it with the code. -->"

# --- the lifecycle ---

_LIMITS = Limits(idle_seconds=300, start_seconds=1800)
_HERE = (Endpoint("127.0.0.1", 8000),)
_SEEN = {
    "seen at 0": Observation(0, 0),
    "seen at 0, still ending": Observation(0, 1),
    "seen starting": Observation(1, 1),
    "seen ready": Observation(1, 1, _HERE),
    "seen failed": Observation(0, 0, failure="it broke"),
}
_LABELS: dict[str, Event] = {
    "a request arrives": Arrived(),
    "a request leaves": Left(),
    "a lease begins": Granted(),
    "a lease ends": Released(),
    "operator: start": WakeAsked(),
    "operator: stop": StopAsked(),
    "a deadline passes": Tick(),
    **{label: Observed(seen) for label, seen in _SEEN.items()},
}
_DEPTH = 7


def _events(target: Target) -> dict[str, Event]:
    events = dict(_LABELS)
    if not target.waiting:
        del events["a request leaves"], events["a lease begins"]
    elif not isinstance(target.phase, Ready):
        del events["a lease begins"]
    if not target.in_flight:
        del events["a lease ends"]
    if target.sent is not None:
        events["the write succeeds"] = Scaled(target.sent)
        events["the write fails for now"] = ScaleFailed(target.sent, "away", final=False)
        events["the write is refused"] = ScaleFailed(target.sent, "no", final=True)
    else:
        desired = desired_replicas(target)
        if target.observed is not None and desired is not None and desired != target.observed.replicas:
            events["a write begins"] = ScaleStarted(desired)
    return events


def transitions() -> dict[tuple[str, str], set[str]]:
    """Every change of phase that `step` makes within a few events of the start, and what causes it."""
    start = Target(TargetRef("ai-apps", "vllm"))
    found: dict[tuple[str, str], set[str]] = {}
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        target, depth = queue.popleft()
        for label, event in _events(target).items():
            # Time stands still but for deadlines, so that equal targets are one.
            now = (next_deadline(target, _LIMITS) or 0.0) if isinstance(event, Tick) else 0.0
            after = step(target, event, now, _LIMITS)
            before_name, after_name = type(target.phase).__name__, type(after.phase).__name__
            if before_name != after_name:
                found.setdefault((before_name, after_name), set()).add(label)
            after = _at_zero(after)
            if after not in seen and depth < _DEPTH and after.waiting <= 1 and after.in_flight <= 1:
                seen.add(after)
                queue.append((after, depth + 1))
    return found


def _at_zero(target: Target) -> Target:
    phase = target.phase
    if isinstance(phase, Ready):
        phase = Ready(0.0, 0.0)
    elif not isinstance(phase, Unknown):
        phase = replace(phase, since=0.0)
    return structs.replace(target, phase=phase, failures=min(target.failures, 1))


def lifecycle_page() -> str:
    """The diagram of one target's life."""
    arrows = transitions()
    lines = [
        "# The life of a target",
        "",
        MADE,
        "",
        "Drawn by asking `core.lifecycle.step` for what it does: every change of phase that it makes within a few",
        f"events ({_DEPTH} at the most) of the start. What each phase means: [how it works](how-it-works.md).",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> Unknown",
        *(f"    {before} --> {after}" for before, after in sorted(arrows)),
        "```",
        "",
        "| from | to | when |",
        "|---|---|---|",
        *(f"| {before} | {after} | {'; '.join(sorted(arrows[before, after]))} |" for before, after in sorted(arrows)),
        "",
    ]
    return "\n".join(lines)


# --- settings ---


def configuration_page() -> str:
    """Every setting of `vllm-chill serve`."""
    lines = [
        "# Configuration",
        "",
        MADE,
        "",
        "`vllm-chill serve` takes each setting as a flag or from the environment. A flag wins over its variable; an",
        "empty variable is unset. A value that cannot be used ends the program with exit status 2 and one line that",
        "names the setting, the value and what is accepted.",
    ]
    lines += _settings(Settings, "##")
    lines += [
        "",
        "## VLLM_PORT in a namespace with a Service called `vllm`",
        "",
        "Kubernetes sets `VLLM_PORT=tcp://10.0.0.1:80` in every pod of such a namespace, for its own purposes. Such a",
        "value is ignored with a warning. Setting `enableServiceLinks: false` in the pod avoids it, which vLLM itself",
        "needs too: it reads `VLLM_PORT` and expects a number.",
        "",
        "## The controller of variants",
        "",
        "`vllm-chill controller` has settings of its own, many of which it shares with llm-d's autoscaler. Most of",
        "those on deciding and measuring may be in the [main ConfigMap](variant-fields.md) too; it counts less than a",
        "flag or a variable, and from the moment at which it changes.",
        *_settings(ControllerSettings, "###"),
        "",
    ]
    return "\n".join(lines)


def _settings(kind: type[Declared], heading: str) -> Iterator[str]:
    group = ""
    for name, field in kind.model_fields.items():
        if extra_of(field, "group") != group:
            group = extra_of(field, "group")
            yield from (
                "",
                f"{heading} {group}",
                "",
                "| flag | variable | default | what | accepts |",
                "|---|---|---|---|---|",
            )
        default = default_text(field)
        yield (
            f"| `{flag_of(name)}` | `{env_of(field)}` | {f'`{default}`' if default else ''} "
            f"| {field.description} | {extra_of(field, 'accepts')} |"
        )


# --- metrics ---


def _families() -> list[Metric]:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "0")
    metrics.follow(lambda: Target(TargetRef("ai-apps", "vllm")), lambda: 0.0)
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    others = {family.name for family in process.collect()}
    return [family for family in registry.collect() if family.name not in others]


_LABEL_NAMES = {
    "vllm_chill_requests": "method, route, status",
    "vllm_chill_request_duration_seconds": "route",
    "vllm_chill_scale_operations": "target, direction, outcome",
    "vllm_chill_managed_operations": "from_model, to_model, status",
    "vllm_chill_managed_operation_duration_seconds": "from_model, to_model",
    "vllm_chill_current_model": "model_name",
    **{
        f"vllm_chill_{name}": "target"
        for name in (
            *("current_replicas", "idle_time_seconds", "requests_in_flight", "requests_waiting", "vllm_state"),
            *("hold_duration_seconds", "wake_duration_seconds"),
        )
    },
    "vllm_chill_cold_start_phase_seconds": "target, phase",
    "vllm_chill_desired_replicas": "target",
    "vllm_chill_recommended_replicas": "target",
    **{
        f"vllm_chill_replica_{name}": "target, replica"
        for name in (
            *("queue_length", "running_requests", "kv_cache_usage_ratio", "gpu_utilization_ratio"),
            "scrape_age_seconds",
        )
    },
    **{f"vllm_chill_replica_{name}": "target, replica, kind" for name in ("inference_latency_seconds", "tokens")},
    "vllm_chill_gpu_seconds": "target, state",
    "vllm_chill_build_info": "version",
}


def metrics_page() -> str:
    """Every metric of the proxy."""
    lines = [
        "# Metrics",
        "",
        MADE,
        "",
        "`GET /proxy/metrics` gives the proxy's own metrics, as Prometheus text or as OpenMetrics, whichever the",
        "scraper asks for. `GET /metrics` gives those of vLLM while it is awake; asleep it answers 200 with a comment.",
        "Of several models, `GET /metrics?model=NAME` gives that one's. None of these wakes a target or keeps it",
        "awake, so all of them can be scraped at any interval.",
        "",
        "| metric | type | labels | what |",
        "|---|---|---|---|",
    ]
    for family in sorted(_families(), key=lambda f: f.name):
        name = family.name + ("_total" if family.type == "counter" else "")
        lines.append(f"| `{name}` | {family.type} | {_LABEL_NAMES.get(family.name, '')} | {family.documentation} |")
    lines += [
        "",
        "Besides these there are the `process_*` metrics of the proxy's own process.",
        "",
        "`route` is `proxied` for what wakes the target and counts as use, else a path or another name of a",
        "[route](routes.md): `preflight`, `head`, `other`, and for health checkers `checked` on the paths that wake,",
        "`health-check` on others. `method` is one of HTTP's usual methods, or `OTHER`; `direction` is `up` or `down`,",
        "`outcome`, and a switch's `status`, are `success` or `failure`. `target` is a Deployment with its namespace,",
        "or a command; `model_name`, `from_model` and `to_model` are models of the catalogue, by their own names. No",
        "label ever holds what a caller made up, and a model that is deleted leaves no series behind.",
        "",
        "`vllm_chill_replica_*` are what was measured of each replica: the proxy scrapes the engines every 5 s while",
        "there are any, and GPUs where [something tells of them](configuration.md). `replica` is a pod, or a run of a",
        "command. Its series go when it goes, and when its figures are more than 30 s old, all but",
        "`vllm_chill_replica_scrape_age_seconds`. Latencies are a histogram, since percentiles of several replicas",
        "cannot be put together; `kind` is `ttft`, `itl` or `e2e`, and of tokens `prompt` or `generation`.",
        "[How an HPA or KEDA uses them](autoscalers.md).",
        "",
        "The phases of a cold start, in their order:",
        "",
        "| phase | what it is |",
        "|---|---|",
        *(f"| `{STAGE_NAMES[stage]}` | {words} |" for stage, words in STAGE_WORDS.items()),
        "",
        "A start has one observation for each phase that it was in; a phase that takes no time is not there, and",
        "`first_token` is there if somebody waited for an answer. Starts that failed, and starts that were found under",
        "way, are in the log and in `/proxy/status` only.",
        "",
        "## The controller of variants",
        "",
        "`vllm-chill controller` tells these under `/metrics` of its own; a proxy with `--controllers variants` has",
        "them among the others. Only who leads tells of variants. [How an HPA or KEDA uses them](variants.md).",
        "",
        "| metric | type | labels | what |",
        "|---|---|---|---|",
        *_of_controller(),
        "",
    ]
    return "\n".join(lines)


_VARIANT = "variant, variant_name, namespace, accelerator_type"
_CONTROLLER_LABELS = {
    "controller_runtime_reconcile": "controller, result",
    "controller_runtime_reconcile_errors": "controller",
    "controller_runtime_reconcile_time_seconds": "controller",
    "leader_election_master_status": "name",
    "rest_client_request_duration_seconds": "verb",
    "rest_client_requests": "method, code",
    "vllm_chill_gpu_seconds": "target, state",
    "vllm_chill_build_info": "version",
    "workqueue_depth": "name",
    "wva_pod_mapping_miss": "",
    "wva_replica_scaling": f"{_VARIANT}, direction, reason",
}


def _of_controller() -> Iterator[str]:
    for family in sorted(ControllerMetrics("0").registry.collect(), key=lambda family: family.name):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = _CONTROLLER_LABELS.get(family.name, _VARIANT)
        yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


# --- routes ---


_MORE_WAKE_PATHS = {
    "llama.cpp's own routes too": "default,/completion,/completions,/chat/completions,/infill,/embedding,/embeddings",
    "an engine behind a prefix": "/team-a/v1/chat/completions,/team-a/v1/completions",
    "everything": "/*",
}


def routes_page() -> str:
    """Every route: what wakes, what counts as use, and who answers."""
    lines = [
        "# Routes",
        "",
        MADE,
        "",
        "Only a use of the model wakes it, and only a use keeps it awake. Whatever else comes is answered by the proxy",
        "while the target sleeps, and goes to the target while it is ready, without counting. The first row that fits",
        "a request is its route. Asleep stands for all that is not ready: waking, draining and failed too.",
        "",
        "| path | methods | wakes | counts as use | who answers asleep | who answers awake |",
        "|---|---|---|---|---|---|",
        *(_route_row(entry) for entry in TABLE.values()),
        "",
        "A browser that opens a path which wakes while the target is not ready is not held: it wakes the target and is",
        "shown [a page](how-it-works.md#browsers) that lets it in. On any other path the page wakes nothing by itself.",
        "",
        "With a catalogue of models, a request to the API wakes the model that it names. Anything else is meant for",
        "the model in the query, `?model=NAME`, or else for that of requests which name none; `/v1/models` and",
        "`/v1/models/*` are always answered by the proxy.",
        "",
        "What the proxy answers with: [the HTTP API](http-api.md).",
        "",
        "## The paths that wake",
        "",
        "By default those where vLLM 0.32 works for a caller; `*` stands for whatever follows:",
        "",
        *(f"- `{path}`" for path in DEFAULT_WAKE_PATHS),
        "",
        "`--wake-paths` gives another list, in which `default` stands for this one:",
        "",
        "| for | `--wake-paths` |",
        "|---|---|",
        *(f"| {name} | `{paths}` |" for name, paths in _MORE_WAKE_PATHS.items()),
        "",
        "A path that is not in the list reaches the target only while it is awake, and nothing keeps the target awake",
        "for it: what works for longer than the idle timeout, or is a WebSocket, belongs into the list.",
        "",
        "## Health checkers",
        "",
        "A load balancer asks whether it may send requests here, and it may while the model sleeps. Its checks are",
        "known by their `User-Agent`, which begins with one of these, or with `Mozilla/5.0 (compatible;` and then one:",
        "",
        *(f"- `{agent}`" for agent in HEALTH_CHECKERS),
        "",
        "One of another name should ask for `/health` or `/readyz`.",
        "",
    ]
    return "\n".join(lines)


def _route_row(entry: Entry) -> str:
    path = f"`{entry.path}`" if entry.path.startswith("/") else entry.path
    methods = ", ".join(f"`{method}`" for method in sorted(entry.methods)) or "any"
    asleep = "the target, once it is ready" if entry.asleep is None else f"the proxy: {entry.asleep}"
    awake = "the target" if entry.awake is None else "the proxy, with the same"
    yes = {True: "yes", False: "no"}
    return f"| {path} | {methods} | {yes[entry.wakes]} | {yes[entry.prolongs]} | {asleep} | {awake} |"


# --- models ---

_FIELDS = "<!-- From here on made by docs/generate.py; a test compares it with the code. -->"


def models_page() -> str:
    """Every field of a VLLMModel, after what was written by hand."""
    page = (DOCS / "models.md").read_text() if (DOCS / "models.md").exists() else "# Models\n\n"
    lines = [page.partition(_FIELDS)[0] + _FIELDS]
    group = ""
    for name, field in fields_of(VLLMModelSpec).items():
        if said_of(field, "group") != group:
            group = said_of(field, "group")
            lines += ["", f"## {group}", "", "| field | what | accepts | in vLLM |", "|---|---|---|---|"]
        lines += _field_rows(name, field)
    lines += ["", "## Status", "", "| field | what |", "|---|---|"]
    for name, field in fields_of(VLLMModelStatus).items():
        lines.append(f"| `{name}` | {_cell(field.description)} |")
    return "\n".join([*lines, ""])


def _field_rows(name: str, field: FieldInfo) -> Iterator[str]:
    for path, one in _fields(name, field):
        flag = said_of(one, "flag")
        yield _row(f"`{path}`", _cell(one.description), _cell(accepts_of(one)), f"`{flag}`" if flag else "")


def _fields(name: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    """A field, and all that are in it, with their paths."""
    yield name, field
    part = part_of(field.annotation)
    if part is not None:
        prefix = f"{name}[]" if "tuple[" in str(field.annotation) else name
        for inner_name, inner in fields_of(part).items():
            yield from _fields(f"{prefix}.{inner_name}", inner)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# --- scaling policies ---


def scaling_page() -> str:
    """Every field of a vLLMScalingPolicy, after what was written by hand."""
    lines = [(DOCS / "scaling.md").read_text().partition(_FIELDS)[0] + _FIELDS, ""]
    lines += ["## Every field", "", *_spec_rows(ScalingPolicySpec)]
    lines += ["", "## Its status", "", *_status_rows(ScalingPolicyStatus)]
    return "\n".join([*lines, ""])


def _spec_rows(part: type[Part]) -> Iterator[str]:
    yield from ("| field | what | accepts |", "|---|---|---|")
    for name, field in fields_of(part).items():
        for path, one in _fields(name, field):
            yield _row(f"`{path}`", _cell(one.description), _cell(accepts_of(one)))


def _status_rows(part: type[Part]) -> Iterator[str]:
    yield from ("| field | what |", "|---|---|")
    for name, field in fields_of(part).items():
        for path, one in _fields(name, field):
            yield _row(f"`{path}`", _cell(one.description))


# --- variants ---


_MAPS: dict[Role, tuple[type[Part], str]] = {
    Role.MAIN: (MainSettings, "Each key is a setting. All of them may be in one key `config.yaml` instead, as YAML."),
    Role.SATURATION: (SaturationEntry, "Each key is an entry, in YAML: `default`, or any name and then a `model_id`."),
    Role.ZERO: (ZeroEntry, "Each key is an entry, in YAML: `default`, or any name and then a `model_id`."),
    Role.COSTS: (PriceEntry, "Each key is an accelerator, and stands for its cost, or for YAML or JSON with these."),
    Role.CLASSES: (ClassEntry, "Each key is a service class, in YAML."),
}


def variant_fields_page() -> str:
    """Every field of a VariantAutoscaling, and every key of the ConfigMaps."""
    lines = ["# The fields of variants", "", MADE, ""]
    lines += ["A variant is an object `VariantAutoscaling` of `llmd.ai/v1alpha1`, short `va`, in the namespace of what"]
    lines += ["it scales.", "", "## Every field", "", *_spec_rows(VariantAutoscalingSpec)]
    lines += ["", "## Its status", "", *_status_rows(VariantAutoscalingStatus)]
    lines += ["", "## The ConfigMaps", ""]
    lines += ["They are read again when they change. What an entry does not say is as the one below it has it: the"]
    lines += [
        "defaults, `default`, the entry of the model, that of the model in its namespace, and over all of these the"
    ]
    lines += [f"same of the namespace's own ConfigMap: {' or '.join(map(_named, LOCAL))}."]
    lines += ["A key that cannot be used is told in an event, and what was last good in its place stays."]
    for role, (part, what) in _MAPS.items():
        names = ", or ".join(f"`{name}`" for name in NAMES[role])
        lines += ["", f"### {NAMES[role][0]}", "", f"Called {names}. {what}", "", *_key_rows(part)]
    return "\n".join([*lines, ""])


def _named(role: Role) -> str:
    return f"`{NAMES[role][0]}`"


def _key_rows(part: type[Part]) -> Iterator[str]:
    yield from ("| key | what | accepts | default |", "|---|---|---|---|")
    for name, field in fields_of(part).items():
        for path, one in _fields(name, field):
            yield _row(f"`{path}`", _cell(one.description), _cell(accepts_of(one)), _default_of(part, name))


def _default_of(part: type[Part], key: str) -> str:
    if part is not SaturationEntry:
        return ""
    defaults = {to_camel(one.name): getattr(DEFAULT, one.name) for one in dataclasses.fields(DEFAULT)}
    value = defaults.get(key)
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")


def crd_file(of: Definition) -> str:
    """The CustomResourceDefinition of one kind."""
    return crd_yaml(crd(of))


# --- the command line ---

_SETTINGS_PAGES = {
    "doctor": "It takes [the settings](configuration.md) of `serve`, and `--service-account [NAMESPACE/]NAME` (whose "
    "rights are asked for), `--strict` (warnings count as failures) and `--json`; [doctor](doctor.md) has every check.",
    "serve": "Its flags are [the settings](configuration.md).",
    "controller": "Its flags are [settings of its own](configuration.md#the-controller-of-variants).",
}
_PICTURES = {
    "vllm-chill top": {
        "top": "a row for each of five models: two are ready, one loads and has a bar, one waits, one sleeps",
        "top-phone": "the same in a narrow terminal, a paragraph each",
    }
}


def cli_page() -> str:
    """Every command, with its options, and what it ends with."""
    lines = ["# The command line", "", MADE, ""]
    lines += [
        "`vllm-chill COMMAND --help` says the same in a terminal. Errors go to standard error, as a sentence that"
    ]
    lines += [
        "says what to do; with `--json` they are JSON, those of the proxy as [it tells them](http-api.md#errors)."
    ]
    lines += ["What asks a proxy takes `--url`, or `VLLM_CHILL_URL`, and sends `VLLM_CHILL_KEY` as the key or token."]
    lines += ["`vllm-chill completion` has your shell complete all of it, and the names of models."]
    lines += ["", "## Exit status", "", "| status | meaning |", "|---|---|"]
    lines += [_row(f"`{status}`", meaning) for status, meaning in EXIT_STATUSES.items()]
    lines += ["", "A command that printed JSON for `--output json` before it had `--json` takes both."]
    with click.Context(cli, info_name=NAME) as ctx:
        for section, names in cli.sections().items():
            lines += ["", f"## {section}"]
            for name in names:
                command = cli.get_command(ctx, name)
                assert command is not None
                lines += _command(click.Context(command, ctx, info_name=name))
    return "\n".join([*lines, ""])


def _command(ctx: click.Context) -> Iterator[str]:
    """A command, and those in it."""
    command = ctx.command
    yield from ("", f"### {ctx.command_path}", "", "```", " ".join([ctx.command_path, *_usage(ctx)]), "```", "")
    for name, shows in _PICTURES.get(ctx.command_path, {}).items():
        yield from (f"![{shows}](img/{name}.svg)", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield from (textwrap.fill(paragraph, 118), "")
    if (elsewhere := _SETTINGS_PAGES.get(command.name or "")) is not None:
        yield elsewhere
        return
    options = [
        one
        for one in command.get_params(ctx)
        if isinstance(one, click.Option) and not one.hidden and "--help" not in one.opts
    ]
    if options:
        yield from ("| option | what |", "|---|---|")
    for option in options:
        given, help_text = option.get_help_record(ctx) or ("", "")
        yield _row(f"`{_cell(given)}`", _cell(help_text))
    if command.epilog:
        yield from ("", *_examples(command.epilog))
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from _command(click.Context(below, ctx, info_name=name))


def _usage(ctx: click.Context) -> list[str]:
    return ctx.command.collect_usage_pieces(ctx)


def _examples(epilog: str) -> Iterator[str]:
    """The paragraphs of an epilog: what is indented is code."""
    paragraphs = [part.strip("\n") for part in epilog.split("\b") if part.strip()]
    for number, paragraph in enumerate(paragraphs):
        said = [line for line in paragraph.splitlines() if not line.startswith("  ")]
        code = [line.removeprefix("  ") for line in paragraph.splitlines() if line.startswith("  ")]
        if number:
            yield ""
        if said and said != ["Examples:"]:
            yield from (*said, *([""] if code else []))
        if code:
            yield from ("```sh", *code, "```")


CRD_FOLDERS = ("", "helm/vllm-chill/")
"""kustomize's and the chart's: neither tool reads a file outside of its own folder."""


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "models.md": models_page,
    "scaling.md": scaling_page,
    "variant-fields.md": variant_fields_page,
    **{f"../deploy/{folder}crds/{of.name}.yaml": partial(crd_file, of) for of in DEFINITIONS for folder in CRD_FOLDERS},
    "routes.md": routes_page,
    "lifecycle.md": lifecycle_page,
    "configuration.md": configuration_page,
    "metrics.md": metrics_page,
}


def main() -> int:
    """Write the pages, or say which differ."""
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text)
    if "--check" in sys.argv and stale:
        sys.stderr.write(f"not what the code says: {', '.join(stale)}; run: python docs/generate.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
