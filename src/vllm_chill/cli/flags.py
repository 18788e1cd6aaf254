"""Flags made from the fields of settings: one for each, under the headings that the settings have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vllm_chill.settings.parts import Declared, default_text, env_of, extra_of, flag_of


def grouped(kind: type[Declared]) -> type[click.Command]:
    """A command whose help lists its flags under the headings of these settings, in the order of their declaration."""

    class GroupedCommand(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            groups: dict[str, list[tuple[str, str]]] = {}
            for param in self.get_params(ctx):
                record = param.get_help_record(ctx)
                if record is not None:
                    field = kind.model_fields.get(param.name or "")
                    groups.setdefault(extra_of(field, "group") if field is not None else "Other", []).append(record)
            for group, records in groups.items():
                with formatter.section(group):
                    formatter.write_dl(records, col_max=28)

    return GroupedCommand


def setting_flags(kind: type[Declared]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one flag for each setting. Values arrive as text; what is not given does not arrive.

    A switch may be given without a value, which means true.
    """

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(kind.model_fields.items()):
            default = default_text(field)
            facts = f"[{env_of(field)}" + (f"; default: {default}]" if default else "]")
            is_switch = isinstance(field.default, bool)
            extra: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_switch else {}
            command = click.option(
                flag_of(name),
                name,
                metavar="[=BOOL]" if is_switch else _metavar(name),
                help=f"{field.description} {facts}",
                default=None,
                **extra,
            )(command)
        return command

    return give


def _metavar(name: str) -> str:
    suffixes = {
        "timeout": "DURATION",
        "delay": "DURATION",
        "duration": "DURATION",
        "deadline": "DURATION",
        "period": "DURATION",
        "interval": "DURATION",
        "port": "PORT",
        "host": "HOST",
        "limit": "SIZE",
        "dir": "FOLDER",
        "path": "PATH",
        "address": "ADDRESS",
        "url": "URL",
        "urls": "URLS",
    }
    return suffixes.get(name.rpartition("_")[2], "TEXT" if name != "kubeconfig" else "FILE")
