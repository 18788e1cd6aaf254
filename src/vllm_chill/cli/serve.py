"""`vllm-chill serve`: its flags are made from the settings' fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vllm_chill.settings.parts import default_text, env_of, extra_of, flag_of
from vllm_chill.settings.serve import Settings, load_settings


class GroupedCommand(click.Command):
    """A command whose help lists its flags under the headings that the settings have."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group of settings, in the order of their declaration."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                field = Settings.model_fields.get(param.name or "")
                groups.setdefault(extra_of(field, "group") if field is not None else "Other", []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records, col_max=28)


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one flag for each setting. Values arrive as text; what is not given does not arrive."""
    for name, field in reversed(Settings.model_fields.items()):
        default = default_text(field)
        facts = f"[{env_of(field)}" + (f"; default: {default}]" if default else "]")
        command = click.option(
            flag_of(name), name, metavar=_metavar(name), help=f"{field.description} {facts}", default=None
        )(command)
    return command


def _metavar(name: str) -> str:
    suffixes = {
        "timeout": "DURATION",
        "delay": "DURATION",
        "port": "PORT",
        "host": "HOST",
        "limit": "SIZE",
        "dir": "FOLDER",
    }
    return suffixes.get(name.rpartition("_")[2], "TEXT" if name != "kubeconfig" else "FILE")


@click.command(
    cls=GroupedCommand,
    short_help="Run the proxy in front of a Deployment or a command.",
    options_metavar="[FLAGS]",
    context_settings={"max_content_width": 110},
    epilog="A flag wins over its environment variable; an empty variable is unset.",
)
@setting_flags
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")
def serve(command: tuple[str, ...], **flags: str | None) -> None:
    """Run the proxy in front of one target: a Deployment, or a COMMAND on this machine.

    With --backend process, {port} in COMMAND becomes a free port on the loopback address; the command is
    started when a request comes and ended when nobody has used it for the idle timeout.
    """
    from vllm_chill import app
    from vllm_chill.telemetry.logs import configure_logging

    settings = load_settings({name: value for name, value in flags.items() if value is not None})
    plan = app.Plan(settings, command)
    configure_logging(settings.log_format, settings.log_level)
    app.run(plan)
