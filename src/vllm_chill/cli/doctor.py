"""`vllm-chill doctor`: says what is wrong around a proxy, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vllm_chill.cli.flags import grouped, setting_flags
from vllm_chill.core.doctor.checks import count, exit_status
from vllm_chill.core.doctor.finding import Finding, Outcome
from vllm_chill.settings.serve import Settings

if TYPE_CHECKING:
    from vllm_chill.app.doctor import Diagnosis

_COLOURS = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.FAILURE: "red", Outcome.UNKNOWN: "cyan"}
_WIDTH = max(len(outcome.value) for outcome in Outcome)
_COLUMNS = 118


@click.command(
    cls=grouped(Settings),
    short_help="Say what is wrong around a proxy, and what to do about it.",
    options_metavar="[FLAGS]",
    context_settings={"max_content_width": 110},
    epilog="\b\nExamples:\n  vllm-chill doctor\n  vllm-chill doctor --namespace ai-apps --deployment vllm --strict\n"
    "  vllm-chill doctor --backend process -- vllm serve Qwen/Qwen3-0.6B --port {port}",
)
@setting_flags(Settings)
@click.option(
    "--service-account",
    metavar="[NAMESPACE/]NAME",
    help="Whose rights are asked for. [default: that of the proxy in --namespace; without one, yours]",
)
@click.option("--strict", is_flag=True, help="Let warnings count as failures.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")
def doctor(
    service_account: str | None, strict: bool, as_json: bool, command: tuple[str, ...], **flags: str | None
) -> None:
    """Say what is wrong around a proxy, and what to do about it. Nothing is changed, and nothing is woken.

    It takes the flags and variables of `vllm-chill serve`, and looks at the cluster, or with --backend process at this
    machine. Of settings that are not given it takes those of the proxy that runs in --namespace. docs/doctor.md has
    every check.

    Exit status: 0 if nothing has failed, 1 if something has, 2 for settings that cannot be used.
    """
    from vllm_chill.app.doctor import diagnose

    given = {name: value for name, value in flags.items() if value is not None}
    found = asyncio.run(diagnose(given, command, service_account))
    text = json.dumps(as_dict(found), indent=2, ensure_ascii=False) if as_json else as_text(found)
    click.echo(text, color=_colour())
    sys.exit(exit_status(found.findings, strict=strict))


def as_dict(found: Diagnosis) -> dict[str, object]:
    """What was found, for a program."""
    counts = count(found.findings)
    return {
        "about": found.about,
        "settings_of": found.settings_of,
        "counts": {outcome.value: counts[outcome] for outcome in Outcome},
        "findings": [
            {
                "check": one.check,
                "outcome": one.outcome.value,
                "says": one.says,
                "remedy": one.remedy or None,
                "paste": one.paste or None,
            }
            for one in found.findings
        ],
    }


def as_text(found: Diagnosis) -> str:
    """What was found, for a person: a row for each finding, and below it what to do."""
    by = "" if found.settings_of is None else f"\nwith the settings of Deployment {found.settings_of}"
    checks = max((len(one.check) for one in found.findings), default=0)
    lines = [f"{found.about}{by}", ""]
    for one in found.findings:
        lines += _rows(one, checks)
    return "\n".join([*lines, "", _summary(found)])


def _rows(one: Finding, checks: int) -> Iterator[str]:
    outcome = click.style(
        f"{one.outcome.value:<{_WIDTH}}", fg=_COLOURS[one.outcome], bold=one.outcome is Outcome.FAILURE
    )
    indent = " " * (_WIDTH + checks + 4)
    first, *more = _wrapped(one.says, len(indent))
    yield f"{outcome}  {one.check:<{checks}}  {first}"
    yield from (indent + line for line in more)
    if one.remedy:
        first, *more = _wrapped(one.remedy, len(indent) + 3)
        yield f"{indent}-> {first}"
        yield from (f"{indent}   {line}" for line in more)
    # Never wrapped: it is to be pasted as it is.
    yield from (f"{indent}   {click.style(line, bold=True)}" for line in one.paste.splitlines())


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _COLUMNS - indent, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(found: Diagnosis) -> str:
    counts = count(found.findings)
    words = {
        Outcome.FAILURE: ("failure", "failures"),
        Outcome.WARNING: ("warning", "warnings"),
        Outcome.UNKNOWN: ("could not be looked at", "could not be looked at"),
        Outcome.OK: ("fine", "fine"),
    }
    return ", ".join(
        f"{counts[outcome]} {one if counts[outcome] == 1 else many}"
        for outcome, (one, many) in words.items()
        if counts[outcome]
    )


def _colour() -> bool | None:
    """None: where a person looks."""
    return False if os.environ.get("NO_COLOR") else None
