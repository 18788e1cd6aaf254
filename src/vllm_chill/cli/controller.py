"""`vllm-chill controller`: its flags are made from the settings' fields."""

from __future__ import annotations

import click

from vllm_chill.cli.flags import grouped, setting_flags
from vllm_chill.settings.controller import ControllerSettings, load_controller_settings


@click.command(
    cls=grouped(ControllerSettings),
    short_help="Scale the variants of models by how saturated they are.",
    options_metavar="[FLAGS]",
    context_settings={"max_content_width": 110},
    epilog="A flag wins over its environment variable, and that over the file; an empty variable is unset.",
)
@click.option(
    "--config-file",
    metavar="FILE",
    envvar="CONFIG_FILE",
    help="A YAML file of these variables' names and values. [CONFIG_FILE]",
)
@setting_flags(ControllerSettings)
def controller(config_file: str | None, **flags: str | None) -> None:
    """Scale the VariantAutoscaling objects of a cluster by how saturated the replicas of each model are.

    What is decided is told as wva_desired_replicas, for a HorizontalPodAutoscaler or KEDA to follow, or with
    `actuation: direct` carried out. No proxy is needed for it.
    """
    from vllm_chill.app import VERSION
    from vllm_chill.app.controller import run
    from vllm_chill.telemetry.logs import configure_logging

    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_controller_settings(given, config_file)
    configure_logging(settings.log_format, settings.log_level)
    run(settings, VERSION)
