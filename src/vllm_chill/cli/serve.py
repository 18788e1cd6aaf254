"""`vllm-chill serve`: its flags are made from the settings' fields."""

from __future__ import annotations

from collections.abc import Callable

import click

from vllm_chill.cli.flags import grouped, setting_flags
from vllm_chill.settings.serve import Settings, load_settings

Begin = Callable[[Settings, tuple[str, ...]], None]


@click.command(
    cls=grouped(Settings),
    short_help="Run the proxy in front of a Deployment or a command.",
    options_metavar="[FLAGS]",
    context_settings={"max_content_width": 110},
    epilog="A flag wins over its environment variable; an empty variable is unset.",
)
@setting_flags(Settings)
@click.option("--check", is_flag=True, help="Say what is wrong with all of this and what it names, and serve nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")
@click.pass_obj
def serve(begin: Begin | None, /, command: tuple[str, ...], *, check: bool, **flags: str | None) -> None:
    """Run the proxy in front of one target: a Deployment, or a COMMAND on this machine.

    With --backend process, {port} in COMMAND becomes a free port on the loopback address; the command is
    started when a request comes and ended when nobody has used it for the idle timeout.
    """
    settings = load_settings({name: value for name, value in flags.items() if value is not None})
    if check:
        from vllm_chill.app.check import check_all

        check_all(settings, command)
        click.echo("All of this can be used.")
        return
    (begin or begin_here)(settings, command)


def begin_here(settings: Settings, command: tuple[str, ...]) -> None:
    """Serve in the process that has read the settings."""
    from vllm_chill.app.serve import begin

    begin(settings, command)
