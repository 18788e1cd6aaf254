"""`vllm-chill crd`: what a cluster has to know before it can have models."""

from __future__ import annotations

import click

_HEAD = "# Made from the fields of vllm_chill.api; `vllm-chill crd` prints it.\n"


def crd_yaml() -> str:
    """The CustomResourceDefinition of VLLMModel, as a file to apply."""
    import yaml

    from vllm_chill.api.crd import crd

    return _HEAD + str(yaml.safe_dump(crd(), sort_keys=False, allow_unicode=True, width=118))


@click.command(name="crd", short_help="Print the CustomResourceDefinition to apply.")
def print_crd() -> None:
    """Print the CustomResourceDefinition that lets a cluster have models.

    vllm-chill crd | kubectl apply -f -
    """
    click.echo(crd_yaml(), nl=False)
