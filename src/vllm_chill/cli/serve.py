"""`vllm-chill serve`: its flags are made from the settings' fields."""

from __future__ import annotations

import click

from vllm_chill.cli.flags import grouped, setting_flags
from vllm_chill.settings.serve import Settings, load_settings


@click.command(
    cls=grouped(Settings),
    short_help="Run the proxy in front of a Deployment or a command.",
    options_metavar="[FLAGS]",
    context_settings={"max_content_width": 110},
    epilog="A flag wins over its environment variable; an empty variable is unset.",
)
@setting_flags(Settings)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")
def serve(command: tuple[str, ...], **flags: str | None) -> None:
    """Run the proxy in front of one target: a Deployment, or a COMMAND on this machine.

    With --backend process, {port} in COMMAND becomes a free port on the loopback address; the command is
    started when a request comes and ended when nobody has used it for the idle timeout.
    """
    from vllm_chill.app.plan import Plan
    from vllm_chill.app.serve import run
    from vllm_chill.telemetry.logs import configure_logging

    settings = load_settings({name: value for name, value in flags.items() if value is not None})
    plan = Plan(settings, command)
    configure_logging(settings.log_format, settings.log_level)
    run(plan)
