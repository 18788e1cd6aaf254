"""Flags made from the fields of settings: one for each, under the headings that the settings have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

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
                shell_complete=_values(name, field),
                **extra,
            )(command)
        return command

    return give


def _values(name: str, field: FieldInfo) -> Callable[..., list[CompletionItem]]:
    """What a shell is told that may follow a flag: the values of a choice, or that it is a file or a folder."""
    values = ["true", "false"] if isinstance(field.default, bool) else _choices(field.annotation)
    ending = name.rpartition("_")[2]
    kind = {"file": "file", "kubeconfig": "file", "dir": "dir"}.get(ending)

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if kind is not None:
            return [CompletionItem(incomplete, type=kind)]
        return [CompletionItem(value) for value in values if value.startswith(incomplete)]

    return complete


def _choices(annotation: Any) -> list[str]:
    """The texts that a type lets through where it is a choice between some, also one that may be left out."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str) and value]
    return [value for part in get_args(annotation) for value in _choices(part)]


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
